"""Questions about axes and trees whose answers can be written down."""

from dataclasses import replace
from itertools import product

import pytest

from convsqueeze import layers
from convsqueeze.algebra import Axis, Chain, Geometry, Sum
from convsqueeze.algebra.geometry import add, carries_padding, common_axis, compose, merge_axes
from convsqueeze.algebra.tree import counted, fold, leaves, mapped, paths
from convsqueeze.errors import GeometryError

from .drawn import whole

pytestmark = pytest.mark.quick


def test_axes_that_compute_the_same_are_equal() -> None:
    assert Axis(1, dilation=3) == Axis(1)
    assert Axis(3, dilation=3) != Axis(3)
    assert Axis(3, padding_mode="reflect") == Axis(3)
    assert Axis(3, before=-1, padding_mode="reflect") == Axis(3, before=-1)
    for side in ("before", "after"):
        padded = Axis(3, padding_mode="reflect", **{side: 1})  # type: ignore[arg-type]
        assert padded.padding_mode == "reflect"
        assert padded.pads
    assert not Axis(3).pads


@pytest.mark.parametrize("field", ["kernel_size", "stride", "dilation", "upsample"])
def test_numbers_of_an_axis_are_at_least_one(field: str) -> None:
    assert getattr(Axis(**{"kernel_size": 2, field: 1}), field) == 1  # type: ignore[arg-type]
    for value in (0, -1):
        with pytest.raises(GeometryError, match=f"{field} is {value}, at least 1"):
            Axis(**{"kernel_size": 2, field: value})  # type: ignore[arg-type]


def test_only_zeros_pad_an_upsampled_signal() -> None:
    assert Axis(3, upsample=2, before=1).upsample == 2
    assert Axis(3, upsample=2, padding_mode="circular").padding_mode == "zeros"
    for upsample in (2, 3):
        with pytest.raises(GeometryError, match="around an upsampled signal"):
            Axis(3, upsample=upsample, before=1, padding_mode="circular")
    assert Axis(3, upsample=1, before=1, padding_mode="circular").padding_mode == "circular"


def test_what_is_pointwise() -> None:
    assert Axis().is_pointwise is True
    for changed in (
        {"kernel_size": 2},
        {"stride": 2},
        {"upsample": 2},
        {"before": 1},
        {"after": 1},
        {"before": -1},
        {"before": 1, "after": -1},
    ):
        assert Axis(**changed).is_pointwise is False  # type: ignore[arg-type]


@pytest.mark.parametrize("sides", [(2, 0), (0, 2), (2, 1), (1, 2)])
def test_how_wide_an_image_can_be_padded(sides: tuple[int, int]) -> None:
    """Reflection leaves out the edge itself, so that it needs one sample more."""
    before, after = sides
    for mode, least in (("reflect", 3), ("circular", 2), ("replicate", 1), ("zeros", 1)):
        axis = Axis(before=before, after=after, padding_mode=mode)
        assert [axis.accepts(n) for n in range(5)] == [n >= least for n in range(5)]


def test_how_small_an_image_a_kernel_fits() -> None:
    axis = Axis(3, dilation=2, before=1)
    assert [axis.accepts(n) for n in range(6)] == [False] * 4 + [True] * 2
    assert [axis.output_size(n) for n in (4, 5, 6)] == [1, 2, 3]
    assert not Axis(1, before=3, after=3).accepts(0)
    assert Axis(1, upsample=3, after=-2).output_size(1) == -1


def test_which_padding_passes_the_layer_before() -> None:
    padded = {mode: Axis(3, before=1, after=1, padding_mode=mode) for mode in
              ("zeros", "reflect", "replicate", "circular")}  # fmt: skip
    for mode, outer in padded.items():
        assert carries_padding(outer, Axis()) is (mode != "zeros")
    circular = padded["circular"]
    assert carries_padding(circular, circular) is True
    wider = Axis(3, before=2, after=1, padding_mode="circular")
    strided = Axis(3, stride=2, before=1, after=1, padding_mode="circular")
    for inner in (wider, strided, padded["reflect"], padded["zeros"], Axis(3)):
        assert carries_padding(circular, inner) is False
    for mode in ("reflect", "replicate"):
        assert carries_padding(padded[mode], padded[mode]) is False
        assert carries_padding(padded[mode], circular) is False


