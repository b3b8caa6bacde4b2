"""A model repository on a hub: its listing and its files, with every failure as one sentence.

Tokens, addresses and the HTTP session are huggingface_hub's. The transfer is not: huggingface_hub deletes
what it has of a file when a download stops, and 25 GB in one file must be able to go on tomorrow.
"""

import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import quote, urlsplit

import httpx2
from huggingface_hub import constants, get_session, get_token, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]  # documented there

import pixedge
from pixedge.errors import CheckpointError
from pixedge.terminal import size

# Attempts in a row that bring no byte, and the longest wait between two of them in seconds.
_ATTEMPTS: Final = 5
_LONGEST_WAIT: Final = 8.0
# A listing of Pixtral-12B has 3 KB, and one of ten thousand files some 3 MB.
_MOST_LISTING_BYTES: Final = 16 << 20
_LISTING_SECONDS: Final = 60.0
_MOST_ERROR_BYTES: Final = 64 << 10
_ERROR_SECONDS: Final = 5.0
# What the sentences about refusals are made of.
_ERROR_HEADERS: Final = ("X-Error-Code", "X-Error-Message", "x-request-id")
_TRANSIENT: Final = frozenset({408, 429, 500, 502, 503, 504})


class UnreachableError(CheckpointError):
    """The hub could not be asked: offline, no such host, no answer in time, out of order."""


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository: its name, its bytes, and the hash that the listing promises.

    `oid` is the sha256 of a file in large file storage (64 hexadecimal digits), the git blob id of any other
    (40 digits).
    """

    name: str
    size: int
    oid: str

    def hasher(self) -> "hashlib._Hash":
        """Start the hash whose hexdigest over the file's bytes is `oid`."""
        return (
            hashlib.sha256()
            if len(self.oid) == 64
            else hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)
        )


@dataclass(frozen=True)
class Listing:
    """A repository at one commit: every file by its name."""

    commit: str
    files: Mapping[str, RemoteFile]


