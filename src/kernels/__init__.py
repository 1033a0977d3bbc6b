"""Kernels of our own for the CPU, in C++: `operators.py` makes MindSpore operators of them, `build.py` compiles them.

MindSpore hands oneDNN plain NCHW tensors, for which oneDNN has a matrix product of AVX2's width at best. These kernels
work on NHWC with all the vector registers that the processor has, and an update of the weights is one pass over them.
"""
