"""The primitives as Triton kernels, for CUDA tensors."""