class Repository:
    """A model repository at one revision, asked with the token that huggingface_hub finds."""

    def __init__(self, repo_id: str, revision: str | None = None, token: str | None = None) -> None:
        """Ask nothing yet; the hub is that of HF_ENDPOINT, revision None its main branch.

        Raises CheckpointError for an endpoint that is no address and for a token that no header can hold.
        """
        self.repo_id, self.revision = repo_id, revision
        self._endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
        # What stands before an @ is a name and a password, which no message repeats.
        address = re.fullmatch(r"https?://(?:[^/@]*@)?([\w.-]+(?::\d+)?)(?:/.*)?", self._endpoint, re.ASCII)
        if address is None:
            raise CheckpointError(
                "HF_ENDPOINT is not the address of a hub; unset it, or give one such as https://huggingface.co"
            )
        self.host = address[1]
        if token is None and not constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
            token = get_token()
        if token and not re.fullmatch(r"[!-~]+", token):
            raise CheckpointError(
                "the hub's token holds a space or another character that no token has; "
                "set HF_TOKEN again, or run: hf auth login"
            )
        self._has_token = bool(token)
        # No request says more about this machine than that.
        self._headers = {"user-agent": f"pixedge/{pixedge.__version__}", "accept-encoding": "identity"}
        if token:
            self._headers["authorization"] = f"Bearer {token}"

    def listing(self) -> Listing:
        """Ask for the revision's commit and its files' names, sizes and hashes.

        Raises UnreachableError when the hub cannot be asked, CheckpointError when it refuses or its answer is
        not a listing.
        """
        revision = f"/revision/{quote(self.revision, safe='')}" if self.revision else ""
        try:
            with get_session().stream(
                "GET",
                f"{self._endpoint}/api/models/{self.repo_id}{revision}",
                params={"blobs": True},
                headers=self._headers,
                timeout=constants.HF_HUB_ETAG_TIMEOUT,
            ) as response:
                self._raise_for_status(response)
                body = _read(response, _MOST_LISTING_BYTES, _LISTING_SECONDS)
        except (httpx2.HTTPError, httpx2.InvalidURL, OfflineModeIsEnabled) as error:
            raise self._translate(error, constants.HF_HUB_ETAG_TIMEOUT) from error
        if body is None:
            raise CheckpointError(
                f"{self.host} sends more than {size(_MOST_LISTING_BYTES)} for the listing of "
                f"{self.repo_id}, or takes more than {_LISTING_SECONDS:g} s for it; check HF_ENDPOINT"
            )
        try:
            data = json.loads(body)
            files = [_remote_file(sibling) for sibling in data["siblings"]]
            commit = data["sha"]
            if not re.fullmatch(r"[0-9a-f]{40,64}", commit):
                raise ValueError(commit)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(
                f"{self.host} does not answer as a hub does for {self.repo_id}; check HF_ENDPOINT, and "
                "whether a proxy or a log-in page answers instead"
            ) from error
        return Listing(commit, MappingProxyType({file.name: file for file in files}))

    def read(self, file: RemoteFile, commit: str) -> bytes:
        """Give the contents of a small file, checked; raises as download does."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "part"
            self.download(file, commit, path)
            data = path.read_bytes()
        digest = file.hasher()
        digest.update(data)
        if digest.hexdigest() != file.oid:
            raise CheckpointError(
                f"{file.name} of {self.repo_id} arrived damaged; run the same command again"
            )
        return data

    def download(
        self, file: RemoteFile, commit: str, part: Path, progress: Callable[[int], object] | None = None
    ) -> None:
        """Append to `part` what it lacks of the file, by as many requests as it takes.

        `progress` is called with the bytes that `part` has, which may fall where the hub knows no ranges. The
        hash is not checked. Raises CheckpointError when the hub refuses, UnreachableError after five attempts
        in a row that bring nothing; what has arrived stays.
        """
        failures = 0
        while True:
            have = part.stat().st_size if part.exists() else 0
            failure: Exception | None = None
            try:
                self._append(file, commit, part, have, progress or (lambda done: None))
            except (httpx2.HTTPError, httpx2.InvalidURL, OfflineModeIsEnabled) as error:
                if not self._may_pass(error):
                    raise self._translate(error, constants.HF_HUB_DOWNLOAD_TIMEOUT) from error
                failure = error
            now = part.stat().st_size if part.exists() else 0
            if now == file.size:
                return
            failures = 0 if now > have else failures + 1
            if failures == _ATTEMPTS:
                sentence = self._translate(failure, constants.HF_HUB_DOWNLOAD_TIMEOUT)
                raise UnreachableError(
                    f"{file.name} stopped at {size(now)} of {size(file.size)}: {sentence}; what has arrived "
                    "is kept, and the same command goes on from there"
                ) from failure
            if failures:
                time.sleep(min(_LONGEST_WAIT, 2.0 ** (failures - 1)))

    def _append(
        self, file: RemoteFile, commit: str, part: Path, have: int, progress: Callable[[int], object]
    ) -> None:
        """Make one request for what lies behind the first `have` bytes."""
        if have > file.size:
            part.unlink()
            have = 0
        if have == file.size:
            part.touch()
            return
        url = hf_hub_url(self.repo_id, file.name, revision=commit, endpoint=self._endpoint)
        headers = self._headers | ({"range": f"bytes={have}-"} if have else {})
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        # A redirect to another host takes the token along no further: the session's client drops it.
        with get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
            answered = response.headers.get("content-range", "")
            if response.status_code == 416 or (
                response.status_code == 206 and not answered.startswith(f"bytes {have}-")
            ):
                # This hub's ranges are not to be trusted, so the file starts again from its first byte.
                part.unlink(missing_ok=True)
                return
            self._raise_for_status(response)
            appends = response.status_code == 206
            done = have if appends else 0
            with part.open("ab" if appends else "wb") as out:
                for chunk in response.iter_raw():
                    if done + len(chunk) > file.size:
                        raise CheckpointError(
                            f"{self.host} sends more of {file.name} than the {size(file.size)} that its "
                            "listing names; try again later"
                        )
                    out.write(chunk)
                    done += len(chunk)
                    progress(done)

    def _raise_for_status(self, response: httpx2.Response) -> None:
        """Raise what the hub's library raises for a refusal, without reading all of what comes with it.

        What is compressed is refused too: nothing was asked for in that form, and a few kilobytes of it can
        be gigabytes.
        """
        if response.is_success:
            if response.headers.get("content-encoding", "identity") != "identity":
                raise CheckpointError(
                    f"{self.host} compresses what it sends, though it was asked not to; check HF_ENDPOINT "
                    "and the proxy"
                )
            return
        body = _read(response, _MOST_ERROR_BYTES, _ERROR_SECONDS)
        headers = {name: response.headers[name] for name in _ERROR_HEADERS if name in response.headers}
        short = httpx2.Response(
            response.status_code, headers=headers, content=body or b"", request=response.request
        )
        hf_raise_for_status(short)

    def _may_pass(self, error: Exception) -> bool:
        """Tell whether the same request may succeed in a moment."""
        if isinstance(error, HfHubHTTPError):
            # A storage host's signed address runs out; the hub then gives a new one.
            return error.response.status_code in _TRANSIENT or self._is_elsewhere(error)
        return isinstance(error, httpx2.TransportError) and not isinstance(error, httpx2.UnsupportedProtocol)

    def _is_elsewhere(self, error: HfHubHTTPError) -> bool:
        return error.response.url.host != urlsplit(self._endpoint).hostname

    def _translate(self, error: Exception | None, seconds: float) -> CheckpointError:
        """Give the sentence for a request that failed; None is a connection that closed too early."""
        if isinstance(error, OfflineModeIsEnabled):
            return UnreachableError(
                f"HF_HUB_OFFLINE is set, so {self.repo_id} cannot be asked for; unset it, or give the folder "
                "of a checkpoint that is here"
            )
        if isinstance(error, HfHubHTTPError):
            return self._refusal(error)
        if isinstance(error, httpx2.TimeoutException):
            return UnreachableError(
                f"{self.host} has not answered for {seconds:g} s; check the connection and try again"
            )
        reason = f" ({error})" if error is not None and str(error) else ""
        return UnreachableError(
            f"{self.host} cannot be reached{reason}; check the connection, the proxy and HF_ENDPOINT"
        )

    def _refusal(self, error: HfHubHTTPError) -> CheckpointError:
        status, code = error.response.status_code, error.response.headers.get("X-Error-Code", "")
        page = f"{urlsplit(self._endpoint).scheme}://{self.host}/{self.repo_id}"
        log_in = "set HF_TOKEN or run: hf auth login"
        if self._is_elsewhere(error):
            return UnreachableError(
                f"the storage at {error.response.url.host} answers {status}; try again later"
            )
        if code == "GatedRepo":
            who = "with the account of the token in use" if self._has_token else f"and then {log_in}"
            return CheckpointError(
                f"{self.repo_id} is gated: accept its terms at {page} {who}, then run the same command again"
            )
        if code == "RevisionNotFound":
            return CheckpointError(
                f"{self.repo_id} has no revision {self.revision}; its branches, tags and commits are at "
                f"{page}/commits"
            )
        if status in (401, 403) and self._has_token:
            return CheckpointError(
                f"{self.host} refuses the token for {self.repo_id} ({status}): it has expired, or may not "
                f"read this repository, or there is none of this name; check the name, and {log_in}"
            )
        if status in (401, 403, 404):
            private = "may the token in use read it?" if self._has_token else log_in
            return CheckpointError(
                f"{self.host} shows no model repository {self.repo_id} ({status}); check the name, and if it "
                f"is private, {private}"
            )
        if status == 429:
            return UnreachableError(f"{self.host} has had too many requests from here (429); try again later")
        return UnreachableError(f"{self.host} is out of order ({status}); try again later")


def _read(response: httpx2.Response, most: int, seconds: float) -> bytes | None:
    """Read the body of an answer as it was sent; None where it is longer, or takes longer, than it may."""
    end, parts, length = time.monotonic() + seconds, [], 0
    for part in response.iter_raw():
        parts.append(part)
        length += len(part)
        if length > most or time.monotonic() > end:
            return None
    return b"".join(parts)


def _remote_file(sibling: Any) -> RemoteFile:
    """Read an entry of a listing; ValueError, LookupError or TypeError where it is none."""
    lfs = sibling.get("lfs") or {}
    n_bytes, oid = lfs.get("size", sibling["size"]), lfs.get("sha256") or sibling["blobId"]
    if isinstance(n_bytes, bool) or not isinstance(n_bytes, int) or n_bytes < 0:
        raise ValueError(n_bytes)
    if not re.fullmatch(r"[0-9a-f]{64}" if lfs else r"[0-9a-f]{40}", oid):
        raise ValueError(oid)
    name = sibling["rfilename"]
    if not isinstance(name, str):
        raise TypeError(name)
    return RemoteFile(name, n_bytes, oid)
