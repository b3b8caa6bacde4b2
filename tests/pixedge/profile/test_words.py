"""Figures as they are written: the docstrings' examples."""

import doctest

import pytest

from pixedge import plots
from pixedge.profile import words


@pytest.mark.parametrize("module", [words, plots], ids=["words", "plots"])
def test_examples(module):
    failed, tried = doctest.testmod(module)
    assert tried and not failed
