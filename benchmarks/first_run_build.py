"""Build the CPU kernels in place by the compiler alone: older setuptools refuse pyproject.toml.

python benchmarks/first_run_build.py
"""

import ast
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KERNELS = ROOT / "pixedge" / "kernels"


def flags() -> list[str]:
    """Read setup.py's flags, without running it."""
    for node in ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "FLAGS":
            return [str(each) for each in ast.literal_eval(node.value)]
    raise AssertionError("setup.py has no FLAGS")


def main() -> None:
    """Compile, unless the library is there and newer than its sources."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if sys.platform == "win32" or compiler is None:
        sys.exit("no C compiler of Unix is there, so the CPU kernels are not built and torch serves")
    out = KERNELS / "cpu" / f"_cpu{sysconfig.get_config_var('EXT_SUFFIX')}"
    files = [file for name in ("cpu", "vision") for file in sorted((KERNELS / name).glob("*.[ch]"))]
    if out.exists() and out.stat().st_mtime >= max(file.stat().st_mtime for file in files):
        print("built before")
        return
    sources = [str(file) for file in files if file.suffix == ".c"]
    unfinished = out.with_suffix(".unfinished")
    subprocess.run([compiler, "-shared", "-fPIC", *flags(), "-o", unfinished, *sources, "-lm"], check=True)
    os.replace(unfinished, out)
    print("built")


if __name__ == "__main__":
    main()
