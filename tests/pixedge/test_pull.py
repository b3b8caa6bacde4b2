"""Pulling from a hub on localhost: what is fetched, what survives a broken line, and every refusal."""

import doctest
import errno
import gzip
import hashlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections import namedtuple
from pathlib import Path

import huggingface_hub
import pytest
from click.testing import CliRunner
from huggingface_hub import constants

from pixedge import hub as hub_module
from pixedge import pull as pull_module
from pixedge.cli import main
from pixedge.commands import pull as pull_command
from pixedge.commands.pull import Meter
from pixedge.errors import CapacityError, CheckpointError, ConfigError
from pixedge.hub import UnreachableError
from pixedge.pull import looks_like_repository, pull
from pixedge.pull_choice import LAYOUTS, TOKENIZER_FILE
from pixedge.pull_record import RECORD_FILE
from pixedge_export import checkpoint
from pixedge_export.checkpoint import open_checkpoint, save_checkpoint
from tests.local_hub import isolate_from_the_network, serve_hub
from tests.random_models import random_config, random_tensors

REPO = "mistralai/Tiny-Pixtral"
WEIGHTS = "consolidated.safetensors"
TOKEN = "hf_abcdefghijklmnopqrstuvwxyz"


def read_folder(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    """The files of a small checkpoint in both layouts, Hugging Face's in three shards and whole."""
    config = random_config(4)
    tensors = random_tensors(config, 4)
    found = {}
    for name, layout, most in (
        ("mistral", "mistral", 1 << 30),
        ("mistral shards", "mistral", 40_000),
        ("hf", "hf", 1 << 30),
        ("hf shards", "hf", 40_000),
    ):
        folder = tmp_path_factory.mktemp("layout")
        save_checkpoint(folder, config, tensors, layout, max_shard_bytes=most)
        found[name] = read_folder(folder) | {"tekken.json": b'{"vocab": "' + bytes(3000) + b'"}'}
        assert sum(map(len, found[name].values())) < 2_000_000
    assert len(found["hf shards"]) > 4 and len(found["mistral shards"]) > 4
    return found


@pytest.fixture
def hub(tmp_path, monkeypatch, layouts):
    """A hub that has REPO in Mistral's layout and what real ones add; the current folder is empty."""
    with serve_hub() as served:
        isolate_from_the_network(monkeypatch, tmp_path / "hf-home", served)
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        extra = {"README.md": b"# Tiny", ".gitattributes": b"", "consolidated.00.pth": bytes(9)}
        served.repositories[REPO] = layouts["mistral"] | extra
        yield served
        huggingface_hub.close_session()


@pytest.fixture
def run_pull(hub, monkeypatch):
    monkeypatch.setitem(main.commands, "pull", pull_command.pull)
    return lambda *arguments: CliRunner().invoke(main, ["pull", *arguments])


def visible(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


# What is fetched


def test_only_what_export_reads_is_fetched_and_opens(hub):
    folder = pull(REPO)
    assert folder == Path("models/Tiny-Pixtral")
    assert visible(folder) == ["consolidated.safetensors", "params.json", "tekken.json"]
    assert hub.fetched() == ["params.json", "tekken.json", "consolidated.safetensors"]
    opened = open_checkpoint(folder)
    assert opened.layout == "mistral" and opened.tokenizer_file().is_file()
    assert opened.config == random_config(4)


def test_of_two_layouts_mistrals_alone_is_fetched(hub, layouts):
    hub.repositories[REPO] = layouts["hf shards"] | layouts["mistral"]
    assert visible(pull(REPO)) == ["consolidated.safetensors", "params.json", "tekken.json"]
    assert not any(name.startswith("model") or name == "config.json" for name in hub.fetched())


def test_hugging_faces_layout_without_its_other_tokenizer_files(hub, layouts):
    extra = {"tokenizer.json": b"{}", "generation_config.json": b"{}", "pytorch_model.bin": bytes(9)}
    hub.repositories[REPO] = layouts["hf"] | extra
    folder = pull(REPO)
    assert visible(folder) == ["config.json", "model.safetensors", "tekken.json"]
    assert open_checkpoint(folder).layout == "hf"


@pytest.mark.parametrize("layout", ["hf shards", "mistral shards"])
def test_of_shards_and_a_whole_copy_the_reader_takes_what_the_index_names(hub, layouts, layout):
    whole = layouts[layout.removesuffix(" shards")]
    hub.repositories[REPO] = whole | layouts[layout]
    folder = pull(REPO)
    assert visible(folder) == sorted(layouts[layout])
    assert open_checkpoint(folder).config == random_config(4)


@pytest.mark.parametrize("layout", ["hf shards", "mistral shards"])
def test_shards_without_an_index(hub, layouts, layout):
    files = {name: data for name, data in layouts[layout].items() if not name.endswith("index.json")}
    hub.repositories[REPO] = files
    folder = pull(REPO)
    assert visible(folder) == sorted(files)
    open_checkpoint(folder)


def test_out_chooses_the_folder_and_a_revision_can_be_named(hub, tmp_path):
    folder = pull(REPO, tmp_path / "a" / "b", revision=hub.commit(REPO))
    assert folder == tmp_path / "a" / "b"
    open_checkpoint(folder)


def test_names_that_leave_the_folder_are_never_written(hub, tmp_path):
    names = ["../consolidated.safetensors", "consolidated/../../evil.safetensors", "sub/params.json"]
    names += ["C:consolidated.safetensors", "consolidated\\..\\evil.safetensors", "/consolidated.safetensors"]
    names += ["consolidated.\u0131.safetensors", "consolidated\n.safetensors"]
    hub.phantoms = [{"rfilename": name, "size": 5, "blobId": "0" * 40} for name in names]
    folder = pull(REPO, tmp_path / "out" / "model")
    assert visible(folder) == ["consolidated.safetensors", "params.json", "tekken.json"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model"]


@pytest.mark.parametrize("name", ["../model-1.safetensors", "model-9.safetensors", 3])
def test_an_index_may_name_only_files_of_the_listing(hub, layouts, name):
    index = json.dumps({"weight_map": {"a": name}}).encode()
    hub.repositories[REPO] = layouts["hf shards"] | {"model.safetensors.index.json": index}
    with pytest.raises(CheckpointError, match=rf"lacks {re.escape(ascii(str(name)))}, which its"):
        pull(REPO)
    assert not Path("models").exists()


def test_the_layouts_are_those_that_the_reader_knows():
    assert dict(LAYOUTS) == {
        checkpoint._CONFIG[layout]: checkpoint._STEM[layout] for layout in checkpoint._STEM
    }
    assert TOKENIZER_FILE == checkpoint.TOKENIZER_FILE


# A broken line


def test_what_has_arrived_survives_and_the_next_pull_asks_for_the_rest_alone(hub):
    hub.cut[WEIGHTS] = 30_000
    with pytest.raises(
        UnreachableError, match=r"stopped at 30\.0 kB of .*what has arrived is kept"
    ) as caught:
        pull(REPO)
    assert "127.0.0.1" in str(caught.value)
    folder = Path("models/Tiny-Pixtral")
    (part,) = folder.glob("*.safetensors*.incomplete")
    assert part.stat().st_size == 30_000
    assert not (folder / WEIGHTS).exists()
    with pytest.raises(CheckpointError):
        open_checkpoint(folder)

    there = sum(path.stat().st_size for path in folder.glob("*.incomplete"))
    hub.cut.clear()
    hub.asked.clear()
    steps = []
    open_checkpoint(pull(REPO, progress=lambda *step: steps.append(step)))
    assert steps[0][:2] == ("download", there)
    assert hub.ranges_of(WEIGHTS) == ["bytes=30000-"]
    assert hub.ranges_of("tekken.json") == []
    assert not list(folder.glob("*.incomplete"))


def test_one_pull_goes_on_by_itself(hub):
    hub.cut[WEIGHTS], hub.cuts_left = 20_000, 1
    open_checkpoint(pull(REPO))
    assert hub.ranges_of(WEIGHTS) == [None, "bytes=20000-"]


@pytest.mark.parametrize("ranges", ["none", "wrong", "refused"])
def test_a_hub_without_good_ranges_sends_the_file_again(hub, ranges):
    hub.cut[WEIGHTS], hub.cuts_left, hub.ranges = 20_000, 1, ranges
    open_checkpoint(pull(REPO))
    assert hub.ranges_of(WEIGHTS)[:2] == [None, "bytes=20000-"]


def test_a_signed_address_that_has_run_out_is_asked_for_again(hub):
    hub.storage_refuses = 403
    with pytest.raises(UnreachableError, match="the storage at localhost answers 403; try again later"):
        pull(REPO)
    assert len([asked for asked in hub.asked if asked.file == "tekken.json"]) == 10  # five times two hosts


def test_a_damaged_file_is_found_removed_and_fetched_again(hub):
    right = hub.repositories[REPO][WEIGHTS]
    hub.damaged[WEIGHTS] = right[:-1] + bytes([right[-1] ^ 1])
    with pytest.raises(CheckpointError, match=r"consolidated.safetensors arrived damaged: the hash is not"):
        pull(REPO)
    folder = Path("models/Tiny-Pixtral")
    assert visible(folder) == ["params.json", "tekken.json"]
    hub.damaged.clear()
    hub.asked.clear()
    open_checkpoint(pull(REPO))
    assert hub.fetched() == ["params.json", WEIGHTS]


def test_no_weights_get_their_name_before_a_damaged_tokenizer_is_right(hub):
    hub.damaged["tekken.json"] = bytes(len(hub.repositories[REPO]["tekken.json"]))
    with pytest.raises(CheckpointError, match=r"tekken.json arrived damaged"):
        pull(REPO)
    with pytest.raises(CheckpointError, match="no weights"):
        open_checkpoint("models/Tiny-Pixtral")
    hub.damaged.clear()
    hub.asked.clear()
    open_checkpoint(pull(REPO))
    assert hub.fetched() == ["params.json", "tekken.json"]


@pytest.mark.parametrize("name", ["params.json", WEIGHTS])
def test_more_bytes_than_listed_are_refused(hub, name):
    hub.damaged[name] = hub.repositories[REPO][name] + b" "
    with pytest.raises(CheckpointError, match=f"sends more of {name} than the .* listing names"):
        pull(REPO)


def test_a_damaged_config_is_refused_before_anything_else_is_fetched(hub):
    hub.damaged["params.json"] = hub.repositories[REPO]["params.json"].replace(b"4", b"5")
    with pytest.raises(CheckpointError, match=r"params.json of mistralai/Tiny-Pixtral arrived damaged"):
        pull(REPO)
    assert hub.fetched() == ["params.json"] and not Path("models").exists()


def test_ctrl_c_keeps_what_is_there_and_says_so(hub, run_pull, monkeypatch):
    real = pull_command.run_pull

    def interrupt(*arguments, progress, **options):
        def step(phase, done, total, name):
            if done > 25_000:
                raise KeyboardInterrupt

        return real(*arguments, progress=step, **options)

    monkeypatch.setattr(pull_command, "run_pull", interrupt)
    result = run_pull(REPO, "--quiet")
    assert result.exit_code == 130 and result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line]
    folder = Path("models/Tiny-Pixtral")
    (part,) = folder.glob("*.safetensors*.incomplete")
    assert part.stat().st_size > 0
    (line,) = lines
    assert re.fullmatch(
        rf"stopped; [\d.]+ kB of [\d.]+ kB are in {folder}, and the same command goes on from there", line
    )
    monkeypatch.setattr(pull_command, "run_pull", real)
    size = part.stat().st_size
    hub.asked.clear()
    assert run_pull(REPO, "--quiet").stdout == f"{folder}\n"
    assert hub.ranges_of(WEIGHTS) == [f"bytes={size}-"]


def test_a_disk_that_fills_up_is_a_sentence(hub, monkeypatch):
    def fail(self, file, commit, part, progress=None):
        if file.name == WEIGHTS:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, file, commit, part, progress)

    real = hub_module.Repository.download
    monkeypatch.setattr(hub_module.Repository, "download", fail)
    with pytest.raises(CapacityError, match=r"the disk filled up at .* goes on from there"):
        pull(REPO)


# What is there already


def test_a_second_pull_asks_for_the_listing_and_hashes_nothing(hub):
    pull(REPO)
    hub.asked.clear()
    steps = []
    pull(REPO, progress=lambda *step: steps.append(step))
    assert hub.fetched() == ["params.json"] and steps == []


def test_a_whole_folder_serves_without_the_hub(hub, monkeypatch):
    folder = pull(REPO)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert pull(REPO) == folder
    with pytest.raises(UnreachableError):
        pull(REPO, revision="other")
    os.utime(folder / WEIGHTS, ns=(1, 1))
    with pytest.raises(UnreachableError, match="HF_HUB_OFFLINE is set"):
        pull(REPO)


def test_an_unfinished_folder_does_not_serve_without_the_hub(hub, monkeypatch):
    hub.cut[WEIGHTS] = 30_000
    with pytest.raises(UnreachableError):
        pull(REPO)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UnreachableError):
        pull(REPO)


