"""Networks that no plain convolution can replace, made exact at every pixel: from file to file.

All in float64, where nothing but the noise of sums is left between a network and its merge.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from convsqueeze import SqueezedConv, load_layers
from convsqueeze.manifest import Border
from convsqueeze.pipeline import verify_files
from convsqueeze.verify import Report

from .pipeline import image, in_double, squeezed_file
from .refused import REFUSED
from .rows import Linear, Row, Size, network_of

FLOAT64_LOSS = 1e-13
"""What sums of some thousand products may lose, of the largest output; far below any real error."""


@dataclass(frozen=True, eq=False)
class FromFile:
    """The layers that a squeezed file gives, and what verifying it said, if that was asked."""

    layers: Mapping[str, SqueezedConv]
    report: Report | None = None

    @property
    def weights(self) -> int:
        """Numbers that the layers store."""
        states = [layer.state_dict() for layer in self.layers.values()]
        return sum(tensor.numel() for state in states for tensor in state.values())


@cache
def from_file(row: Row, border: Border, *, verify: bool = False) -> FromFile:
    """The row's network written in float64, merged into a second file, that verified and read."""
    with tempfile.TemporaryDirectory() as folder:
        original, squeezed = Path(folder) / "model.pt", Path(folder) / "squeezed.pt"
        torch.save(in_double(network_of(row)).state_dict(), original)
        squeezed_file(original, row.manifest, squeezed, border=border, growth="allow")
        report = verify_files(original, squeezed) if verify else None
        return FromFile(load_layers(squeezed), report)


def relative_errors(linear: Linear, layer: SqueezedConv, x: Tensor) -> Tensor:
    """At each pixel the largest difference of any channel, as a share of the largest output."""
    with torch.no_grad():
        expected, actual = linear(x), layer(x)
    if expected.shape != actual.shape:
        raise ValueError(f"{tuple(actual.shape)} where {tuple(expected.shape)} was needed")
    return ((actual - expected).abs() / expected.abs().max()).flatten(0, 1).amax(0)


@cache
def errors_of(row: Row, border: Border) -> Mapping[Size, Tensor]:
    """At each size of the row, `relative_errors` of its one layer under a policy."""
    network = in_double(network_of(row))
    ((into, layer),) = from_file(row, border).layers.items()
    linear, channels = row.part(network, into), layer.geometry.in_channels
    return {size: relative_errors(linear, layer, image(channels, size)) for size in row.sizes}


def _line(row: Row) -> str:
    """A row with its published channels; verified with few where it is so given."""
    full = row.full
    assert full.refusal is not None
    error = max(float(errors.max()) for errors in errors_of(full, "corrected").values())
    at = full.refusal.at
    plain = errors_of(full, "interior")[at]
    wrong = float((plain > FLOAT64_LOSS).double().mean())
    size = "x".join(map(str, at))
    report = from_file(row, "corrected", verify=True).report
    assert report is not None
    few = "" if full is row else " with few channels"
    weights = [from_file(full, border).weights for border in ("interior", "corrected")]
    return (
        f"| {row.network} | {full.before:,} | {weights[0]:,} | {weights[1]:,} | {row.form} "
        f"| {error:.1e} | {wrong:.0%} of pixels at {size}, by up to {float(plain.max()):.0%} "
        f"| {'yes' if report.ok else 'NO'}{few} |"
    )


def corrected_lines(rows: Sequence[Row] = REFUSED) -> list[str]:
    """The table of `border: corrected` in Markdown, errors relative to the largest output."""
    return [
        "| network | weights | plain | corrected | at the border | largest error "
        "| plain gets wrong | verified |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *map(_line, rows),
    ]
