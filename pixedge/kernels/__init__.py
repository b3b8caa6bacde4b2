"""Matrix products with quantised weights: a torch reference of each, and faster kernels held to it.

A kernel is chosen once, when a weight is loaded, because the weight is repacked for it.
"""