def test_a_merged_axis_pads_as_the_layer_that_meets_the_image() -> None:
    inner = Axis(3, before=1, after=1, padding_mode="reflect")
    outer = Axis(5, before=2, after=2, padding_mode="replicate")
    assert merge_axes(outer, inner).axis.padding_mode == "reflect"
    assert merge_axes(outer, Axis(3)).axis.padding_mode == "replicate"
    assert merge_axes(outer, Axis(1)).axis.padding_mode == "replicate"
    assert merge_axes(Axis(5), inner).axis.padding_mode == "reflect"
    around = replace(outer, padding_mode="circular")
    assert merge_axes(around, replace(inner, padding_mode="circular")).axis.padding_mode == (
        "circular"
    )


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_before_an_upsampling(mode: str) -> None:
    up = Axis(2, upsample=2, before=1, after=1)
    padded = Axis(3, before=1, after=1, padding_mode=mode)
    with pytest.raises(GeometryError, match=f"{mode} padding before an upsampling by 2"):
        merge_axes(up, padded)
    assert merge_axes(up, Axis(3, before=1, after=1)).axis.padding_mode == "zeros"
    assert merge_axes(padded, up).axis.padding_mode == "zeros"
    for upsample in (2, 3):
        between = merge_axes(padded, Axis(1, upsample=upsample)).axis
        assert (between.upsample, between.padding_mode) == (upsample, "zeros")
        assert between.pads


@pytest.mark.parametrize(
    ("outer", "inner", "steps", "taps"),
    [
        (Axis(1), Axis(1), (1, 1), 1),
        (Axis(3), Axis(1), (1, 1), 3),
        (Axis(1), Axis(3), (1, 1), 3),
        (Axis(1), Axis(3, dilation=2), (1, 1), 3),
        (Axis(3, dilation=2), Axis(3), (1, 2), 7),
        (Axis(3, dilation=2), Axis(2, dilation=4), (2, 1), 5),
        (Axis(2, dilation=2), Axis(3, stride=3), (1, 6), 9),
        (Axis(2, dilation=2), Axis(2, dilation=3, stride=2), (3, 4), 8),
        (Axis(3, upsample=2), Axis(2, dilation=2), (4, 1), 7),
    ],
)
def test_where_the_taps_of_two_layers_land(
    outer: Axis, inner: Axis, steps: tuple[int, int], taps: int
) -> None:
    """The last tap of both lands on the last of the grid, whose spacing is what they share."""
    found = merge_axes(outer, inner)
    assert (found.inner_step, found.outer_step) == steps
    assert found.raw_taps == taps
    last = steps[0] * (inner.kernel_size - 1) + steps[1] * (outer.kernel_size - 1)
    assert last == taps - 1
    assert found.kept == range(taps)


@pytest.mark.parametrize(
    ("up", "down", "kept", "merged"),
    [
        (Axis(3, upsample=2), Axis(stride=2), range(0, 3, 2), Axis(2)),
        (Axis(3, upsample=2, before=1), Axis(stride=2), range(1, 3, 2), Axis(1)),
        (Axis(2, upsample=4), Axis(stride=2), range(0, 2, 2), Axis(1, upsample=2)),
        (Axis(3, upsample=2), Axis(stride=6), range(0, 3, 2), Axis(2, stride=3)),
        (Axis(5, upsample=3, before=4), Axis(stride=3), range(1, 5, 3), Axis(2, before=1)),
        (Axis(2, dilation=2, upsample=2, before=1), Axis(stride=2), range(0), Axis(1)),
        (Axis(3, dilation=2, upsample=4), Axis(stride=4), range(0, 3, 2), Axis(2)),
        (Axis(3, dilation=4, upsample=2), Axis(stride=2), range(3), Axis(3, dilation=2)),
    ],
)
def test_what_an_upsampling_and_a_stride_leave_of_the_taps(
    up: Axis, down: Axis, kept: range, merged: Axis
) -> None:
    found = merge_axes(down, up)
    assert found.kept == kept
    assert replace(found.axis, after=0) == replace(merged, after=0)
    for n in range(1, 9):
        assert found.axis.output_size(n) == down.output_size(up.output_size(n))


