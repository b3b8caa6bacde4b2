"""The vision encoder's kernels on the CPU: a torch reference of each, and C in bfloat16 held to it."""
