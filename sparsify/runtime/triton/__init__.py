"""Sparse linear layers on NVIDIA GPUs, in Triton. Loads torch and Triton when a submodule is imported.

`packing` makes a packed weight, `linear` multiplies with it. docs/design/gpu-kernels.md describes both.
"""
