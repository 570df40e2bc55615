"""Levels 1 to 3: attention kernels, the ViT, plans -> low-bit layers, adapters, checkpoints, execution."""