def test_a_new_revision_replaces_what_has_changed_and_leaves_nothing_behind(hub, layouts):
    folder = pull(REPO)
    (folder / "notes.txt").write_text("mine")
    hub.repositories[REPO] = layouts["mistral shards"]
    hub.cut["consolidated-00001-of-00002.safetensors"] = 10
    hub.asked.clear()
    open_checkpoint(pull(REPO))
    assert visible(folder) == sorted([*layouts["mistral shards"], "notes.txt"])
    assert "tekken.json" not in hub.fetched()


def test_a_part_of_another_revision_is_not_continued(hub, layouts):
    hub.cut[WEIGHTS] = 30_000
    with pytest.raises(UnreachableError):
        pull(REPO)
    hub.cut.clear()
    data = layouts["mistral"][WEIGHTS]
    hub.repositories[REPO] = layouts["mistral"] | {WEIGHTS: data[:-4] + b"\0\0\0\0"}
    hub.asked.clear()
    folder = pull(REPO)
    assert hub.ranges_of(WEIGHTS) == [None]
    assert not list(folder.glob("*.incomplete"))


def test_files_from_elsewhere_are_hashed_and_kept_when_right(hub, layouts):
    folder = Path("models/Tiny-Pixtral")
    folder.mkdir(parents=True)
    (folder / WEIGHTS).write_bytes(layouts["mistral"][WEIGHTS])
    steps = []
    open_checkpoint(pull(REPO, progress=lambda *step: steps.append(step)))
    assert ("check", len(layouts["mistral"][WEIGHTS]), len(layouts["mistral"][WEIGHTS]), WEIGHTS) in steps
    assert WEIGHTS not in hub.fetched()


