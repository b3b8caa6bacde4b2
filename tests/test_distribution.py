"""What is installed is all there is: a package that pyproject.toml forgets works from a checkout only."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]


def test_every_package_is_installed():
    homes = {"pixedge": ROOT / "pixedge", "pixedge_export": ROOT / "export" / "pixedge_export"}
    found = {
        ".".join((name, *file.parent.relative_to(home).parts))
        for name, home in homes.items()
        for file in home.rglob("*.py")
    }
    assert set(SETTINGS["packages"]) == found


def test_every_file_beside_the_code_is_installed():
    listed = {
        file
        for name, patterns in SETTINGS["package-data"].items()
        for pattern in patterns
        for file in ROOT.joinpath(*name.split(".")).glob(pattern)
    }
    sources = {".py", ".pyc", ".c", ".h", ".so"}
    assert {file for file in (ROOT / "pixedge").rglob("*.*") if file.suffix not in sources} == listed
