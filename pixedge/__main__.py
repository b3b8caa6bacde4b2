"""``python -m pixedge`` does what the ``pixedge`` command does."""

from pixedge.cli import main

main()
