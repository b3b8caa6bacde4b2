"""What a server was told when it was started: names, keys, limits; nothing in it changes."""

import hashlib
import hmac
from dataclasses import dataclass, field

from pixedge.serve.media import MediaSettings


@dataclass(frozen=True)
class Keys:
    """The keys that open the server; none of them is kept, only their SHA-256."""

    digests: tuple[bytes, ...] = ()

    @classmethod
    def of(cls, *keys: str) -> "Keys":
        """Take keys as they are written in the Authorization header."""
        return cls(tuple(hashlib.sha256(key.encode()).digest() for key in keys))

    def __bool__(self) -> bool:
        """Say whether a key is wanted at all."""
        return bool(self.digests)

    def open(self, key: bytes) -> bool:
        """Say whether a key is one of these; the time it takes tells nothing about how near it is."""
        digest = hashlib.sha256(key).digest()
        return any([hmac.compare_digest(digest, each) for each in self.digests])


@dataclass(frozen=True)
class Settings:
    """A server's names, doors and limits.

    names: what "model" may say, the first being what answers are signed with. hosts: names besides addresses
    and localhost by which a server without keys may be called. origins: pages of other sites that may use the
    server. media: which pictures a request may bring. max_body: bytes of a request. max_tokens: longest
    answer that may be asked for, None being what the context holds. queue: answers that may wait beside those
    under way. waiting_bytes: held for all requests together: bodies, what was read of them, and pictures.
    body_seconds: for a whole body, pause_seconds between two pieces of it. drain_seconds: for what is under
    way when the server is told to end.
    """

    names: tuple[str, ...]
    keys: Keys = field(default_factory=Keys)
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    media: MediaSettings = field(default_factory=MediaSettings)
    max_body: int = 64 << 20
    max_tokens: int | None = None
    queue: int = 64
    waiting_bytes: int = 1 << 30
    body_seconds: float = 120.0
    pause_seconds: float = 15.0
    drain_seconds: float = 30.0
