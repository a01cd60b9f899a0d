"""What keeps layers apart: no merge crosses it, its reason is told, and nothing that is merged
beside it changes an output.
"""

from collections.abc import Mapping, Sequence
from functools import cache

import pytest

from tests.scan.code import image, largest_share
from tests.scan.negatives import asked, by_fx, calls, kernels, shapes, sharing, values
from tests.scan.negatives.rows import INPUT, Row, Squeezed, squeezed_table

pytestmark = pytest.mark.stress

TABLES: Mapping[str, Sequence[Row]] = {
    "activations": values.ACTIVATIONS,
    "arithmetic": values.ARITHMETIC,
    "reshaped": shapes.RESHAPED,
    "windows": shapes.WINDOWS,
    "sizes": shapes.SIZES,
    "asked": asked.ASKED,
    "readers": sharing.READERS,
    "shared": sharing.SHARED,
    "kernels": kernels.KERNELS,
    "hooked": calls.HOOKED,
    "calls": calls.CALLS,
    "by fx": by_fx.ROWS,
}
ROWS = [(table, row) for table, rows in TABLES.items() for row in rows]

EXACT = 1e-12
"""Of the largest output, in float64."""

every_row = pytest.mark.parametrize(
    ("table", "row"), ROWS, ids=[f"{table}: {row.name}" for table, row in ROWS]
)


@cache
def squeezed(table: str) -> Squeezed:
    if table == "by fx":
        return squeezed_table(TABLES[table], by_fx.UnexportableTable)
    return squeezed_table(TABLES[table])


@pytest.mark.parametrize("table", TABLES)
def test_fx_follows_what_export_cannot(table: str) -> None:
    by_fx = [note for note in squeezed(table).scan.notes if "read by torch.fx" in note]
    assert len(by_fx) == (table == "by fx")


@every_row
def test_no_merge_crosses_what_stands_between(table: str, row: Row) -> None:
    assert squeezed(table).merged(row) == row.merged


@every_row
def test_the_reason_is_told(table: str, row: Row) -> None:
    found = squeezed(table).left(row)
    assert {one[:2] for one in found} == {one[:2] for one in row.left}
    for layers, kind, words in row.left:
        assert any(one[:2] == (layers, kind) and words in one[2] for one in found), found


@every_row
def test_the_output_is_the_same_and_nothing_grows(table: str, row: Row) -> None:
    before, after = squeezed(table).models(row)
    assert largest_share(before, after, [image(*INPUT).double()]) < EXACT
    numbers = [sum(p.numel() for p in model.parameters()) for model in (before, after)]
    assert numbers[1] < numbers[0] if row.merged else numbers[1] == numbers[0]
