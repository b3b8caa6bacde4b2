"""What is measured where nobody says, and the cache that it needs."""

import pytest

from pixedge.known_shapes import DEMO, PIXTRAL_12B
from pixedge.profile.settings import TOKENS, Settings


def test_pixtral():
    settings = Settings()
    assert settings.prompts_of(131_072) == (128, 512, 2048)
    assert settings.depths_of(131_072) == (0, 1024, 4096)
    assert settings.sides_of(PIXTRAL_12B) == (512, 1024)
    assert settings.cache_tokens(PIXTRAL_12B, []) == 8192


def test_a_small_model_gets_smaller_rows():
    settings = Settings()
    assert settings.depths_of(4096) == (0, 512, 2048)
    assert settings.prompts_of(600) == (128, 512)
    assert settings.sides_of(DEMO) == (128, 256)
    assert settings.cache_tokens(DEMO, []) == 4096


@pytest.mark.parametrize("room", [160, 200, 1000, 4224, 4225, 131_072])
def test_the_deepest_row_has_room(room):
    *_, deep = Settings().depths_of(room)
    assert deep + TOKENS < room


def test_the_cache_grows_with_what_is_asked():
    assert Settings(depths=(0, 30_000)).cache_tokens(PIXTRAL_12B, []) > 30_000 + TOKENS
    assert Settings(prompts=(20_000,)).cache_tokens(PIXTRAL_12B, []) > 20_000
    # four questions at a time about three pictures of 64 x 64 patches each
    assert Settings().cache_tokens(PIXTRAL_12B, [(1024, 1024)] * 3) > 4 * 3 * 65 * 64
    assert Settings(depths=(10**9,)).cache_tokens(PIXTRAL_12B, []) == 131_072
