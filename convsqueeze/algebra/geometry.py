"""The geometry of affine operators on zero-extended signals, in whole numbers.

Per spatial axis every layer here is `Down_s . K . Up_u` after padding: with `U x` the signal `x`
with `u - 1` zeros between its samples,

    y[i] = b + sum_a w[a] (U x)[s*i + d*a - before],    a = 0 .. k-1

An ordinary convolution has `u = 1`, a transposed one has `u` = its stride and `s = 1`. Knows no
tensor, file or layer name: planning is done with this module alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, reduce
from math import gcd, prod

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

    Raises GeometryError for a size, stride or dilation below one or an unknown padding mode.
    """

    kernel_size: int = 1
    stride: int = 1
    dilation: int = 1
    before: int = 0
    after: int = 0
    upsample: int = 1
    padding_mode: str = "zeros"

    def __post_init__(self) -> None:
        for field in ("kernel_size", "stride", "dilation", "upsample"):
            if getattr(self, field) < 1:
                raise GeometryError(f"{field} is {getattr(self, field)}, at least 1 was needed")
        for what, samples in (
            ("kernel", self.kernel_size),
            ("dilated kernel", self.extent),
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
        if not self.pads:
            object.__setattr__(self, "padding_mode", "zeros")
        if self.upsample > 1 and self.padding_mode != "zeros":
            raise GeometryError(
                f"padding_mode {self.padding_mode} around an upsampled signal "
                "is not one convolution"
            )

    @property
    def extent(self) -> int:
        """Samples from the first tap to the last, both counted: `d*(k-1) + 1`."""
        return self.dilation * (self.kernel_size - 1) + 1

    @property
    def slack(self) -> int:
        """`1 + before + after - extent`: what the output size depends on beside strides."""
        return 1 + self.before + self.after - self.extent

    @property
    def pads(self) -> bool:
        """Whether samples are added on either side."""
        return self.before > 0 or self.after > 0

    @property
    def is_pointwise(self) -> bool:
        """One tap on the sample itself: no padding, stride or upsampling."""
        return self.kernel_size == self.stride == self.upsample == 1 and (
            self.before == self.after == 0
        )

    @property
    def taps(self) -> range:
        """Position of each tap relative to `stride * i` in the upsampled input."""
        return range(-self.before, -self.before + self.extent, self.dilation)

    def output_size(self, size: int) -> int:
        """Samples that leave for `size` samples that enter; below one where the kernel misses."""
        return (self.upsample * (size - 1) + self.slack) // self.stride + 1

    def accepts(self, size: int) -> bool:
        """Whether torch runs the layer on `size` samples: the kernel fits, the padding is legal."""
        widest = max(self.before, self.after)
        if self.padding_mode == "reflect" and widest >= size:
            return False
        if self.padding_mode == "circular" and widest > size:
            return False
        return size >= 1 and self.output_size(size) >= 1


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
        raise GeometryError(_why_not_one(outer.upsample, inner.stride))
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
    mode = outer.padding_mode if _takes_outer_mode(outer, inner) else inner.padding_mode
    if axis.upsample > 1 and axis.pads and not inner.pads:
        mode = "zeros"
    return AxisMerge(
        axis=replace(axis, padding_mode=mode),
        inner_step=inner_spacing // dilation or 1,
        outer_step=outer_spacing // dilation or 1,
        raw_taps=raw_taps,
        kept=kept,
    )


def _takes_outer_mode(outer: Axis, inner: Axis) -> bool:
    return outer.pads and (carries_padding(outer, inner) or not inner.pads)


def _why_not_one(upsample: int, stride: int) -> str:
    if gcd(upsample, stride) > 1:
        return (
            f"an upsampling by {upsample} after a stride of {stride} does not commute with it, "
            "so the two are not one convolution"
        )
    return (
        f"an upsampling by {upsample} after a stride of {stride} gives output sizes that no single "
        "convolution has"
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


def common_axis(axes: Sequence[Axis]) -> Axis:
    """The axis of a sum of parallel branches: the hull of their taps, aligned by their padding.

    Raises GeometryError where the branches step, upsample, size or pad differently.
    """
    for field, what in (("stride", "strides"), ("upsample", "upsamplings"), ("slack", "sizes")):
        values = [getattr(axis, field) for axis in axes]
        if len(set(values)) > 1:
            shown = ", ".join(str(value) for value in values)
            raise GeometryError(
                f"branches of different {what} cannot be summed"
                + ("" if field == "slack" else f" ({shown})")
            )
    modes = {axis.padding_mode for axis in axes if axis.pads}
    if len(modes) > 1:
        raise GeometryError(f"branches padded by {' and '.join(sorted(modes))} are not one layer")
    low = min(axis.taps[0] for axis in axes)
    high = max(axis.taps[-1] for axis in axes)
    spacings = [axis.dilation for axis in axes if axis.kernel_size > 1]
    dilation = gcd(high - low, *spacings, *(axis.taps[0] - low for axis in axes)) or 1
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

    def __post_init__(self) -> None:
        for name, channels in (("in", self.in_channels), ("out", self.out_channels)):
            if self.groups < 1 or channels % self.groups:
                raise GeometryError(
                    f"{channels} {name}put channels do not divide into groups = {self.groups}"
                )

    @property
    def kernel_size(self) -> tuple[int, ...]:
        return tuple(axis.kernel_size for axis in self.axes)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """`(out_channels, in_channels / groups, *kernel_size)`."""
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    @property
    def weights(self) -> int:
        """Numbers to store: the weight's and the bias's."""
        return prod(self.weight_shape) + (self.out_channels if self.bias else 0)

    @property
    def is_transposed(self) -> bool:
        return any(axis.upsample > 1 for axis in self.axes)

    def output_size(self, size: Sequence[int]) -> tuple[int, ...]:
        return tuple(axis.output_size(n) for axis, n in zip(self.axes, size, strict=True))

    def accepts(self, size: Sequence[int]) -> bool:
        return all(axis.accepts(n) for axis, n in zip(self.axes, size, strict=True))

    def macs(self, size: Sequence[int]) -> int:
        """Multiplications for one image of `size`; an upsampling axis is counted on its input."""
        positions = prod(
            n if axis.upsample > 1 else axis.output_size(n)
            for axis, n in zip(self.axes, size, strict=True)
        )
        return positions * prod(self.weight_shape)


def compose(outer: Geometry, inner: Geometry) -> Geometry:
    """The geometry of `outer` after `inner`; groups are `gcd(g1, g2)`, never fewer.

    Raises GeometryError where channels, ranks or axes do not chain into one convolution.
    """
    check_chain(outer, inner)
    return Geometry(
        in_channels=inner.in_channels,
        out_channels=outer.out_channels,
        axes=tuple(merge.axis for merge in _merges(outer, inner)),
        groups=gcd(outer.groups, inner.groups),
        bias=outer.bias or inner.bias,
    )


def _merges(outer: Geometry, inner: Geometry) -> Iterator[AxisMerge]:
    return (merge_axes(o, i) for o, i in zip(outer.axes, inner.axes, strict=True))


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
        axes=tuple(common_axis(pair) for pair in zip(left.axes, right.axes, strict=True)),
        groups=gcd(left.groups, right.groups),
        bias=left.bias or right.bias,
    )
