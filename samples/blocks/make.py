"""Write the three small checkpoints of this folder: random weights, real names and geometry.

python samples/blocks/make.py
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

HERE = Path(__file__).parent


class RepVGGBlock(nn.Module):
    """A 3x3 branch, a 1x1 branch and an identity branch, each with its norm, then ReLU.

    Ding et al., "RepVGG: Making VGG-style ConvNets Great Again", CVPR 2021.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.rbr_dense = self._branch(channels, 3)
        self.rbr_1x1 = self._branch(channels, 1)
        self.rbr_identity = nn.BatchNorm2d(channels)
        self.nonlinearity = nn.ReLU()

    @staticmethod
    def _branch(channels: int, kernel_size: int) -> nn.Sequential:
        branch = nn.Sequential()
        conv = nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2, bias=False)
        branch.add_module("conv", conv)
        branch.add_module("bn", nn.BatchNorm2d(channels))
        return branch

    def forward(self, x: Tensor) -> Tensor:
        return self.nonlinearity(self.rbr_dense(x) + self.rbr_1x1(x) + self.rbr_identity(x))


class ConvNextStem(nn.Module):
    """The overlapping stem of timm's ConvNeXt `*_ols`: two strided 3x3 convolutions in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 24, 3, stride=2, padding=1), nn.Conv2d(24, 40, 3, stride=2, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.stem(x)


class LoConConv(nn.Module):
    """A convolution with a low-rank adapter beside it: `base(x) + alpha / r * up(down(x))`."""

    def __init__(self, channels: int, rank: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.lora_down = nn.Conv2d(channels, rank, 3, padding=1, bias=False)
        self.lora_up = nn.Conv2d(rank, channels, 1, bias=False)
        self.register_buffer("alpha", torch.tensor(4.0))
        self.rank = rank

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.alpha / self.rank * self.lora_up(self.lora_down(x))


def with_lived_in_norms(module: nn.Module) -> nn.Module:
    """The module with norms that look trained, not freshly made."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.weight, 1.0, 0.2)
            nn.init.normal_(norm.bias, 0.0, 0.2)
            nn.init.normal_(norm.running_mean, 0.0, 0.3)
            nn.init.uniform_(norm.running_var, 0.3, 2.0)
    return module.eval()


def main() -> None:
    """Write repvgg.pt, convnext_ols_stem.safetensors and locon.safetensors."""
    torch.manual_seed(0)
    repvgg = nn.ModuleDict({"stage1": nn.Sequential(*(RepVGGBlock(16) for _ in range(2)))})
    torch.save({"state_dict": with_lived_in_norms(repvgg).state_dict()}, HERE / "repvgg.pt")
    save_file(ConvNextStem().state_dict(), HERE / "convnext_ols_stem.safetensors")
    save_file(LoConConv(32, 8).state_dict(), HERE / "locon.safetensors")


if __name__ == "__main__":
    main()
