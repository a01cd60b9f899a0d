"""The geometry of affine operators on zero-extended signals, in whole numbers.

Per spatial axis every layer here is `Down_s . K . Up_u` after padding: with `U x` the signal `x`
with `u - 1` zeros between its samples,

    y[i] = b + sum_a w[a] (U x)[s*i + d*a - before],    a = 0 .. k-1

An ordinary convolution has `u = 1`, a transposed one has `u` = its stride and `s = 1`. Knows no
tensor, file or layer name: planning is done with this module alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, reduce
from math import gcd, prod
from operator import attrgetter
from typing import Any

from convsqueeze.errors import GeometryError

LARGEST = 1 << 16
"""Samples that a kernel, a padding or a step may take on one axis. No network comes near."""
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


@dataclass(frozen=True)
class Axis:
    """One spatial axis of an operator.

    `before` and `after` are samples added around the upsampled input (negative: taken away).
    A one-tap axis has dilation 1 and an unpadded axis has mode `zeros`, whatever was asked for,
    so that axes that compute the same are equal.

    Of these follow: `extent`, the samples from the first tap to the last, both counted,
    `d*(k-1) + 1`; `slack`, `1 + before + after - extent`, on which the output size depends beside
    strides; `pads`, whether samples are added on either side; `taps`, the position of each tap
    relative to `stride * i` in the upsampled input.

    Raises GeometryError for a size, stride or dilation below one or an unknown padding mode.
    """

    kernel_size: int = 1
    stride: int = 1
    dilation: int = 1
    before: int = 0
    after: int = 0
    upsample: int = 1
    padding_mode: str = "zeros"
    extent: int = field(init=False, repr=False, compare=False)
    slack: int = field(init=False, repr=False, compare=False)
    pads: bool = field(init=False, repr=False, compare=False)
    taps: range = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("kernel_size", "stride", "dilation", "upsample"):
            if getattr(self, name) < 1:
                raise GeometryError(f"{name} is {getattr(self, name)}, at least 1 was needed")
        extent = self.dilation * (self.kernel_size - 1) + 1
        pads = self.before > 0 or self.after > 0
        for what, samples in (
            ("kernel", self.kernel_size),
            ("dilated kernel", extent),
            ("stride", self.stride),
            ("upsampling", self.upsample),
            ("padding", max(abs(self.before), abs(self.after))),
        ):
            if samples > LARGEST:
                raise GeometryError(f"a {what} of {samples:,} samples, at most {LARGEST:,} can be")
        if self.padding_mode not in PADDING_MODES:
            raise GeometryError(f"padding_mode {self.padding_mode!r} is none of {PADDING_MODES}")
        if self.kernel_size == 1:
            object.__setattr__(self, "dilation", 1)
        if not pads:
            object.__setattr__(self, "padding_mode", "zeros")
        if self.upsample > 1 and self.padding_mode != "zeros":
            raise GeometryError(
                f"padding_mode {self.padding_mode} around an upsampled signal "
                "is not one convolution"
            )
        object.__setattr__(self, "extent", extent)
        object.__setattr__(self, "slack", 1 + self.before + self.after - extent)
        object.__setattr__(self, "pads", pads)
        taps = range(-self.before, -self.before + extent, self.dilation)
        object.__setattr__(self, "taps", taps)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A pickle of an earlier version has nothing that follows from the rest."""
        self.__dict__.update(state)
        self.__post_init__()

    @property
    def is_pointwise(self) -> bool:
        """One tap on the sample itself: no padding, stride or upsampling."""
        return self.kernel_size == self.stride == self.upsample == 1 and (
            self.before == self.after == 0
        )

    def output_size(self, size: int) -> int:
        """Samples that leave for `size` samples that enter; below one where the kernel misses."""
        return (self.upsample * (size - 1) + self.slack) // self.stride + 1

    def accepts(self, size: int) -> bool:
        """Whether torch runs the layer on `size` samples: the kernel fits, the padding is legal."""
        smallest = 1
        if self.padding_mode in ("reflect", "circular"):
            smallest = max(self.before, self.after) + (self.padding_mode == "reflect")
        return size >= smallest and self.upsample * (size - 1) + self.slack >= 0


@dataclass(frozen=True)
class AxisMerge:
    """How the taps of two axes make the taps of the merged one.

    Tap `a` of the inner and `b` of the outer kernel land on tap `inner_step*a + outer_step*b` of a
    raw grid of `raw_taps`; `kept` are those that a sample can meet (all, unless the merged
    upsampling and stride share a factor). An empty `kept` means that none does: a zero tap.
    """

    axis: Axis
    inner_step: int
    outer_step: int
    raw_taps: int
    kept: range


