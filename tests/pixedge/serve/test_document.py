"""docs/serve.md names every field, address and metric that there is."""

import re

import httpx
import pytest

import pixedge
from pixedge.serve import chat_request
from tests.exported_demo import ROOT
from tests.serving import serving
from tests.small_exports import small_export

TEXT = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")
NAMES = set(re.findall(r"`([^`\n]+)`", TEXT))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(pixedge.load(small_export(tmp_path_factory.getbasetemp()), device="cpu")) as server:
        yield server


def test_fields(server):
    described = httpx.get(f"{server.url}/openapi.json").json()["components"]["schemas"]["ChatRequest"]
    fields = {*described["properties"], *chat_request.IGNORED, *chat_request.NEUTRAL} - {"model"}
    assert fields <= NAMES
    assert "`model` is the folder's name" in TEXT


def test_addresses(server):
    described = httpx.get(f"{server.url}/openapi.json").json()["paths"]
    for path, methods in described.items():
        for method in methods:
            spelled = path.replace("{name}", "NAME")
            assert f"`{method.upper()} {spelled}`" in TEXT or f"`{spelled}`" in TEXT


def test_metrics(server):
    text = httpx.get(f"{server.url}/metrics").text
    found = set(re.findall(r"^(pixedge_\w+?)(?:_bucket|_sum|_count)?[ {]", text, re.MULTILINE))
    documented = {name.partition("{")[0] for name in NAMES if name.startswith("pixedge_")}
    assert found == documented
