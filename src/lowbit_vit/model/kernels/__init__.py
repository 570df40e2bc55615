"""Triton kernels for the shapes of a ViT, one module an op: GEMMs of 8-bit codes with their epilogues, quantization, NF4, GELU.

Importing one of these modules but `coded` imports Triton, which only Linux builds of PyTorch bring; layers do so when they first run.
"""
