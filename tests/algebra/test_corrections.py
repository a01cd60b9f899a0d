"""A plain merge and its border terms are the layers one after the other, at every pixel."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count, product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from convsqueeze import layers
from convsqueeze.algebra import Axis, Chain, Conv, Geometry, Sum
from convsqueeze.algebra.apply import transposed_layout
from convsqueeze.algebra.border import trace
from convsqueeze.algebra.border.corrections import (
    AxisCorrections,
    Corrections,
    SizeClass,
    hull,
    span_length,
)
from convsqueeze.algebra.border.mismatches import mismatches, wrong_rows
from convsqueeze.algebra.border.taps import Vector, _Basis, axis_taps, corrections
from convsqueeze.algebra.border.trace import NOTHING, Link, reads
from convsqueeze.algebra.border.values import border_bias, border_terms, border_weight
from convsqueeze.algebra.sizes import output_size, smallest_size
from convsqueeze.algebra.tree import Tree, mapped
from convsqueeze.errors import GeometryError
from convsqueeze.module import SqueezedConv
from convsqueeze.recipe import RecipeLayer

from .drawn import MODES, convolutions, fitting, law, ranks, seeds, whole
from .test_border import chains, examinable, geometries, mergeable, plain, run

pytestmark = pytest.mark.stress


def in_whole_numbers(tree: Tree[Conv], seed: int) -> Tree[Conv]:
    """The same layers with weights and biases in which nothing is rounded."""
    number = count(seed)

    def filled(conv: Conv) -> Conv:
        bias = None if conv.bias is None else whole(next(number), len(conv.bias))
        return replace(conv, weight=whole(next(number), *conv.weight.shape), bias=bias)

    return mapped(tree, filled)


@st.composite
def trees(draw: st.DrawFn, rank: int) -> Tree[Conv]:
    """Two layers, one of them maybe a sum, any padding modes; a bias alone that leaks; in one
    dimension chains of anything too.
    """
    kind = draw(st.sampled_from(("two", "biased", "chain") if rank == 1 else ("two", "biased")))
    if kind == "chain":
        tree: Tree[Conv] = draw(chains())
    else:
        modes = draw(st.sampled_from((("zeros",), MODES))) if kind == "two" else ("zeros",)
        widest = {"padding": 2, "stride": 2} if kind == "two" else {"padding": 0, "taps": 1}
        bias = None if kind == "two" else True
        first = draw(convolutions(rank, bias=bias, modes=modes, **widest))
        channels = first.geometry.out_channels
        second = draw(convolutions(rank, channels, padding=2, stride=2, modes=modes))
        sums = draw(st.sampled_from((None, None, 0, 1) if kind == "two" else (None, 1)))
        links: list[Tree[Conv]] = [first, second]
        if sums is not None:
            links[sums] = Sum((links[sums], draw(fitting((first, second)[sums]))))
        tree = Chain(tuple(links))
    tree = in_whole_numbers(tree, draw(seeds))
    assume(mergeable(tree) and examinable(geometries(tree), corrections))
    return tree


def corrected(tree: Tree[Conv]) -> Callable[[Tensor], Tensor]:
    """The plain merge with all that its borders lack."""
    shapes, merged = geometries(tree), plain(tree)
    found = corrections(shapes)
    if found is None:
        return merged
    border = border_terms(tree, found, axis_taps(shapes))
    layer = RecipeLayer.of(
        "merged",
        merged.geometry,
        sources=(),
        border="corrected",
        weights_before=0,
        corrections=found,
    )
    weight = merged.weight.double()
    if merged.geometry.is_transposed:
        weight = transposed_layout(weight, merged.groups)
    return SqueezedConv(layer, weight, merged.bias, border).requires_grad_(False)


def form(found: Corrections | None) -> str:
    if found is None:
        return "plain"
    return "bias" if found.only_biases else "strips"


def sizes_of(shapes: Tree[Geometry], axis: int) -> list[int]:
    """Every size of a class of its own, and each of the others twice."""
    found, first = corrections(shapes), smallest_size(shapes, axis)
    past = first + 3 if found is None else found.axes[axis].settled + 2 * found.axes[axis].period
    return [n for n in range(first, past + 1) if output_size(shapes, axis, n) is not None]


def test_corrected_is_one_after_the_other_for_every_size() -> None:
    """Bit for bit, in one dimension; every form is seen."""
    forms: Counter[str] = Counter()

    @law(100)
    @given(trees(1))
    def each(tree: Tree[Conv]) -> None:
        shapes, actual = geometries(tree), corrected(tree)
        forms[form(corrections(shapes))] += 1
        for n in sizes_of(shapes, 0):
            x = whole(n, 2, plain(tree).geometry.in_channels, n)
            assert torch.equal(actual(x), run(tree, x)), f"size {n}"

    each()
    assert all(forms[one] for one in ("plain", "bias", "strips")), forms


@pytest.mark.parametrize("side", [(0, 3), (3, 0), (3, 3)])
@pytest.mark.parametrize("stride", [1, 2])
def test_corrected_rows_that_a_small_output_has_no_room_for(
    side: tuple[int, int], stride: int
) -> None:
    """The third row from the end alone is corrected: of two samples there is none."""
    first = layers.convolution(whole(1, 1, 1, 2), stride=stride)
    second = layers.convolution(whole(2, 1, 1, 2), padding=[side], dilation=3)
    tree = Chain((first, second))
    actual = corrected(tree)
    for n in sizes_of(geometries(tree), 0):
        x = whole(n, 2, 1, n)
        assert torch.equal(actual(x), run(tree, x)), f"size {n}"


BETWEEN: dict[str, tuple[list[dict[str, object]], list[int]]] = {
    "around, reflected": (
        [
            {"taps": 3, "dilation": 2, "padding": [[3, 4]], "padding_mode": "circular"},
            {"taps": 2, "stride": 3, "padding": [[0, 4]], "padding_mode": "reflect"},
        ],
        [6],
    ),
    "around twice": (
        [
            {
                "taps": 2, "stride": 3, "dilation": 2, "padding": [[1, 0]],
                "padding_mode": "circular",
            },
            {"taps": 1, "stride": 3, "padding": [[2, 1]], "padding_mode": "circular"},
        ],
        [6],
    ),
    "repeated": (
        [
            {"taps": 1, "stride": 2, "padding": [[1, 2]], "padding_mode": "circular"},
            {"taps": 1, "stride": 2, "padding": [[1, 4]], "padding_mode": "replicate"},
            {
                "taps": 3, "stride": 2, "dilation": 2, "padding": [[2, 2]],
                "padding_mode": "replicate",
            },
        ],
        [11],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BETWEEN)
def test_sizes_below_the_settled_ones_that_are_like_them(name: str) -> None:
    """Small sizes are classes of their own up to the last that differs, also those between; the
    largest of them does differ.
    """
    links, alike = BETWEEN[name]
    chain = Chain(
        tuple(
            layers.convolution(whole(n, 1, 1, taps), whole(n + 9, 1), **steps)  # type: ignore[arg-type]
            for n, (taps, steps) in enumerate(
                (one["taps"], {k: v for k, v in one.items() if k != "taps"}) for one in links
            )
        )
    )
    shapes, actual = geometries(chain), corrected(chain)
    found = corrections(shapes)
    assert found is not None
    (axis,) = found.axes
    own = {one.size for one in axis.classes if one.size < axis.settled}
    assert own >= {*alike, axis.settled - 1}
    for n in range(smallest_size(shapes, 0), axis.settled + 2 * axis.period):
        x = whole(n, 2, 1, n)
        assert torch.equal(actual(x), run(chain, x)), f"size {n}"


@pytest.mark.parametrize("upsample", [2, 3])
@pytest.mark.parametrize("stride", [1, 2, 3, 4, 6])
def test_combinations_that_never_meet_a_sample_are_not_corrected(
    upsample: int, stride: int
) -> None:
    """An upsampling and a stride that cancel leave taps without a sample, at any place."""
    up = layers.transposed(whole(1, 1, 1, 4), stride=upsample, padding=1)
    down = layers.convolution(whole(2, 1, 1, 3), stride=stride, padding=2)
    chain = Chain((up, down))
    shapes, actual = geometries(chain), corrected(chain)
    for n in sizes_of(shapes, 0):
        x = whole(n, 2, 1, n)
        assert torch.equal(actual(x), run(chain, x)), f"size {n}"
    found = corrections(shapes)
    if found is not None:
        (axis,) = found.axes
        assert all(-4 <= row <= 3 for one in axis.classes for row in one.rows)
    assert bool(mismatches(shapes)) == (found is not None)


@law(80)
@given(st.data(), st.sampled_from((2, 2, 3)))
def test_corrected_is_one_after_the_other_in_corners(data: st.DataObject, rank: int) -> None:
    tree = data.draw(trees(rank))
    shapes, actual = geometries(tree), corrected(tree)
    for _ in range(3):
        size = [data.draw(st.sampled_from(sizes_of(shapes, axis)[:40])) for axis in range(rank)]
        x = whole(data.draw(seeds), 2, plain(tree).geometry.in_channels, *size)
        assert torch.equal(actual(x), run(tree, x))


@law(150)
@given(st.data(), ranks)
def test_corrections_are_for_the_rows_that_differ(data: st.DataObject, rank: int) -> None:
    """Found by residues and by combinations of taps, side by side and size by size."""
    shapes = geometries(data.draw(trees(rank)))
    found = corrections(shapes)
    assert bool(mismatches(shapes)) == (found is not None)
    for axis, size in product(range(rank if found else 0), range(1, 20)):
        if size >= smallest_size(shapes, axis):
            outputs = output_size(shapes, axis, size)
            rows = {row + outputs * (row < 0) for row in found.axes[axis].of(size).rows}
            there = {row for row in rows if 0 <= row < outputs}
            assert wrong_rows(shapes, axis, size) <= there


@law(100)
@given(st.data(), ranks)
def test_the_kernels_own_sums_make_the_merged_kernel(data: st.DataObject, rank: int) -> None:
    """Border values for no axis at the border are what composition gives, bias included."""
    tree = data.draw(trees(rank))
    taps, merged = axis_taps(geometries(tree)), plain(tree)
    nothing = Corrections(())
    assert torch.equal(border_weight(tree, nothing, taps, ()), merged.weight)
    if merged.bias is not None:
        assert torch.equal(border_bias(tree, nothing, taps, ()).flatten(), merged.bias)


# What each combination of taps reads, against torch


@st.composite
def drawn_axes(draw: st.DrawFn) -> Axis:
    up = draw(st.sampled_from((1, 1, 1, 2, 3)))
    lowest = draw(st.sampled_from((0, 0, -1)))
    return Axis(
        kernel_size=draw(st.integers(1, 3)),
        stride=draw(st.integers(1, 3)),
        dilation=draw(st.integers(1, 3)),
        before=draw(st.integers(lowest, 5)),
        after=draw(st.integers(lowest, 5)),
        upsample=up,
        padding_mode=draw(st.sampled_from(MODES)) if up == 1 and lowest == 0 else "zeros",
    )


def through_torch(axis: Axis, tap: int, x: Tensor) -> Tensor:
    """A layer whose kernel is one at `tap` and zero elsewhere, on (1, 1, size)."""
    spread = x.new_zeros(1, 1, axis.upsample * (x.shape[2] - 1) + 1)
    spread[:, :, :: axis.upsample] = x
    mode = "constant" if axis.padding_mode == "zeros" else axis.padding_mode
    kernel = F.one_hot(torch.tensor(tap), axis.kernel_size).to(x.dtype).view(1, 1, -1)
    padded = F.pad(spread, (axis.before, axis.after), mode=mode)
    return F.conv1d(padded, kernel, stride=axis.stride, dilation=axis.dilation)


def columns(axes: Sequence[Axis], x: Tensor) -> Tensor:
    """What every combination of taps gives, the last layer's tap counted first."""
    found = []
    for taps in product(*(range(axis.kernel_size) for axis in reversed(axes))):
        y = x
        for axis, tap in zip(axes, reversed(taps), strict=True):
            y = through_torch(axis, tap, y)
        found.append(y.flatten())
    return torch.stack(found, 1)