def carries_padding(outer: Axis, inner: Axis) -> bool:
    """Whether the outer layer's own padding mode is unharmed by moving past the inner layer.

    True for any mode but zeros after a pointwise layer, and for circular after a circular layer of
    stride 1 that keeps the size. Zero padding is another question: see `border`.
    """
    if outer.padding_mode == "zeros":
        return False
    if inner.is_pointwise:
        return True
    keeps_size = inner.stride == inner.upsample == 1 and inner.slack == 0
    return outer.padding_mode == inner.padding_mode == "circular" and keeps_size


@lru_cache(maxsize=1024)
def merge_axes(outer: Axis, inner: Axis) -> AxisMerge:
    """The axis of `outer` after `inner`.

    Taps at `u2*d1*a + s1*d2*b`, stride `s1*s2`, upsampling `u1*u2`, padding `u2*p1 + s1*p2` on
    each side; common factors of stride and upsampling cancel. Where no padding mode makes the
    result exact, it keeps the one nearest to the inner layer's input.

    Raises GeometryError where the result is not one convolution.
    """
    if outer.upsample > 1 and inner.stride > 1:
        reason = "gives output sizes that no single convolution has"
        if gcd(outer.upsample, inner.stride) > 1:
            reason = "does not commute with it, so the two are not one convolution"
        raise GeometryError(
            f"an upsampling by {outer.upsample} after a stride of {inner.stride} {reason}"
        )
    if outer.upsample > 1 and inner.padding_mode != "zeros":
        raise GeometryError(
            f"{inner.padding_mode} padding before an upsampling by {outer.upsample} "
            "is not the padding of one convolution"
        )
    inner_spacing = outer.upsample * inner.dilation if inner.kernel_size > 1 else 0
    outer_spacing = inner.stride * outer.dilation if outer.kernel_size > 1 else 0
    dilation = gcd(inner_spacing, outer_spacing) or 1
    span = inner_spacing * (inner.kernel_size - 1) + outer_spacing * (outer.kernel_size - 1)
    raw_taps = span // dilation + 1
    axis, kept = _cancel(
        first=-(outer.upsample * inner.before + inner.stride * outer.before),
        spacing=dilation,
        count=raw_taps,
        upsample=inner.upsample * outer.upsample,
        stride=inner.stride * outer.stride,
        slack=outer.upsample * inner.slack + inner.stride * outer.slack,
    )
    outer_mode = outer.pads and (carries_padding(outer, inner) or not inner.pads)
    mode = outer.padding_mode if outer_mode else inner.padding_mode
    if axis.upsample > 1 and axis.pads and not inner.pads:
        mode = "zeros"
    return AxisMerge(
        axis=replace(axis, padding_mode=mode),
        inner_step=inner_spacing // dilation or 1,
        outer_step=outer_spacing // dilation or 1,
        raw_taps=raw_taps,
        kept=kept,
    )


