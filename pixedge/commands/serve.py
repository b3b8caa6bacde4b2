"""``pixedge serve``: the model behind an API like OpenAI's, and a page."""

import contextlib
import math
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pixedge.commands import option_values
from pixedge.commands.model_options import ModelOptions, model_options
from pixedge.errors import UsageError
from pixedge.small_file import read_small_file
from pixedge.terminal import note, progress

if TYPE_CHECKING:
    from pixedge.serve.settings import Keys

_EXAMPLES = """\
\b
Examples:
  pixedge serve                                  http://127.0.0.1:8000, for this machine only
  pixedge serve --host 0.0.0.0 --api-key-file keys.txt --tls-cert cert.pem --tls-key key.pem
  curl http://127.0.0.1:8000/v1/models
"""


def _port(ctx: click.Context, param: click.Parameter, value: int) -> int:
    if not 0 <= value <= 65535:
        raise click.BadParameter(f"{value} is not a port; give 0 to 65535", ctx, param)
    return value


def _not_below_0(ctx: click.Context, param: click.Parameter, value: float) -> float:
    if not 0 <= value < math.inf:
        raise click.BadParameter(f"{value} is not allowed; give 0 or more", ctx, param)
    return value


@click.command(epilog=_EXAMPLES, short_help="Answer over HTTP, as OpenAI's API does.")
@click.option("--host", default="127.0.0.1", metavar="ADDRESS", help="Where to listen [127.0.0.1].")
@click.option("--port", type=int, callback=_port, default=8000, metavar="N", help="0 takes any [8000].")
@click.option("--api-key-file", metavar="FILE", help="A key on each line [$PIXEDGE_API_KEY, else none].")
@click.option("--insecure", is_flag=True, help="Let other machines in without a key.")
@click.option("--tls-cert", metavar="FILE", help="Certificate with its chain, in PEM [no TLS].")
@click.option("--tls-key", metavar="FILE", help="Its key, in PEM [in --tls-cert].")
@click.option("--cors", "origins", metavar="ORIGIN", multiple=True, help="Let pages of ORIGIN in [none].")
@click.option("--name", "hosts", metavar="NAME", multiple=True, help="A name the server goes by [none].")
@click.option(
    "--model-name",
    "names",
    metavar="NAME",
    multiple=True,
    help="What requests call the model [the folder's].",
)
@click.option(
    "--allow-host", "allow_hosts", metavar="HOST", multiple=True, help="Fetch pictures from HOST [none]."
)
@click.option("--media-dir", metavar="DIR", help="Read pictures at file: URLs below DIR [none].")
@click.option(
    "--max-requests",
    type=int,
    callback=option_values.count,
    default=16,
    metavar="N",
    help="Answers under way at a time [16].",
)
@click.option(
    "--queue", type=int, callback=_not_below_0, default=64, metavar="N", help="Answers that may wait [64]."
)
@click.option(
    "--max-tokens",
    type=int,
    callback=option_values.count,
    metavar="N",
    help="Longest answer, in tokens [what fits].",
)
@click.option(
    "--max-body",
    type=int,
    callback=option_values.count,
    default=64,
    metavar="MIB",
    help="Largest request [64].",
)
@click.option(
    "--max-images",
    type=int,
    callback=option_values.count,
    default=64,
    metavar="N",
    help="Pictures of one request [64].",
)
@click.option(
    "--drain",
    type=float,
    callback=_not_below_0,
    default=30.0,
    metavar="S",
    help="Time to end answers in [30].",
)
@model_options
@click.option("--quiet", is_flag=True, help="No progress, only warnings and errors.")
def serve(
    options: ModelOptions,
    host: str,
    port: int,
    api_key_file: str | None,
    insecure: bool,
    tls_cert: str | None,
    tls_key: str | None,
    origins: tuple[str, ...],
    hosts: tuple[str, ...],
    names: tuple[str, ...],
    allow_hosts: tuple[str, ...],
    media_dir: str | None,
    max_requests: int,
    queue: int,
    max_tokens: int | None,
    max_body: int,
    max_images: int,
    drain: float,
    quiet: bool,
) -> None:
    """Serve a model at /v1/chat/completions, and a page at /, until Ctrl-C or SIGTERM."""
    folder = options.find(quiet)

    from pixedge.artifact import open_artifact
    from pixedge.serve import server
    from pixedge.serve.media import SERVER_LIMITS, AllowedHost, MediaSettings
    from pixedge.serve.settings import Settings

    keys = _keys(api_key_file)
    if tls_key is not None and tls_cert is None:
        raise UsageError("--tls-key is given without --tls-cert; give both")
    tls = server.tls_context(Path(tls_cert), Path(tls_key) if tls_key else None) if tls_cert else None
    for origin in origins:
        if re.fullmatch(r"https?://[^/?#*@\s]+", origin) is None:
            raise UsageError(f"--cors {origin} is not an origin; give one such as https://example.com")
    media = MediaSettings(
        hosts=tuple(map(AllowedHost.parse, allow_hosts)),
        folder=Path(media_dir) if media_dir is not None else None,
        limits=replace(SERVER_LIMITS, max_images=max_images),
    )
    source = str(open_artifact(folder).manifest["source"]["name"])
    settings = Settings(
        names=tuple(dict.fromkeys([*names, folder.resolve().name, source])),
        keys=keys,
        hosts=(*hosts, host),
        origins=origins,
        media=media,
        max_body=max_body << 20,
        max_tokens=max_tokens,
        queue=queue,
        drain_seconds=drain,
    )
    sock = server.listen(host, port)
    with contextlib.closing(sock):
        if not (server.is_loopback(sock) or keys or insecure):
            raise UsageError(
                f"--host {host} lets other machines in, and there is no key; set PIXEDGE_API_KEY, give "
                "--api-key-file, or --insecure to let everybody in"
            )
        if keys and tls is None and not server.is_loopback(sock):
            note("keys and pictures go over the network as they are; give --tls-cert to have them encrypted")
        with progress(quiet=quiet) as report:
            loaded = options.load(folder, report, max_requests=max_requests)
        url = server.address(sock, tls=tls is not None)
        code = server.serve(loaded, settings, sock, tls, started=lambda: note(f"serving {folder} at {url}"))
    raise click.exceptions.Exit(code)


def _keys(file: str | None) -> "Keys":
    from pixedge.serve.settings import Keys

    if file is None:
        key = os.environ.get("PIXEDGE_API_KEY", "").strip()
        found, origin = ([key] if key else []), "PIXEDGE_API_KEY"
    else:
        origin = file
        try:
            lines = read_small_file(Path(file)).decode("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UsageError(f"--api-key-file {file} cannot be read ({reason}); give a text file") from None
        found = [line.strip() for line in lines if line.strip()]
        if not found:
            raise UsageError(f"--api-key-file {file} holds no key; write one on each line")
    for key in found:
        if not (key.isascii() and key.isprintable() and " " not in key):
            raise UsageError(
                f"a key in {origin} has spaces or characters other than ASCII; use letters and digits"
            )
    return Keys.of(*found)