@pytest.mark.parametrize("longer", [True, False])
def test_a_file_from_elsewhere_that_differs_is_not_touched(hub, layouts, longer):
    folder = Path("models/Tiny-Pixtral")
    folder.mkdir(parents=True)
    mine = layouts["mistral"][WEIGHTS][:-4] + b"\0\0\0\1" + b"\0" * longer
    (folder / WEIGHTS).write_bytes(mine)
    with pytest.raises(
        CheckpointError, match=r"differs from the consolidated\.safetensors of .*; move it away"
    ):
        pull(REPO)
    assert (folder / WEIGHTS).read_bytes() == mine


def test_a_folder_of_another_repository_is_refused(hub, layouts):
    pull(REPO)
    hub.repositories["other/Tiny-Pixtral"] = layouts["mistral"]
    with pytest.raises(CheckpointError, match="holds files of mistralai/Tiny-Pixtral, not of other/Tiny"):
        pull("other/Tiny-Pixtral")


@pytest.mark.parametrize("text", ["", "[]", '{"files": {}}', '{"files": {"a": 3}}', "\0"])
def test_a_record_that_cannot_be_read_costs_only_a_hash(hub, text):
    folder = pull(REPO)
    (folder / RECORD_FILE).write_text(text)
    hub.asked.clear()
    open_checkpoint(pull(REPO))
    assert hub.fetched() == ["params.json"]


