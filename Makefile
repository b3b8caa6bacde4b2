# Everything runs in .venv, which `make install` makes; no other setup is needed.
PYTHON ?= python3
MODEL  ?= models/demo
# a repository of the hub, which is pulled to models/NAME, is exported beside it
OUT    ?= $(if $(wildcard $(MODEL)),$(patsubst %/,%,$(MODEL)),models/$(notdir $(MODEL)))-pixedge-4bit
BIN    := .venv/bin

# the demo brings calibration data of its own; for another model name yours with CALIBRATION=DIR
ifeq ($(patsubst %/,%,$(MODEL)),models/demo)
CALIBRATION ?= models/demo/calibration
endif

.DEFAULT_GOAL := help
.PHONY: help install run export check test test-gpu test-fake-gpu test-slow attack bench bench-gpu first-run profile interop clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.venv/.installed: pyproject.toml setup.py $(wildcard pixedge/kernels/*/*.[ch])
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[export]'
	touch $@

.venv/.developing: .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,export]'
	touch $@

install: .venv/.installed ## set up .venv with pixedge and what export needs

run: $(OUT)/pixedge.json ## export the demo if need be, then ask it about a picture
	$(BIN)/pixedge run --model $(OUT) --image models/demo/pictures/shapes.png "What colour is the star?"

export: .venv/.installed ## export MODEL=DIR (default: the demo) to OUT=DIR
	$(BIN)/pixedge export $(MODEL) --out $(OUT) --force $(if $(CALIBRATION),--calibration $(CALIBRATION))

$(OUT)/pixedge.json: | .venv/.installed
	$(BIN)/pixedge export $(MODEL) --out $(OUT) $(if $(CALIBRATION),--calibration $(CALIBRATION))

check: .venv/.developing ## lint and type-check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: .venv/.developing ## the test suite, without slow and GPU tests
	$(BIN)/python -m pytest -q

test-gpu: .venv/.developing ## the tests that need a CUDA device; last line is JSON
	$(BIN)/python -m pytest -q -m gpu

# PIP_FIND_LINKS and the like may name a place that has CPU builds of torch only
.fake-gpu/.installed: pyproject.toml setup.py tests/fake_cuda/build.py $(wildcard tests/fake_cuda/*.[ch])
	$(PYTHON) -m venv .fake-gpu
	env -u PIP_FIND_LINKS PIP_CONFIG_FILE=/dev/null .fake-gpu/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,export]'
	.fake-gpu/bin/python tests/fake_cuda/build.py
	touch $@

test-fake-gpu: .fake-gpu/.installed ## the CUDA path on a stand-in driver that computes nothing (6 GB of disk, no card)
	tests/fake_cuda/run .fake-gpu/bin/python -m pytest -q -m fake_gpu tests/fake_cuda

test-slow: .venv/.developing ## the tests that take minutes or gigabytes
	$(BIN)/python -m pytest -q -m slow

attack: $(OUT)/pixedge.json .venv/.developing ## send hostile requests of all kinds to a server; prints a table
	$(BIN)/python -m tests.attack $(OUT)

bench: $(OUT)/pixedge.json .venv/.developing ## time decoder, encoder, server and formats beside other engines; last lines are JSON
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/serving.py --model $(OUT)
	$(BIN)/python benchmarks/constraint.py

bench-gpu: .venv/.developing ## the same on a CUDA device, in Pixtral-12B's shape below 24 GiB; last line is JSON
	$(BIN)/python benchmarks/gpu.py

first-run: .venv/.developing ## on a machine with a card: collect what it shows into first-run.tar.gz, an hour at most
	$(BIN)/python benchmarks/first_run.py $(if $(FOLDER),--model $(FOLDER))

profile: $(OUT)/pixedge.json ## measure the demo by stage and draw profile.html
	$(BIN)/pixedge profile --model $(OUT) --html profile.html

interop: $(OUT)/pixedge.json .venv/.developing ## ask vLLM, transformers and pixedge the same questions and compare
	$(BIN)/python tests/interop/run.py $(OUT)

clean: ## remove .venv, caches and the demo's export
	rm -rf .venv .fake-gpu .interop build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis models/demo-pixedge-4bit profile.html
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
