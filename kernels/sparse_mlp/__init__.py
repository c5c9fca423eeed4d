"""Kernels of the sparse MLP family."""
