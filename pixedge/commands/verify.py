"""``pixedge verify``: whether an exported folder is whole, and still answers as it should."""

from pathlib import Path

import click

from pixedge.commands import option_values
from pixedge.errors import ArtifactError
from pixedge.terminal import progress, show, show_json


@click.command(short_help="Check an exported folder.")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: folder, ok, checks.")
@click.option(
    "--device",
    callback=option_values.device,
    default="auto",
    metavar="D",
    help="auto, cpu, cuda or cuda:N [auto].",
)
@click.option(
    "--threads", type=int, callback=option_values.count, metavar="N", help="CPU threads [all cores]."
)
@click.option("--quiet", is_flag=True, help="No progress.")
def verify(folder: Path, as_json: bool, device: str, threads: int | None, quiet: bool) -> None:
    """Check the exported folder DIR: files and hashes, tensor shapes, a known picture's answer.

    Prints a line for each check. Exits with 1 when one fails.
    """
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is not a folder; give one that pixedge export made")
    from pixedge.verify import verify_artifact

    with progress(quiet=quiet) as report:
        checks = verify_artifact(folder, report, device=device, threads=threads)
    ok = all(check.ok for check in checks)
    if as_json:
        rows = [{"name": check.name, "ok": check.ok, "detail": check.detail} for check in checks]
        show_json({"folder": str(folder), "ok": ok, "checks": rows})
    else:
        width = max((len(check.name) for check in checks), default=0)
        for check in checks:
            state = "ok" if check.ok else "failed"
            show(f"{state:<6}  {check.name:<{width}}  {check.detail}".rstrip())
    if not ok:
        raise click.exceptions.Exit(1)