def test_a_record_cannot_have_files_elsewhere_removed(hub, tmp_path):
    folder = pull(REPO, tmp_path / "model")
    other = tmp_path / "other.txt"
    other.write_text("mine")
    record = json.loads((folder / RECORD_FILE).read_text())
    state = other.stat()
    record["files"]["../other.txt"] = {"oid": "0", "size": state.st_size, "changed": state.st_mtime_ns}
    (folder / RECORD_FILE).write_text(json.dumps(record))
    pull(REPO, folder)
    assert other.read_text() == "mine"


def test_a_file_in_the_folders_place(hub, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is a file; choose a folder with --out"):
        pull(REPO, tmp_path / "file")


def test_two_pulls_do_not_fill_one_folder(hub):
    folder = pull(REPO)
    with pull_module._lock(folder), pytest.raises(CheckpointError, match="another pull is filling"):
        pull(REPO)


# Space


Usage = namedtuple("Usage", "total used free")


def test_a_disk_that_is_too_small_is_refused_with_both_numbers(hub, monkeypatch):
    needed = sum(len(hub.repositories[REPO][name]) for name in (WEIGHTS, "params.json", "tekken.json"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, needed - 1))
    with pytest.raises(CapacityError, match=r"needs [\d.]+ kB more, but only [\d.]+ kB are free there"):
        pull(REPO)
    assert not Path("models").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, needed))
    pull(REPO)


