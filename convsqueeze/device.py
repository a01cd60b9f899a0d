"""Which device computes, whether torch has it, and how it has to compute.

Knows torch and names of devices; nothing of layers or files. What is stored is read, rounded and
written on the CPU: a device holds one merge's values in float64 while they are made or looked at.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from convsqueeze.errors import DeviceError

CPU = torch.device("cpu")
Device = str | torch.device
"""As a user names it; see `device_named`."""
_CUDA = re.compile(r"cuda(?::(\d{1,3}))?")


def device_named(name: Device) -> torch.device:
    """`cpu`, `cuda` or `cuda:N`, with a number where it is a GPU.

    Raises DeviceError for any other, and where torch has no such device or cannot compute there.
    """
    text = str(name)
    if text == "cpu":
        return CPU
    found = _CUDA.fullmatch(text)
    if found is None:
        raise DeviceError(text, "cpu, cuda or cuda:N was needed, which compute in float64")
    if not torch.cuda.is_available():
        if torch.version.cuda is None and torch.version.hip is None:
            reason = f"this torch ({torch.__version__}) has no CUDA"
            raise DeviceError(text, reason, "install a torch build with CUDA")
        reason = f"this torch ({torch.__version__}) finds no GPU"
        raise DeviceError(text, reason, "check its driver (nvidia-smi)")
    count = torch.cuda.device_count()
    index = int(found[1]) if found[1] is not None else torch.cuda.current_device()
    if index >= count:
        there = "cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        raise DeviceError(text, f"this machine has {there}", "name one that is there")
    device = torch.device("cuda", index)
    try:
        with computing_on(device):
            _try_out(device)
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        advice = "install a torch build that fits this GPU and its driver"
        raise DeviceError(text, f"torch cannot compute there ({reason})", advice) from error
    return device


def _try_out(device: torch.device) -> None:
    """One product in float64: some GPUs are there that this torch has no code for."""
    two = torch.full((2, 2), 2.0, dtype=torch.float64).to(device)
    if (two @ two).cpu().tolist() != [[8.0, 8.0], [8.0, 8.0]]:
        raise RuntimeError("2 * 2 + 2 * 2 is not 8 there")


@contextmanager
def summing_directly(device: torch.device) -> Iterator[None]:
    """What runs inside adds up products as they are, in some order: what every error bound takes
    for granted.

    Of cuDNN's algorithms, which torch chooses by their speed, some go through a transform (FFT,
    Winograd) and lose a share of the largest output instead of each output's own. Without cuDNN
    torch convolves by products of matrices. All of it is float64, which TF32 does not touch.
    """
    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = before and device.type == "cpu"
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = before


@contextmanager
def computing_on(device: torch.device) -> Iterator[None]:
    """Around a merge or its verification. Raises DeviceError where the device's memory is full;
    torch's first sentences say how much was asked for.
    """
    try:
        with summing_directly(device):
            yield
    except torch.OutOfMemoryError as error:
        said = str(error).strip().partition("\n")[0].partition(" If reserved")[0].rstrip(".")
        raise DeviceError(
            str(device), f"its memory is full ({said})", "free some of it, or use a larger GPU"
        ) from error
