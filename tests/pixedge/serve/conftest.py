"""What tests of the server share."""

import pytest

from tests.browser import Visitor, started_browser
from tests.serving import Process
from tests.small_exports import small_export


@pytest.fixture(scope="session")
def small_server(tmp_path_factory):
    """The URL of a server process of the small random model, whose answers go on until they are cut."""
    base = tmp_path_factory.getbasetemp()
    with Process(base, "--model", small_export(base), "--device", "cpu", PIXEDGE_API_KEY="") as process:
        yield process.url
        assert process.end() == 0
        assert not any("Traceback" in line for line in process.said)


@pytest.fixture(scope="module")
def browser():
    with started_browser() as browser:
        yield browser


@pytest.fixture
def visit(browser, small_server):
    visitor = Visitor(browser, small_server)
    yield visitor
    visitor.leave()