def test_what_is_there_needs_no_space(hub, monkeypatch):
    hub.cut[WEIGHTS] = 30_000
    with pytest.raises(UnreachableError):
        pull(REPO)
    hub.cut.clear()
    parts = list(Path("models/Tiny-Pixtral").glob("*.incomplete"))
    assert len(parts) == 3
    missing = len(hub.repositories[REPO][WEIGHTS]) - 30_000
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, missing))
    open_checkpoint(pull(REPO))


# Repositories without what is needed


def test_no_tokenizer_is_said_before_the_weights_are_fetched(hub, layouts):
    hub.repositories[REPO] = {name: data for name, data in layouts["hf"].items() if name != "tekken.json"}
    with pytest.raises(
        CheckpointError, match=r"has no tekken\.json.* pull mistralai/Pixtral-12B-2409"
    ) as caught:
        pull(REPO)
    assert str(Path("models/Tiny-Pixtral")) in str(caught.value)
    assert hub.fetched() == ["config.json"] and not Path("models").exists()
    Path("models/Tiny-Pixtral").mkdir(parents=True)
    Path("models/Tiny-Pixtral/tekken.json").write_bytes(b"{}")
    open_checkpoint(pull(REPO)).tokenizer_file()


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["README.md", "pixtral-q4.gguf"], "but pixtral-q4.gguf, README.md; pull"),
        (["pytorch_model.bin", "config.json"], "but pytorch_model.bin, config.json; pull"),
        (["params.json", "model.safetensors"], "but model.safetensors, params.json; pull"),
        ([], "but no files; pull"),
        ([f"{n}.bin" for n in range(9)], "5.bin and 3 more; pull"),
        (["\x1b[31m.bin"], r"but '\\x1b[31m.bin'; pull"),
    ],
)
def test_neither_layout(hub, names, said):
    hub.repositories[REPO] = dict.fromkeys(names, b"{}")
    with pytest.raises(CheckpointError, match=r"has neither params.json with consolidated") as caught:
        pull(REPO)
    assert said.replace("\\\\", "\\") in str(caught.value)


@pytest.mark.parametrize("weights", ["model.safetensors", "gptq_model-4bit-128g.safetensors"])
def test_quantised_weights_are_for_import(hub, layouts, weights):
    config = json.loads(layouts["hf"]["config.json"]) | {"quantization_config": {"quant_method": "gptq"}}
    hub.repositories[REPO] = {"config.json": json.dumps(config).encode(), weights: bytes(9)}
    with pytest.raises(
        CheckpointError, match=r"quantised already \(GPTQ, config\.json\); .* to pixedge import"
    ):
        pull(REPO)
    assert hub.fetched() == ["config.json"] and not Path("models").exists()


def test_mistrals_quantised_weights_are_refused(hub, layouts):
    params = json.loads(layouts["mistral"]["params.json"]) | {"quantization": {"qformat_weight": "fp8_e4m3"}}
    hub.repositories[REPO]["params.json"] = json.dumps(params).encode()
    with pytest.raises(CheckpointError, match=r"quantised already .*pull the 16-bit original"):
        pull(REPO)


