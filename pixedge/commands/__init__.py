"""The sub-commands of ``pixedge``, one a file; what is heavy is imported inside them."""
