"""One thread a test process: small operators on shared cores are many times slower with more."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)