@pytest.mark.parametrize(("text", "said"), [(b'{"dim": 4}', "has no"), (b"[]", "must be a JSON object")])
def test_an_unsupported_architecture_is_refused_before_the_weights(hub, text, said):
    hub.repositories[REPO]["params.json"] = text
    with pytest.raises(ConfigError, match=said) as caught:
        pull(REPO)
    assert "mistralai/Tiny-Pixtral: params.json" in str(caught.value)
    assert hub.fetched() == ["params.json"]


def test_a_config_that_is_no_json(hub):
    hub.repositories[REPO]["params.json"] = b"{"
    with pytest.raises(CheckpointError, match=r"params.json of mistralai/Tiny-Pixtral is not valid JSON"):
        pull(REPO)


# Refusals and silence


def sentence(**options):
    with pytest.raises(CheckpointError) as caught:
        pull(REPO, **options)
    text = str(caught.value)
    assert TOKEN not in text and "\n" not in text and not Path("models").exists()
    return text


def test_a_gated_model_names_the_page_and_that_a_token_is_needed(hub, monkeypatch):
    hub.gated[REPO] = TOKEN
    assert sentence() == (
        f"{REPO} is gated: accept its terms at {hub.address}/{REPO} and then set HF_TOKEN or run: hf auth "
        "login, then run the same command again"
    )
    monkeypatch.setenv("HF_TOKEN", TOKEN[:-1])
    assert "with the account of the token in use" in sentence()


@pytest.mark.parametrize("place", ["environment", "login", "argument"])
def test_the_token_comes_from_the_usual_places_and_goes_to_the_hub_alone(hub, monkeypatch, tmp_path, place):
    hub.gated[REPO] = TOKEN
    if place == "environment":
        monkeypatch.setenv("HF_TOKEN", TOKEN)
    elif place == "login":
        (tmp_path / "hf-home").mkdir()
        (tmp_path / "hf-home" / "token").write_text(TOKEN + "\n")
    open_checkpoint(pull(REPO, token=TOKEN if place == "argument" else None))
    assert {asked.token for asked in hub.asked if not asked.path.startswith("/storage/")} == {TOKEN}
    assert {asked.token for asked in hub.asked if asked.path.startswith("/storage/")} == {None}


