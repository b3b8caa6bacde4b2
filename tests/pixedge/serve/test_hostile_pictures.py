"""Text questions beside pictures that keep every process busy which decodes pictures."""

import numpy as np
import pytest

from tests.exported_demo import exported_demo
from tests.hostile_pictures import measure


@pytest.mark.slow
def test_text_does_not_wait_for_pictures(tmp_path_factory):
    """Two readers once served everybody, and a picture of 50 KB held one of them for 14 s."""
    base = tmp_path_factory.getbasetemp()
    _, beside, done = measure(exported_demo(base), base, questions=100)
    assert np.percentile(beside, 99) < 1.0
    assert {*done} <= {200, 400, 503}
