"""Merge every published network and print what came of it: `python -m tests.networks`."""

import torch

from .corrected import corrected_lines
from .table import lines

if __name__ == "__main__":
    torch.set_num_threads(1)
    print("\n".join([*lines(), "", *corrected_lines()]))