def test_no_token_is_sent_when_that_is_switched_off(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    pull(REPO)
    assert {asked.token for asked in hub.asked} == {None}


@pytest.mark.parametrize("token", ["hf_a b", "hf_\u00fc"])
def test_a_token_that_is_none_is_a_sentence(hub, token):
    assert token not in sentence(token=token)


@pytest.mark.parametrize(
    ("status", "headers", "token", "said"),
    [
        (401, {}, None, "shows no model repository mistralai/Tiny-Pixtral (401); check the name"),
        (401, {}, TOKEN, "refuses the token for mistralai/Tiny-Pixtral (401)"),
        (403, {}, TOKEN, "refuses the token for mistralai/Tiny-Pixtral (403)"),
        (
            404,
            {"X-Error-Code": "RepoNotFound"},
            None,
            "shows no model repository mistralai/Tiny-Pixtral (404)",
        ),
        (404, {}, TOKEN, "may the token in use read it?"),
        (404, {"X-Error-Code": "RevisionNotFound"}, None, "has no revision None; its branches"),
        (429, {}, None, "too many requests from here (429); try again later"),
        (500, {"X-Error-Message": TOKEN}, TOKEN, "is out of order (500); try again later"),
    ],
)
def test_refusals(hub, status, headers, token, said):
    hub.refuses = (status, headers)
    assert said in sentence(token=token)


def test_an_unknown_repository_and_revision(hub):
    hub.repositories["other/one"] = hub.repositories.pop(REPO)
    assert "shows no model repository mistralai/Tiny-Pixtral (404)" in sentence()
    hub.repositories[REPO] = hub.repositories["other/one"]
    assert f"has no revision v9; its branches, tags and commits are at {hub.address}/{REPO}" in sentence(
        revision="v9"
    )


def test_offline(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert sentence().startswith(
        "HF_HUB_OFFLINE is set, so mistralai/Tiny-Pixtral cannot be asked for; unset"
    )
    assert hub.asked == []


@pytest.mark.parametrize(
    ("endpoint", "said"),
    [
        ("https://no-such-host.invalid", "no-such-host.invalid cannot be reached (["),
        ("http://127.0.0.1:1", "127.0.0.1:1 cannot be reached ("),
        ("ftp://127.0.0.1", "HF_ENDPOINT is not the address of a hub; unset it"),
        ("nonsense", "HF_ENDPOINT is not the address of a hub; unset it"),
        ("http://[", "HF_ENDPOINT is not the address of a hub; unset it"),
        ("https://secret@", "HF_ENDPOINT is not the address of a hub; unset it"),
        ("http://me:secret@127.0.0.1:1", "127.0.0.1:1 cannot be reached ("),
    ],
)
def test_a_hub_that_is_not_there(hub, monkeypatch, endpoint, said):
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    text = sentence()
    assert said in text and "secret" not in text


def test_a_hub_that_does_not_answer(hub, monkeypatch):
    hub.delay = threading.Event()
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.1)
    assert re.fullmatch(r"127\.0\.0\.1:\d+ has not answered for 0\.1 s; check the connection.*", sentence())
    hub.delay.set()


@pytest.mark.parametrize(
    "body",
    [b"<html>Log in</html>", b"[]", b'{"siblings": 3}', b'{"sha": "main", "siblings": []}', b"{}"]
    + [
        json.dumps(
            {"sha": "0" * 40, "siblings": [{"rfilename": "a", "size": 1, "blobId": "0" * 40} | part]}
        ).encode()
        for part in (
            {"size": -1},
            {"size": True},
            {"blobId": "../x"},
            {"rfilename": 3},
            {"lfs": {"sha256": "x"}},
        )
    ],
)
def test_an_answer_that_is_no_listing(hub, body):
    hub.babbles = body
    assert "does not answer as a hub does for mistralai/Tiny-Pixtral; check HF_ENDPOINT" in sentence()


# Names


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("mistralai/Pixtral-12B-2409", True),
        ("a/b", True),
        ("mistral-community/pixtral-12b", True),
        ("models/demo", True),
        ("Pixtral-12B", False),
        ("a/b/c", False),
        ("./a", False),
        ("../a", False),
        ("/a/b", False),
        ("a/", False),
        ("a/..b", False),
        ("a/b--c", False),
        ("a/b.git", False),
        ("a b/c", False),
        ("a\\b", False),
        ("a/b\n", False),
        ("\u00e4/b", False),
        (f"a/{'b' * 95}", False),
        ("https://huggingface.co/a", False),
    ],
)
def test_what_looks_like_a_repository(text, is_one):
    assert looks_like_repository(text) is is_one


def test_docstrings():
    assert doctest.testmod(pull_module).failed == 0


def test_a_name_that_is_none_is_wrong_usage(run_pull):
    result = run_pull("Pixtral")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(
        "pixedge: Pixtral is not the name of a repository; give owner/name, such as"
    )


# The command


def test_quiet_prints_the_folder_alone(run_pull):
    result = run_pull(REPO, "--quiet", "--out", "here")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "here\n", "")
    open_checkpoint("here")


def test_the_command_says_where_and_what_is_next(run_pull, hub):
    result = run_pull(REPO, "--revision", hub.commit(REPO))
    assert result.exit_code == 0
    folder = Path("models/Tiny-Pixtral")
    first, *_, last = result.stdout.splitlines()
    assert re.fullmatch(rf"{re.escape(str(folder))}  \([\d.]+ kB\)", first)
    assert last == f"  pixedge export {folder}"
    assert [line.split()[0] for line in result.stderr.splitlines()] == ["download", "check"]
    assert "\x1b" not in result.stderr


def test_errors_are_one_line(run_pull, hub):
    hub.refuses = (503, {})
    result = run_pull(REPO)
    assert (result.exit_code, result.stdout) == (1, "")
    assert (
        result.stderr
        == f"pixedge: {hub.address.removeprefix('http://')} is out of order (503); try again later\n"
    )


