"""The CPU kernels in C: built when the package is installed, loaded through ctypes, chosen by the CPU."""