def passes(axes: Sequence[Axis], size: int) -> bool:
    for axis in axes:
        if not axis.accepts(size) or axis.upsample * (size - 1) + 1 + axis.before < 1:
            return False
        size = axis.output_size(size)
    return True


@law(150)
@given(st.lists(drawn_axes(), min_size=1, max_size=3), st.integers(0, 8))
def test_sources_are_what_kernels_of_one_tap_read(axes: list[Axis], more: int) -> None:
    """And a bias arrives where an image of ones in its place does."""
    taken = [n for n in range(1, 120) if passes(axes, n)]
    size = taken[more]
    path = tuple(Link(axis, bias=True) for axis in axes)
    numbered = torch.arange(1.0, size + 1, dtype=torch.float64).view(1, 1, -1)
    assert NOTHING == -1
    assert torch.equal(reads(path, size)[0], columns(axes, numbered).long() - 1)
    for index, table in enumerate(reads(path, size)[1], start=1):
        size = axes[index - 1].output_size(size)
        behind = axes[index:]
        ones = torch.ones(1, 1, size, dtype=torch.float64)
        expected = columns(behind, ones) if behind else ones.view(-1, 1)
        assert torch.equal(table.double(), expected)


def test_more_combinations_than_a_table_may_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two outputs through 3 * 4 combinations of taps are 24 places."""
    path = (Link(Axis(3), bias=False), Link(Axis(4), bias=False))
    monkeypatch.setattr(trace, "LARGEST_TABLE", 24)
    assert tuple(reads(path, 7)[0].shape) == (2, 12)
    monkeypatch.setattr(trace, "LARGEST_TABLE", 23)
    with pytest.raises(GeometryError, match="12 combinations"):
        reads(path, 7)


def test_a_table_holds_four_million_places() -> None:
    """2048 taps for 2048 outputs are as many as there may be, `2**22`; no output more."""
    wide = (Link(Axis(2048), bias=False),)
    assert tuple(reads(wide, 4095)[0].shape) == (2048, 2048)
    with pytest.raises(GeometryError, match="2,048 combinations"):
        reads(wide, 4096)


def test_no_layer_reads_nothing() -> None:
    with pytest.raises(GeometryError, match="at least one layer"):
        reads((), 3)


# Counts that can be worked out by hand


def conv(kernel_size: int, *, rank: int = 2, bias: bool = False, **steps: object) -> Geometry:
    weight = torch.empty(1, 1, *(kernel_size,) * rank, device="meta")
    made = layers.convolution(weight, torch.empty(1) if bias else None, **steps)  # type: ignore[arg-type]
    return made.geometry


def numbers(*links: Geometry) -> tuple[Corrections, dict[str, tuple[int, ...]], int]:
    """The corrections of a chain of layers of one channel, their shapes, and all weights."""
    found, merged = corrections(Chain(links)), axis_taps(Chain(links))
    assert found is not None
    kernel = [len(axis.kernel) for axis in merged]
    shapes = {n: s[1:] if "bias" in n else s[2:] for n, s in found.shapes(whole_of(links)).items()}
    border = sum(torch.Size(shape).numel() for shape in shapes.values())
    return found, shapes, border + torch.Size(kernel).numel()


def whole_of(links: Sequence[Geometry]) -> Geometry:
    tree: Tree[Conv] = Chain(
        tuple(
            Conv(torch.ones(g.weight_shape), torch.ones(1) if g.bias else None, g.axes)
            for g in links
        )
    )
    return plain(tree).geometry


def test_three_by_three_twice_takes_49_taps() -> None:
    """One border tap for each end: `(5 + 2) ** 2`."""
    _, shapes, taps = numbers(conv(3, padding=1), conv(3, padding=1))
    assert shapes == {"0.weight": (2, 5), "1.weight": (5, 2), "01.weight": (2, 2)}
    assert taps == 49


def test_the_large_kernel_of_van() -> None:
    """5x5, then 7x7 with dilation 3: at each end three outer taps meet the two positions of the
    ring that two inner taps see the image from.
    """
    found, _, taps = numbers(conv(5, padding=2), conv(7, padding=9, dilation=3))
    assert [axis.taps for axis in found.axes] == [12, 12]
    assert taps == (23 + 12) ** 2


def test_the_stem_of_convnext() -> None:
    """3x3 with stride 2 twice, padded by 1: the last row alone, where `n % 4 == 2`."""
    stem = conv(3, stride=2, padding=1)
    found, shapes, _ = numbers(stem, stem)
    assert shapes == {"0.weight": (1, 7), "1.weight": (7, 1), "01.weight": (1, 1)}
    for axis in found.axes:
        for n in range(1, 40):
            assert axis.of(n).row_spans == (((-1, 0),) if n % 4 == 2 else ())


def test_a_bias_behind_one_tap_is_all_that_leaks() -> None:
    found, shapes, _ = numbers(conv(1, bias=True), conv(3, padding=1))
    assert found.only_biases
    assert shapes == {"0.bias": (2, 1), "1.bias": (1, 2), "01.bias": (2, 2)}
    without = corrections(Chain((conv(1), conv(3, padding=1))))
    assert without is None


def test_a_window_that_leaks_is_more_than_a_bias() -> None:
    found, _, _ = numbers(conv(3, padding=1, bias=True), conv(3, padding=1))
    assert not found.only_biases


@pytest.mark.parametrize("bias", [False, True])
def test_circular_after_circular_is_plain(bias: bool) -> None:
    """Where the first keeps the size; else a merge by corrections is none the less exact."""
    circular = {"padding_mode": "circular", "bias": bias}
    kept = conv(3, padding=1, **circular)
    assert corrections(Chain((kept, conv(5, padding=2, **circular)))) is None
    wider = conv(3, padding=2, **circular)
    assert corrections(Chain((wider, conv(5, padding=2, **circular)))) is not None


# Sizes that corrections are not for, and recipes that nobody wrote


def test_sizes_that_the_layers_do_not_take() -> None:
    found = corrections(Chain((conv(3, rank=1, padding=1), conv(5, rank=1, padding=1))))
    assert found is not None
    assert found.axes[0].of(3).rows
    for size in (0, 1, 2):
        with pytest.raises(GeometryError, match=f"of 3.* and more samples.*not for {size}"):
            found.axes[0].of(size)


@pytest.mark.parametrize(("stride", "least"), [(2, 4), (3, 5)])
def test_sizes_that_all_meet_the_border_alike_are_one_class(stride: int, least: int) -> None:
    """With padding in front alone the stride's phase at the far end is no one's business; with
    padding behind, every phase is a class of its own.
    """
    front, both = {"padding": [[1, 0]]}, {"padding": 1}
    for padding, classes in ((front, [least]), (both, list(range(1, stride + 1)))):
        first = conv(3, rank=1, stride=stride, bias=True, **padding)
        found = corrections(Chain((first, conv(3, rank=1, **padding))))
        assert found is not None
        (axis,) = found.axes
        assert axis.period == len(classes)
        assert axis.settled == classes[0]
        assert [one.size for one in axis.classes] == classes
        assert axis.described_sizes == f"{classes[0]} and more"


def test_classes_of_small_sizes_are_told_beside_the_rest() -> None:
    axis = AxisCorrections(4, 3, 1, 0, tuple(SizeClass(size) for size in (1, 2, 5)))
    assert axis.described_sizes == "1, 2; 5 and any multiple of 3 more"
    assert replace(axis, classes=axis.classes[:2]).described_sizes == "1, 2"
    assert replace(axis, classes=()).described_sizes == "no number of"
    every = tuple(SizeClass(size) for size in (1, 4, 5, 6))
    assert replace(axis, classes=every).described_sizes == "1; 4 and more"
    assert [axis.class_size(n) for n in range(1, 11)] == [1, 2, 3, 4, 5, 6, 4, 5, 6, 4]
    single = replace(axis, period=1)
    assert [single.class_size(n) for n in (3, 4, 5, 9)] == [3, 4, 4, 4]


def test_spans_hold_places_from_either_end() -> None:
    one = SizeClass(9, ((2, -1, 0, 1), (0, 3, 0, 1), (-3, 0, 0, 1)), ((-2, 0, 1), (0, 0, 1)))
    assert one.rows == (0, 2, -3, -2)
    assert one.columns == (0, 3, -1)
    assert one.row_spans == ((0, 3), (-3, -1))
    assert one.column_spans == ((0, 4), (-1, 0))
    assert hull([(0, 2), (-1, 1), (-4,)]) == ((0, 3), (-4, 0))
    assert hull([(), ()]) == ()
    assert span_length(((0, 3), (-3, -1))) == 5


def test_sizes_other_than_the_one_that_is_promised() -> None:
    stem = conv(3, rank=1, stride=2, padding=1)
    assert corrections(Chain((stem, stem)), (32,)) is None
    found = corrections(Chain((stem, stem)), (34,))
    assert found is not None
    (axis,) = found.axes
    for size in range(axis.settled, 60):
        if size % 4 == 2:
            assert axis.of(size) == axis.of(34)
        else:
            with pytest.raises(GeometryError, match=f"any multiple of 4 more.*not for {size}"):
                axis.of(size)


SOUND = AxisCorrections(2, 2, 2, 1, (SizeClass(2, ((0, -1, 1, 1),), ((0, 0, -1),)), SizeClass(3)))
EXACT = AxisCorrections(1, 1, 0, 0, (SizeClass(1),))
FAR = 1 << 21
"""Tables of that many rows or columns are for no border."""


def with_class(**changes: object) -> AxisCorrections:
    return replace(SOUND, classes=(replace(SOUND.classes[0], **changes), *SOUND.classes[1:]))


@pytest.mark.parametrize(
    "axis",
    [
        replace(SOUND, period=0),
        replace(SOUND, period=-1),
        replace(SOUND, taps=-1),
        replace(SOUND, taps=1),
        replace(SOUND, bias_taps=-1),
        replace(SOUND, bias_taps=0),
        replace(EXACT, taps=-1),
        replace(EXACT, bias_taps=-1),
        replace(SOUND, classes=(*SOUND.classes, SizeClass(3))),
        replace(SOUND, classes=(*SOUND.classes, SizeClass(4))),
        with_class(size=5),
        with_class(weights=((0, 0, 2, 1),)),
        with_class(weights=((0, 0, -1, 1),)),
        with_class(weights=((0, 0, 0, 1), (FAR, 0, 0, 1))),
        with_class(weights=((-1, 0, 0, 1), (-FAR, 0, 0, 1))),
        with_class(weights=((0, 0, 0, 1), (0, FAR, 0, 1))),
        with_class(weights=((0, -1, 0, 1), (0, -FAR, 0, 1))),
        with_class(weights=((0, 0, 0, 1), (FAR, FAR, 0, 1))),
        with_class(weights=((0, 0, 0, 1), (1024, 1023, 0, 1))),
        with_class(weights=((0, 0, 0, 1025),)),
        with_class(weights=((0, 0, 0, 1), (0, 0, 1, -1025))),
        with_class(biases=((0, 0, 1025),)),
        with_class(biases=((0, 0, -1025),)),
        with_class(biases=((0, 0, 1), ((1 << 20), 0, 1))),
        with_class(biases=((0, 1, 1),)),
        with_class(biases=((0, -1, 1),)),
        with_class(biases=((0, 0, 1), (FAR, 0, 1))),
    ],
)
def test_numbers_of_an_axis_that_refer_to_nothing(axis: AxisCorrections) -> None:
    Corrections((SOUND,)).check((3,))
    with pytest.raises(GeometryError):
        Corrections((axis,)).check((3,))


@pytest.mark.parametrize(
    "axis",
    [
        with_class(weights=((0, 0, 0, 1), (1023, 1023, 0, 1))),
        with_class(weights=((-1, -1, 0, 1), (-1024, -1024, 1, 1)), biases=()),
        with_class(weights=((0, 0, 0, 1024), (0, 0, 1, -1024))),
        with_class(weights=(), biases=((0, 0, 1024), ((1 << 20) - 1, 0, -1024))),
        with_class(weights=(), biases=()),
        EXACT,
    ],
)
def test_numbers_of_an_axis_as_large_as_they_may_be(axis: AxisCorrections) -> None:
    axis.check()


def test_multiplications_of_border_terms() -> None:
    """3x3 twice: the two outer rows read the two outer samples; along a face, at six outputs, the
    five taps of the merged kernel; in the corners nothing but that.
    """
    found = corrections(Chain((conv(3, padding=1), conv(3, padding=1))))
    assert found is not None
    merged = layers.convolution(whole(1, 6, 2, 5, 5), padding=2, groups=2).geometry
    face, corner = (2 * 2) * (6 * 5), (2 * 2) * (2 * 2)
    assert found.macs(merged, (6, 6)) == (2 * face + corner) * 6 * 2
    assert found.macs(merged, (6, 9)) == ((2 * 2) * (9 * 5) + face + corner) * 6 * 2


@pytest.mark.parametrize("stride", [2, 3])
def test_multiplications_beside_an_upsampling(stride: int) -> None:
    """Counted on its input, as those of the merged layer itself: seven samples, two taps."""
    up = layers.transposed(whole(1, 1, 1, 3, 2), stride=(1, stride), padding=(1, 0))
    after = layers.convolution(whole(2, 1, 1, 3, 1), padding=(1, 0))
    found = corrections(Chain((up.geometry, after.geometry)))
    assert found is not None
    assert found.subsets == ((0,),)
    merged = (after @ up).geometry
    assert found.macs(merged, (6, 7)) == (2 * 2) * (7 * 2)
    assert merged.macs((6, 7)) == (6 * 5) * (7 * 2)


@pytest.mark.parametrize(("stride", "outputs"), [(1, 7), (2, 4), (3, 3)])
def test_multiplications_beside_a_stride(stride: int, outputs: int) -> None:
    first = layers.convolution(whole(1, 1, 1, 3, 1), stride=(1, stride), padding=(1, 0))
    after = layers.convolution(whole(2, 1, 1, 3, 1), padding=(1, 0))
    found = corrections(Chain((first.geometry, after.geometry)))
    assert found is not None
    assert found.macs((after @ first).geometry, (6, 7)) == (2 * 2) * outputs


# Border taps: sums of combinations that make all others


def combined(basis: _Basis, vector: Vector) -> dict[int, int]:
    """What the basis vectors make with the factors that are told for a vector."""
    made: Counter[int] = Counter()
    for index, factor in basis.made_of(vector):
        assert factor
        for key, value in basis.vectors[index]:
            made[key] += factor * value
    return {key: value for key, value in made.items() if value}


@law(200)
@given(
    st.lists(
        st.dictionaries(st.integers(0, 5), st.integers(-3, 3).filter(bool), min_size=1, max_size=4),
        min_size=1,
        max_size=12,
    )
)
def test_a_basis_makes_every_vector_with_whole_factors(found: list[dict[int, int]]) -> None:
    basis = _Basis()
    vectors = list(dict.fromkeys(tuple(sorted(one.items())) for one in found))
    for vector in vectors:
        basis.include(vector)
    for vector in vectors:
        assert combined(basis, vector) == dict(vector)
    matrix = torch.zeros(len(vectors), 6, dtype=torch.float64)
    for index, vector in enumerate(vectors):
        for key, factor in vector:
            matrix[index, key] = factor
    kept = [vectors.index(vector) for vector in basis.vectors]
    assert torch.equal(basis.matrix(6), matrix[kept])
    rank = torch.linalg.matrix_rank
    assert int(rank(basis.matrix(6))) == int(rank(matrix))


@law(100)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 4)), min_size=1, max_size=14))
def test_a_basis_of_runs_is_independent(runs: list[tuple[int, int]]) -> None:
    """Runs of ones make each other with whole factors, if at all: there is none too many."""
    basis = _Basis()
    vectors = list(
        dict.fromkeys(tuple((start + n, 1) for n in range(count)) for start, count in runs)
    )
    for vector in vectors:
        basis.include(vector)
        assert combined(basis, vector) == dict(vector)
    assert int(torch.linalg.matrix_rank(basis.matrix(10))) == len(basis.vectors)


def test_a_vector_that_only_fractions_make_is_kept() -> None:
    basis = _Basis()
    twice, once, minus = ((0, 2), (1, 2)), ((0, 1), (1, 1)), ((0, -4), (1, -4))
    for vector in (twice, once, minus):
        basis.include(vector)
    assert basis.vectors == [twice, once]
    assert basis.made_of(once) == ((1, 1),)
    assert basis.made_of(minus) == ((0, -2),)


@pytest.mark.parametrize(
    "found",
    [
        Corrections(()),
        Corrections((SOUND, SOUND, SOUND)),
        Corrections((SOUND, EXACT), absent=(((0,), (6,)),)),
        Corrections((SOUND, EXACT), absent=(((0,), (-1,)),)),
        Corrections((SOUND, EXACT), absent=(((0,), (1, 0)),)),
        Corrections((SOUND, EXACT), absent=(((0,), (1, 1)),)),
        Corrections((SOUND, EXACT), absent=(((1,), (0,)),)),
        Corrections((SOUND, EXACT), absent=(((), (0,)),)),
        Corrections((SOUND, EXACT), absent=(((2,), (0,)),)),
        Corrections((SOUND, SOUND), absent=(((1, 0), (0,)),)),
        Corrections((SOUND, EXACT), absent_biases=(((0,), (1,)),)),
        Corrections((SOUND, EXACT), absent_biases=(((0, 1), (0,)),)),
    ],
)
def test_corrections_that_refer_to_nothing(found: Corrections) -> None:
    Corrections((SOUND, EXACT), (((0,), (0, 5)),), (((0,), (0,)),)).check((3, 3))
    with pytest.raises(GeometryError):
        found.check((3, 3))
