"""What holds for all tests."""

from hypothesis import settings

# Examples are bounded by number: on a busy machine one example may take any time.
settings.register_profile("pixedge", deadline=None, print_blob=True)
settings.load_profile("pixedge")
