"""`tox -e gpu` runs this first: exit 1 with one line where there is no CUDA device."""

import sys

import torch

if not torch.cuda.is_available():
    sys.exit(f"tox -e gpu: no CUDA device here (torch {torch.__version__}); run it on a machine with one")
