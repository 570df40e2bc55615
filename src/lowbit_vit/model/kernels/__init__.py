"""Triton kernels for the shapes of a ViT: products of 8-bit codes, and of NF4 codes, with what stands around them fused in.

Importing one of these modules imports Triton, which only Linux builds of PyTorch bring; `model.fast` does so when a kernel is
first needed.
"""