def test_the_axis_of_a_sum_is_the_hull_of_its_branches() -> None:
    one = Axis(3, stride=2, dilation=2, before=3, after=2)
    other = Axis(2, stride=2, dilation=4, before=1, after=4)
    assert common_axis(one, other) == Axis(4, stride=2, dilation=2, before=3, after=4)
    assert common_axis(Axis(3, before=1, after=1), Axis()) == Axis(3, before=1, after=1)
    point = Axis(1, before=-2, after=2)
    assert common_axis(Axis(), point) == Axis(2, dilation=2, after=2)
    assert common_axis(point, point) == point
    mirrored = Axis(3, before=1, after=1, padding_mode="reflect")
    assert common_axis(Axis(), mirrored) == common_axis(mirrored, Axis()) == mirrored


def geometry(**changes: object) -> Geometry:
    return replace(Geometry(4, 6, (Axis(3), Axis(2))), **changes)


def test_groups_that_are_none() -> None:
    for groups in (0, -1, 3, 4):
        with pytest.raises(GeometryError, match=f"do not divide into groups = {groups}"):
            geometry(groups=groups)
    assert geometry(groups=2).weight_shape == (6, 2, 3, 2)


def test_biases_of_chains_and_sums() -> None:
    """There is one where any of the layers has one."""
    point = Geometry(6, 4, (Axis(), Axis()))
    for first, second in product((False, True), repeat=2):
        both = compose(replace(point, bias=second), geometry(bias=first))
        assert both.bias is (first or second)
        assert add(geometry(bias=first), geometry(bias=second)).bias is (first or second)


@pytest.mark.parametrize("channels", ["in_channels", "out_channels"])
def test_branches_of_other_channels_have_no_sum(channels: str) -> None:
    others = geometry(**{channels: 8})
    for branches in ((geometry(), others), (others, geometry())):
        with pytest.raises(GeometryError, match=f"4 and 8 {channels}|6 and 8 {channels}|8 and"):
            add(*branches)


def test_multiplications_of_one_image() -> None:
    """Outputs times taps times channels; samples times taps where an axis upsamples."""
    plain = Geometry(4, 6, (Axis(3, stride=2), Axis(2)), groups=2)
    assert plain.macs((7, 5)) == (3 * 4) * (6 * 2 * 3 * 2)
    up = Geometry(4, 6, (Axis(3, upsample=2), Axis(2)))
    assert up.macs((7, 5)) == (7 * 4) * (6 * 4 * 3 * 2)
    assert layers.linear(whole(1, 3, 2)).geometry.macs(()) == 6


NESTED = Chain(("a", Sum(("b", Chain(("c", Sum(("d", "e")), "f")))), "g"))


def test_every_way_through_a_tree_and_what_it_counts() -> None:
    """Three ways; what stands behind the sums counts in the first that meets it alone."""
    assert paths(NESTED) == (
        (("a", True), ("b", True), ("g", True)),
        (("a", True), ("c", True), ("d", True), ("f", True), ("g", False)),
        (("a", True), ("c", True), ("e", True), ("f", False), ("g", False)),
    )
    assert paths("a") == ((("a", True),),)
    two = Chain((Sum(("a", "b")), Sum(("c", "d")), "e"))
    assert [[counts for _, counts in way] for way in paths(two)] == [
        [True, True, True],
        [True, True, False],
        [True, False, False],
        [True, False, False],
    ]


def test_trees_are_folded_from_their_leaves() -> None:
    shown = fold(
        NESTED, str.upper, lambda links: "".join(links), lambda ways: f"({'+'.join(ways)})"
    )
    assert shown == "A(B+C(D+E)F)G"
    assert "".join(leaves(NESTED)) == "abcdefg"
    assert mapped(NESTED, ord).links[0] == ord("a")
    assert "".join(map(chr, leaves(mapped(NESTED, ord)))) == "abcdefg"


def test_what_is_counted_along_a_tree() -> None:
    """Links one after the other; branches side by side, the state from the first of them."""
    tree = Chain((2, Sum((3, Chain((5, 7)))), 11))
    seen: list[tuple[int, int]] = []

    def step(leaf: int, state: int) -> tuple[int, int]:
        seen.append((leaf, state))
        return leaf * state, state + 1

    assert counted(tree, 1, step) == (2 * 1 + 3 * 2 + 5 * 2 + 7 * 3 + 11 * 3, 4)
    assert seen == [(2, 1), (3, 2), (5, 2), (7, 3), (11, 3)]
    assert counted(13, 4, step) == (52, 5)
