"""What tests of the server share."""

import pytest

from tests.served import served
from tests.small_exports import small_export


@pytest.fixture(scope="session")
def small_server(tmp_path_factory):
    """The URL of a server process of the small random model, whose answers go on until they are cut."""
    base = tmp_path_factory.getbasetemp()
    with served(base, small_export(base), "--quiet") as url:
        yield url
