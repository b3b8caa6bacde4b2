"""Pictures' embeddings, kept in bounded bytes so that a second question about a picture encodes nothing."""

from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor

from pixedge.request import Picture


class PictureCache:
    """Embeddings by the hash of the pixels; those unused for longest go first."""

    def __init__(self, encode: Callable[[Picture], Tensor], limit: int) -> None:
        """Hold at most ``limit`` bytes of what ``encode`` returns: embeddings [patches, dim]."""
        self._encode = encode
        self._limit = limit
        self._embeddings: OrderedDict[bytes, Tensor] = OrderedDict()
        self.held = 0
        """Bytes held."""

    def get(self, picture: Picture) -> Tensor | None:
        """Return a picture's embeddings if they are held; this counts as a use."""
        found = self._embeddings.get(picture.hash)
        if found is not None:
            self._embeddings.move_to_end(picture.hash)
        return found

    def encode(self, picture: Picture) -> Tensor:
        """Encode a picture, and hold its embeddings unless they alone are more than the limit."""
        embeddings = self._encode(picture)
        assert len(embeddings) == len(picture.places), (
            f"{len(picture.places)} [IMG] ids, {len(embeddings)} embeddings"
        )
        if embeddings.nbytes <= self._limit and picture.hash not in self._embeddings:
            self._embeddings[picture.hash] = embeddings
            self.held += embeddings.nbytes
            while self.held > self._limit:
                self.held -= self._embeddings.popitem(last=False)[1].nbytes
        return embeddings