def test_progress_counts_all_bytes_then_checks_them(hub):
    steps = []
    pull(REPO, progress=lambda *step: steps.append(step))
    total = sum(len(hub.repositories[REPO][name]) for name in (WEIGHTS, "params.json", "tekken.json"))
    assert {step[2] for step in steps} == {total}
    phases = [step[0] for step in steps]
    assert phases == sorted(phases, reverse=True) and set(phases) == {"download", "check"}
    for phase in ("download", "check"):
        done = [step[1] for step in steps if step[0] == phase]
        assert done == sorted(done) and done[-1] == total


def test_the_meter_shows_how_much_and_how_fast():
    now, shown = [0.0], []
    meter = Meter(lambda *step: shown.append(step), clock=lambda: now[0])
    for second in range(0, 121):
        now[0] = float(second)
        meter("download", 5_000_000_000 + second * 10_000_000, 25_000_000_000, "a")
        meter("download", 5_000_000_000 + second * 10_000_000 + 1, 25_000_000_000, "a")
    assert len(shown) == 121
    assert shown[0][3] == "5.0 GB of 25.0 GB"
    assert shown[-1][3] == "6.2 GB of 25.0 GB, 10.0 MB/s"
    meter("check", 0, 25_000_000_000, "a")
    assert shown[-1][3] == "0 B of 25.0 GB"
    now[0] += 10
    meter("check", 25_000_000_000, 25_000_000_000, "a")
    assert shown[-1][3] == "25.0 GB of 25.0 GB, 2.5 GB/s"


def test_importing_the_command_is_light():
    heavy = "huggingface_hub|httpx2|torch|filelock|rich"
    code = "import sys, re, pixedge.commands.pull; "
    code += f"print([m for m in sys.modules if re.fullmatch({heavy!r}, m)])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


# The hub on localhost


def test_the_local_hub_answers_as_huggingface_hub_expects(hub, tmp_path):
    """It must be a hub to others as well, or the tests would only show that two faults agree."""
    from huggingface_hub import HfApi, hf_hub_download

    api = HfApi(endpoint=hub.address, token=False)
    info = api.model_info(REPO, revision="main", files_metadata=True)
    sizes = {sibling.rfilename: sibling.size for sibling in info.siblings}
    assert sizes == {name: len(data) for name, data in hub.repositories[REPO].items()}
    for name in (WEIGHTS, "params.json"):
        file = hf_hub_download(REPO, name, local_dir=tmp_path / "dir", endpoint=hub.address, token=False)
        assert hashlib.sha256(Path(file).read_bytes()).digest() == (
            hashlib.sha256(hub.repositories[REPO][name]).digest()
        )


# Hubs that send without end


def bomb(megabytes):
    """Give so many megabytes of blanks, compressed to a thousandth."""
    return gzip.compress(b" " * (megabytes << 20))


@pytest.mark.parametrize("status", [200, 404, 500])
def test_an_endless_answer_is_cut(hub, monkeypatch, status):
    """Of a listing, and of the words beside a refusal: memory does not grow with what is sent."""
    monkeypatch.setattr(hub_module, "_MOST_LISTING_BYTES", 1 << 20)
    monkeypatch.setattr(hub_module.time, "sleep", lambda seconds: None)
    hub.endless = status
    said = sentence()
    assert ("sends more than 1.0 MB for the listing" if status == 200 else f"({status})") in said
    assert hub.sent < 32 << 20  # what lies in the buffers between the two


def test_a_compressed_answer_is_refused(hub):
    """It was asked for as it is; a few kilobytes can become gigabytes."""
    hub.refuses = (200, {"Content-Encoding": "gzip"})
    assert "compresses what it sends" in sentence()
    hub.refuses = None
    hub.encoding = "gzip"
    assert "compresses what it sends" in sentence()


def test_a_compressed_refusal_is_not_unpacked(hub):
    hub.endless, hub.encoding, hub.block = 403, "gzip", bomb(64)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "(403)" in sentence()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 48_000  # kB


def test_a_deep_listing_is_no_listing(hub):
    hub.babbles = b"[" * 1_000_000
    assert "does not answer as a hub does" in sentence()
