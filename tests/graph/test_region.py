"""Regions: operations between values, and the chains and sums that they are."""

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convsqueeze.algebra.tree import Chain, Sum, Tree, children, leaves
from convsqueeze.errors import GeometryError
from convsqueeze.graph import AddOp, LayerOp, Region, result_of
from convsqueeze.kinds.conv import ConvLayer
from convsqueeze.manifest import ChainEntry, ChainItem, SumItem, entry_of, request_of

pytestmark = pytest.mark.quick

NAMES = [f"layer{number}" for number in range(40)]


@st.composite
def entries(draw: st.DrawFn) -> ChainEntry:
    """Nested chains and sums in which every layer has a name of its own."""
    names = iter(NAMES)

    def item(depth: int) -> ConvLayer | ChainItem | SumItem:
        kind = draw(st.sampled_from(("layer", "chain", "sum"))) if depth else "layer"
        if kind == "layer":
            return ConvLayer(name=next(names))
        items = tuple(item(depth - 1) for _ in range(draw(st.integers(1, 3))))
        return ChainItem(chain=items) if kind == "chain" else SumItem(sum=items)

    return ChainEntry(chain=tuple(item(2) for _ in range(draw(st.integers(1, 3)))), into="x")


def names(tree: Tree[LayerOp]) -> list[str]:
    return [op.label for op in leaves(tree)]


def parts(tree: Tree[LayerOp]) -> Iterator[Tree[LayerOp]]:
    yield tree
    for part in children(tree):
        yield from parts(part)


def is_flat(tree: Tree[LayerOp]) -> bool:
    """No chain in a chain, no sum in a sum, none with a single part."""
    inner = children(tree)
    alike = any(
        isinstance(part, Chain) == isinstance(tree, Chain) for part in inner if children(part)
    )
    return len(inner) != 1 and not alike and all(map(is_flat, inner))


@settings(max_examples=200, deadline=None)
@given(entries())
def test_an_expression_is_flat_and_keeps_every_layer_in_order(entry: ChainEntry) -> None:
    request = request_of(entry)
    assert is_flat(request.region.expression)
    assert names(request.region.expression) == NAMES[: len(request.region.layers)]
    assert request.region.sources == ("input",)


@settings(max_examples=200, deadline=None)
@given(entries())
def test_an_entry_that_was_written_is_read_again_the_same(entry: ChainEntry) -> None:
    written = entry_of(request_of(entry))
    assert written.into == "x"
    assert entry_of(request_of(written)) == written


@settings(max_examples=200, deadline=None)
@given(entries())
def test_every_part_is_a_region_with_its_own_source_and_result(entry: ChainEntry) -> None:
    whole = request_of(entry).region
    made = {op.name for op in whole.ops}
    for part in parts(whole.expression):
        region = Region.of(part)
        assert names(region.expression) == names(part)
        assert region.result == result_of(part)
        (source,) = region.sources
        assert source == "input" or source in made


def test_some_branches_of_a_sum_are_a_sum_of_their_own() -> None:
    branches = tuple(LayerOp(n, ("x",), layer=ConvLayer(name=n)) for n in "abc")
    whole = Region((*branches, AddOp("sum", ("a", "b", "c"))))
    assert isinstance(whole.expression, Sum)
    some = Region.of(Sum(whole.expression.branches[::2]))
    assert (names(some.expression), some.sources) == (["a", "c"], ("x",))
    assert some.result not in {op.name for op in whole.ops}


def test_what_is_not_in_series_and_in_parallel_has_no_expression() -> None:
    def layer(name: str, value: str) -> LayerOp:
        return LayerOp(name, (value,), layer=ConvLayer(name=name))

    two_sources = Region((layer("a", "x"), layer("b", "y"), AddOp("sum", ("a", "b"))))
    assert two_sources.sources == ("x", "y")
    crossed = Region(
        (
            *(layer("a", "x"), layer("b", "x"), layer("c", "a"), layer("d", "b")),
            *(AddOp("s", ("a", "d")), AddOp("t", ("c", "b")), AddOp("sum", ("s", "t"))),
        )
    )
    read_twice = Region((layer("a", "x"), layer("b", "a"), layer("c", "a"), layer("d", "c")))
    for region in (two_sources, crossed, read_twice):
        with pytest.raises(GeometryError, match="not in series and in parallel"):
            _ = region.expression
