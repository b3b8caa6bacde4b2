"""``pixedge doctor``: what of an installation works, what does not, and what to do about it.

finding      a check's result: green, yellow or red, and one line of advice
nvml         NVIDIA's cards as their driver tells of them, without torch
machine      Python, CPU, memory, compiler, disk, cards
packages     which packages are installed, and whether they fit together
libraries    torch, CUDA, ONNX Runtime as they really load
cpu_proofs   each CPU kernel against its reference
gpu_proofs   each GPU kernel against its reference
models       which exported folders there are, and what they compute
examination  all of these, each on its own, so that one that fails or crashes takes no other along
"""
