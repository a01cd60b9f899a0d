"""Values for an untrained network that hide no mistake: none is zero, one or equal to another.

Norms get means, variances and shifts of their own, and every fifth variance is zero, as it is in
trained networks with dead channels.
"""

from typing import TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)

CONSTANTS = ("mask", "alpha", "num_batches_tracked")
"""What a published network does not train: `filled` leaves it as its module made it."""


def filled(network: Network, seed: int = 0) -> Network:
    """`network` in eval mode, every trained tensor drawn anew from `seed`, in place."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        leaf = name.rpartition(".")[2]
        if leaf not in CONSTANTS:
            tensor.copy_(_drawn(leaf, tensor, generator))
    return network.eval()


def _drawn(leaf: str, like: Tensor, generator: torch.Generator) -> Tensor:
    normal = torch.randn(like.shape, generator=generator)
    if leaf == "running_var":
        normal = normal.abs() + 0.1
        normal[::5] = 0.0
        return normal
    if like.ndim <= 1:
        return 1.0 + 0.4 * normal if leaf == "weight" else 0.5 * normal
    return normal / max(like[0].numel(), 1) ** 0.5
