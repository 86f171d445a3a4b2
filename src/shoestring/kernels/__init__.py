"""C++ kernels for CPUs, compiled at first use where there is a compiler; each has a plain-torch twin."""