def _cancel(
    first: int, spacing: int, count: int, upsample: int, stride: int, slack: int
) -> tuple[Axis, range]:
    """The axis with the common factor of upsampling and stride cancelled, and the taps kept.

    `Down_{gs} K Up_{gu}` reads only taps at multiples of `g`: it is `Down_s K' Up_u`.
    """
    factor = gcd(upsample, stride)
    starts = [t for t in range(min(count, factor)) if (first + spacing * t) % factor == 0]
    step = factor // gcd(spacing, factor)
    kept = range(starts[0], count, step) if starts else range(0)
    position = (first + spacing * kept.start) // factor if kept else 0
    axis = Axis(
        kernel_size=max(len(kept), 1),
        stride=stride // factor,
        dilation=max(spacing * step // factor, 1),
        before=-position,
        upsample=upsample // factor,
    )
    after = slack // factor - 1 - axis.before + axis.extent
    return replace(axis, after=after), kept


@lru_cache(maxsize=1024)
def common_axis(*axes: Axis) -> Axis:
    """The axis of a sum of parallel branches: the hull of their taps, aligned by their padding.

    Raises GeometryError where the branches step, upsample, size or pad differently.
    """
    for name, what in (("stride", "strides"), ("upsample", "upsamplings"), ("slack", "sizes")):
        values = list(map(attrgetter(name), axes))
        if len(set(values)) > 1:
            shown = "" if name == "slack" else f" ({', '.join(map(str, values))})"
            raise GeometryError(f"branches of different {what} cannot be summed{shown}")
    modes = {axis.padding_mode for axis in axes if axis.pads}
    if len(modes) > 1:
        raise GeometryError(f"branches padded by {' and '.join(sorted(modes))} are not one layer")
    first = [axis.taps[0] for axis in axes]
    low, high = min(first), max([axis.taps[-1] for axis in axes])
    spacings = [axis.dilation for axis in axes if axis.kernel_size > 1]
    dilation = gcd(high - low, *spacings, *[one - low for one in first]) or 1
    hull = Axis(
        kernel_size=(high - low) // dilation + 1,
        stride=axes[0].stride,
        dilation=dilation,
        before=-low,
        upsample=axes[0].upsample,
    )
    after = axes[0].slack - 1 - hull.before + hull.extent
    return replace(hull, after=after, padding_mode=modes.pop() if modes else "zeros")


@dataclass(frozen=True)
class Geometry:
    """Everything about an operator but its values. `axes` is empty for a linear layer."""

    in_channels: int
    out_channels: int
    axes: tuple[Axis, ...]
    groups: int = 1
    bias: bool = False
    kernel_size: tuple[int, ...] = field(init=False, repr=False, compare=False)
    weight_shape: tuple[int, ...] = field(init=False, repr=False, compare=False)
    """`(out_channels, in_channels / groups, *kernel_size)`."""

    def __post_init__(self) -> None:
        for name, channels in (("in", self.in_channels), ("out", self.out_channels)):
            if self.groups < 1 or channels % self.groups:
                raise GeometryError(
                    f"{channels} {name}put channels do not divide into groups = {self.groups}"
                )
        kernel_size = tuple(map(attrgetter("kernel_size"), self.axes))
        weight_shape = (self.out_channels, self.in_channels // self.groups, *kernel_size)
        object.__setattr__(self, "kernel_size", kernel_size)
        object.__setattr__(self, "weight_shape", weight_shape)

    @property
    def weights(self) -> int:
        """Numbers to store: the weight's and the bias's."""
        return prod(self.weight_shape) + (self.out_channels if self.bias else 0)

    @property
    def is_transposed(self) -> bool:
        return any(axis.upsample > 1 for axis in self.axes)

    def output_size(self, size: Sequence[int]) -> tuple[int, ...]:
        return tuple(map(Axis.output_size, self.axes, size))

    def accepts(self, size: Sequence[int]) -> bool:
        return all(map(Axis.accepts, self.axes, size))

    def macs(self, size: Sequence[int]) -> int:
        """Multiplications for one image of `size`; an upsampling axis is counted on its input."""
        macs = prod(self.weight_shape)
        for axis, n in zip(self.axes, size, strict=True):
            macs *= n if axis.upsample > 1 else axis.output_size(n)
        return macs


def compose(outer: Geometry, inner: Geometry) -> Geometry:
    """The geometry of `outer` after `inner`; groups are `gcd(g1, g2)`, never fewer.

    Raises GeometryError where channels, ranks or axes do not chain into one convolution.
    """
    check_chain(outer, inner)
    return Geometry(
        in_channels=inner.in_channels,
        out_channels=outer.out_channels,
        axes=tuple(map(attrgetter("axis"), map(merge_axes, outer.axes, inner.axes))),
        groups=gcd(outer.groups, inner.groups),
        bias=outer.bias or inner.bias,
    )


def check_chain(outer: Geometry, inner: Geometry) -> None:
    """Raises GeometryError unless `outer` can follow `inner` in one operator."""
    if len(outer.axes) != len(inner.axes):
        raise GeometryError(
            f"a {len(outer.axes)}-d layer cannot follow a {len(inner.axes)}-d layer"
        )
    if outer.in_channels != inner.out_channels:
        raise GeometryError(
            f"{inner.out_channels} channels leave the first layer, "
            f"but {outer.in_channels} enter the second"
        )
    if inner.bias and outer.is_transposed:
        raise GeometryError(
            "a transposed layer after a biased layer leaves a bias that depends on the output "
            "phase, which no convolution has"
        )


def add(*branches: Geometry) -> Geometry:
    """The geometry of the sum of parallel branches.

    Raises GeometryError where their channels or axes do not agree.
    """
    return reduce(_add, branches)


def _add(left: Geometry, right: Geometry) -> Geometry:
    for name in ("in_channels", "out_channels"):
        counts = getattr(left, name), getattr(right, name)
        if counts[0] != counts[1]:
            raise GeometryError(f"branches with {counts[0]} and {counts[1]} {name} have no sum")
    if len(left.axes) != len(right.axes):
        raise GeometryError(
            f"a {len(left.axes)}-d and a {len(right.axes)}-d branch cannot be summed"
        )
    return Geometry(
        in_channels=left.in_channels,
        out_channels=left.out_channels,
        axes=tuple(map(common_axis, left.axes, right.axes)),
        groups=gcd(left.groups, right.groups),
        bias=left.bias or right.bias,
    )
