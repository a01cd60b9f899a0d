"""`verify --plot`: the numbers of the maps, what is drawn of them, and the file.

The numbers are held against torch's own modules on the same inputs, the places against rows that
were worked out by hand.
"""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from convsqueeze import load_layers, merge_file, verify_files
from convsqueeze.errors import OutputError
from convsqueeze.plot import METADATA, figure_of, panels, rendered, write_plot
from convsqueeze.verify import DifferenceMap, Report, Settings
from tests.command_line import Outcome, run_here
from tests.squeezed_files import moved_by_ulps, put_together, taken_apart

Entry = dict[str, Any]


@dataclass(frozen=True)
class Files:
    """A checkpoint and what `merge` made of it, in a folder of their own."""

    original: Path
    squeezed: Path

    def report(self, squeezed: Path | None = None, seed: int = 0) -> Report:
        settings = Settings(seed=seed, maps=True)
        return verify_files(self.original, squeezed or self.squeezed, settings=settings)

    def drawn(self, plot: Path, *options: object, squeezed: Path | None = None) -> Outcome:
        squeezed = squeezed or self.squeezed
        return run_here("verify", self.original, squeezed, "--plot", plot, *options)

    def faulty(self, fault: Callable[[dict[str, Tensor]], None]) -> Path:
        parts = taken_apart(self.squeezed)
        fault(parts.tensors)
        return put_together(parts, self.squeezed.with_name("faulty.pt"))


def files_of(folder: Path, network: nn.Module, *entries: Entry) -> Files:
    """`network` with weights that are the same every time, and its merge by `entries`."""
    generator = torch.Generator().manual_seed(5)
    state = network.state_dict()
    for name, tensor in state.items():
        state[name] = torch.randn(tensor.shape, generator=generator)
    torch.save(state, folder / "model.pt")
    manifest = {"version": 1, "border": "interior", "pairs": list(entries)}
    (folder / "pairs.yaml").write_text(json.dumps(manifest))
    original, squeezed = folder / "model.pt", folder / "model.squeezed.pt"
    merge_file(original, folder / "pairs.yaml", squeezed, growth="allow")
    return Files(original, squeezed)


def pair(first: Entry, second: Entry, name: str = "", **more: object) -> Entry:
    stem = f"{name}." if name else ""
    return {
        "first": {"name": f"{stem}0", **first},
        "second": {"name": f"{stem}1", **second},
        **more,
    }


PAD = {"padding": 1}
HALVING = {"padding": 1, "stride": 2}
TWICE = nn.Sequential(nn.Conv2d(5, 3, 3, padding=1), nn.Conv2d(3, 1, 3, padding=1))
THREE = {
    "ring": TWICE,
    "line": nn.Sequential(nn.Conv1d(3, 4, 5), nn.Conv1d(4, 2, 3)),
    "exact": nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)),
}
THREE_ENTRIES = (pair(PAD, PAD, "ring"), pair({"padding": 2}, PAD, "line"), pair(PAD, {}, "exact"))


@pytest.fixture
def twice(tmp_path: Path) -> Files:
    """Two 3x3 convolutions with padding 1: one wrong row on every side."""
    return files_of(tmp_path, TWICE, pair(PAD, PAD))


@pytest.fixture
def three(tmp_path: Path) -> Files:
    """An interior layer on two axes, one on one axis, and an exact one."""
    return files_of(tmp_path, nn.ModuleDict(THREE), *THREE_ENTRIES)


@pytest.fixture
def exact(tmp_path: Path) -> Files:
    return files_of(tmp_path, THREE["exact"], pair(PAD, {}))


def headings(report: Report) -> list[str]:
    """What stands over each panel, in one line."""
    places = figure_of(report).subfigs
    return [" ".join(place.get_suptitle().replace("\xa0", " ").split()) for place in places]


def ring(shape: tuple[int, ...], wrong: tuple[set[int], ...]) -> Tensor:
    """Places with a wrong row on any axis; -1 is the last row."""
    mask = torch.zeros(shape, dtype=torch.bool)
    for axis, rows in enumerate(wrong):
        for row in rows:
            mask.select(axis, row).fill_(True)
    return mask


# The numbers.

BOTH = {0, -1}


@dataclass(frozen=True)
class Row:
    """A pair, and where it has to differ: the input size and the wrong rows on each axis."""

    network: nn.Module
    entry: Entry
    size: tuple[int, ...]
    wrong: tuple[set[int], ...]
    told: str


ROWS = {
    "3x3 twice": Row(TWICE, pair(PAD, PAD), (32, 32), (BOTH, BOTH), "1 output row on every side"),
    "one axis": Row(
        nn.Sequential(nn.Conv1d(5, 4, 5, padding=2), nn.ZeroPad1d((2, 0)), nn.Conv1d(4, 3, 3)),
        {
            "chain": [
                {"name": "0", "padding": 2},
                {"type": "pad", "padding": [[2, 0]]},
                {"name": "2"},
            ]
        },
        (64,),
        ({0, 1},),
        "2 samples at the start",
    ),
    "three axes": Row(
        nn.Sequential(nn.Conv3d(2, 2, 3, padding=1), nn.Conv3d(2, 2, 3, padding=1)),
        pair(PAD, PAD),
        (21, 21, 21),
        (BOTH, BOTH, BOTH),
        "1 output row on every side",
    ),
    "strides": Row(
        nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Conv2d(4, 5, 3, 2, 1)),
        pair(HALVING, HALVING),
        (
            130,
            130,
        ),  # of four sizes in a row, the one that is wrong on every side, not by a bias alone
        (BOTH, BOTH),
        "1 output row on every side",
    ),
    "strides, input given": Row(
        nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Conv2d(4, 5, 3, 2, 1)),
        pair(HALVING, HALVING, input=[224, 13]),
        (128, 13),
        ({0}, BOTH),
        "1 row at the top, 1 column at the left, 1 column at the right",
    ),
    "one side of one axis": Row(
        nn.Sequential(nn.Conv2d(2, 2, (3, 1), padding=(1, 0)), nn.Conv2d(2, 2, 3, padding=(1, 0))),
        pair({"padding": [1, 0]}, {"padding": [1, 0]}),
        (32, 32),
        (BOTH, set()),
        "1 row at the top, 1 row at the bottom",
    ),
}


@pytest.mark.parametrize("row", ROWS.values(), ids=list(ROWS))
def test_the_map_is_the_difference_and_lies_where_the_plan_says(tmp_path: Path, row: Row) -> None:
    files = files_of(tmp_path, row.network, row.entry)
    report = files.report(seed=7)
    assert report.ok, report.failures
    (one,) = report.maps
    assert one.size == row.size
    expected, actual = outputs(files, row.network, row.size, seed=7)
    difference = (actual - expected).abs().amax((0, 1))
    torch.testing.assert_close(one.difference, difference, rtol=1e-9, atol=1e-12)
    assert one.largest == pytest.approx(float(expected.abs().max()))
    spoiled = ring(tuple(difference.shape), row.wrong)
    assert torch.equal(one.excused, spoiled)
    assert torch.equal(one.differs, spoiled)
    assert one.share[spoiled].min() > 1e-3
    assert 0 < one.share[~spoiled].max() < 1e-6  # rounding of float32 weights, not nothing
    (heading,) = headings(report)
    worst = 100 * float(one.share.max())
    assert f"{row.told}: differs by up to {worst:.3g} % of the largest output" in heading


def outputs(
    files: Files, network: nn.Module, size: tuple[int, ...], seed: int
) -> tuple[Tensor, Tensor]:
    """Original and squeezed, by torch's modules, on the three random inputs of a seed."""
    network.double().load_state_dict(torch.load(files.original, weights_only=True))
    (squeezed,) = load_layers(files.squeezed, dtype=torch.float64).values()
    generator = torch.Generator().manual_seed(seed)
    channels = next(network.parameters()).shape[1]
    one = (1, channels, *size)
    images = [torch.randn(one, generator=generator, dtype=torch.float64) for _ in range(3)]
    x = torch.cat(images)
    with torch.no_grad():
        return network(x), squeezed(x)


def test_a_small_given_input_is_drawn_as_it_is(tmp_path: Path) -> None:
    files = files_of(tmp_path, TWICE, pair(PAD, PAD, input=[2, 9]))
    report = files.report()
    (one,) = report.maps
    assert (one.size, bool(one.excused.all())) == ((2, 9), True)
    assert "input 2x9 1 output row on every side: differs" in headings(report)[0]


def test_only_what_may_differ_is_measured_and_only_if_asked(three: Files) -> None:
    assert [one.name for one in three.report().maps] == ["ring.0", "line.0"]
    assert verify_files(three.original, three.squeezed).maps == ()


def test_a_difference_that_the_maps_alone_show_is_a_failure(
    twice: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the plan excuses nothing any more, so that the ring itself is too much."""
    monkeypatch.setattr("convsqueeze.verify.maps.wrong_rows", lambda *place: frozenset())
    assert verify_files(twice.original, twice.squeezed).ok
    report = twice.report()
    (told,) = report.failures
    assert "0: differs by up to" in told
    assert "in 124 places that the border does not excuse, random input of 32x32" in told
    assert "FAILED: differs" in headings(report)[0]


# What is drawn of them.


def drawn_image(report: Report, panel: int = 0) -> "np.ma.MaskedArray[Any, Any]":
    axes = figure_of(report).subfigs[panel].axes[0]
    array: np.ma.MaskedArray[Any, Any] = np.ma.asarray(axes.images[0].get_array())
    return array


def test_an_image_shows_percent_on_the_ring_and_nothing_inside(twice: Files) -> None:
    report = twice.report()
    (one,) = report.maps
    image = drawn_image(report)
    spoiled = ring((32, 32), (BOTH, BOTH)).numpy()
    assert np.array_equal(~image.mask, spoiled)
    assert np.allclose(image[spoiled], 100 * one.share.numpy()[spoiled])
    assert image.max() == pytest.approx(100 * float(one.share.max()))
    axes, bar = figure_of(report).subfigs[0].axes
    (frame,) = axes.patches
    assert frame.get_bbox().extents.tolist() == [0.5, 0.5, 30.5, 30.5]
    assert bar.get_ylabel().replace("\xa0", " ") == "% of the largest output"


def test_a_volume_is_looked_through_where_the_border_does_not_hide_it(tmp_path: Path) -> None:
    """The first and last slice differ everywhere: with them, no ring could be seen."""
    row = ROWS["three axes"]
    report = files_of(tmp_path, row.network, row.entry).report()
    (one,) = report.maps
    image = drawn_image(report)
    spoiled = ring((21, 21), (BOTH, BOTH)).numpy()
    assert np.array_equal(~image.mask, spoiled)
    through = 100 * one.share[1:-1].amax(0).numpy()
    assert np.allclose(image[spoiled], through[spoiled])
    assert "largest over 19 of 21 slices of the first axis" in headings(report)[0]


def test_one_axis_is_a_row_of_pixels(three: Files) -> None:
    report = three.report()
    line = report.maps[1]
    image = drawn_image(report, panel=1)
    assert image.shape == (1, 64)
    assert np.flatnonzero(~image.mask).tolist() == [0, 63]
    assert np.allclose(image[0, [0, 63]], 100 * line.share[[0, 63]].numpy())
    axes = figure_of(report).subfigs[1].axes[0]
    (frame,) = axes.patches
    assert frame.get_bbox().extents.tolist() == [0.5, -0.5, 62.5, 0.5]
    assert list(axes.get_yticks()) == []


def test_headings_name_the_layers(tmp_path: Path) -> None:
    """Also names that matplotlib would take for formulas, and more of them than there is room."""
    names = [f"{'very_' * 6}long$x_{index}$" for index in range(6)]
    network = nn.ModuleDict({name: nn.Conv2d(2, 2, 3) for name in names})
    chain = [{"name": name, "padding": int(index < 2)} for index, name in enumerate(names)]
    report = files_of(tmp_path, network, {"into": "whole", "chain": chain}).report()
    (heading,) = headings(report)
    assert heading.startswith(f"whole from {names[0]} 3x3, {names[1]} 3x3, ")
    assert " ... kernel 13x13, input " in heading
    assert len(rendered(report, ".svg")) > 1000


def test_every_panel_has_its_place(three: Files) -> None:
    report = three.report()
    first, second = report.maps
    for count, grid in ((1, (1, 1)), (3, (1, 3)), (7, (3, 3))):
        maps = (first, second, *(replace(first, name=f"{i}") for i in range(5)))[:count]
        figure = figure_of(replace(report, maps=maps))
        assert len(figure.subfigs) == grid[0] * grid[1]
        width, height = figure.get_size_inches()
        assert width == pytest.approx(3.8 * grid[1])
        assert 3 * grid[0] < height < 5 * grid[0]
        assert sum(bool(place.axes) for place in figure.subfigs) == count


def test_too_many_panels_are_told_of(three: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed is drawn, then what differs most; the rest is named on sheet and console."""
    report = three.report()
    line = report.maps[1]
    small = replace(line, name="small", difference=line.difference / 1000)
    failing = replace(report.layers[0], name="small", problem="is wrong")
    more = replace(report, maps=(*report.maps, small))
    assert [one.name for one in panels(more)] == ["ring.0", "line.0", "small"]
    monkeypatch.setattr("convsqueeze.plot.MOST_PANELS", 2)
    assert [one.name for one in panels(more)] == ["ring.0", "line.0"]
    failed = replace(more, layers=(*more.layers, failing))
    assert [one.name for one in panels(failed)][1:] == ["small"]
    legend = " ".join(str(figure_of(more).get_supxlabel()).split())
    assert "1 of 3 layers are not drawn, 2 panels being the most that can be read: small" in legend
    monkeypatch.setattr("convsqueeze.plot.MOST_PANELS", 1)
    outcome = three.drawn(three.original.with_name("one.png"))
    assert "note: 1 of 2 layers are not drawn" in outcome.stdout
    assert "drawn: 1 layer, " in outcome.stdout


# The file.


def test_a_picture_with_the_ring_around_grey(twice: Files) -> None:
    plot = twice.original.with_name("border.png")
    outcome = twice.drawn(plot)
    assert (outcome.status, outcome.errors) == (0, [])
    assert f"drawn: 1 layer, {plot}" in outcome.stdout
    with Image.open(plot) as image:
        assert image.format == "PNG"
        assert not image.info.keys() & {"Software", "Creation Time"}
        pixels = np.asarray(image.convert("RGB")).astype(int)
    grey = (pixels == 224).all(axis=2)
    down, across = (np.flatnonzero(grey.sum(axis=1 - axis) > 100) for axis in (0, 1))
    top, bottom, left, right = down[0], down[-1], across[0], across[-1]
    inside = grey[top : bottom + 1, left : right + 1]
    assert min(inside.shape) > 150
    assert inside.mean() > 0.99
    drawn = ~grey & (pixels < 250).any(axis=2)
    for strip in (
        drawn[top - 6 : top - 2, left:right],
        drawn[bottom + 3 : bottom + 7, left:right],
        drawn[top:bottom, left - 6 : left - 2],
        drawn[top:bottom, right + 3 : right + 7],
    ):
        assert strip.mean() > 0.9


@pytest.mark.parametrize("suffix", METADATA)
def test_the_same_seed_gives_the_same_bytes(twice: Files, suffix: str) -> None:
    first = rendered(twice.report(), suffix)
    assert rendered(twice.report(), suffix) == first
    assert rendered(twice.report(seed=1), suffix) != first


def test_whatever_style_the_user_has_set(twice: Files) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    report = twice.report()
    plain = rendered(report, ".png")
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "savefig.dpi": 20}):
        assert rendered(report, ".png") == plain
        assert matplotlib.rcParams["font.size"] == 30


def test_json_tells_where_the_picture_is(twice: Files, tmp_path: Path) -> None:
    outcome = twice.drawn(tmp_path / "Border.PNG", "--json")
    assert outcome.status == 0
    assert outcome.data["plot"] == str(tmp_path / "Border.PNG")
    assert (tmp_path / "Border.PNG").read_bytes().startswith(b"\x89PNG")
    without = run_here("verify", twice.original, twice.squeezed, "--json")
    assert {**without.data, "plot": outcome.data["plot"]} == outcome.data


def test_nothing_to_draw(exact: Files) -> None:
    plot = exact.original.with_name("border.png")
    outcome = exact.drawn(plot)
    assert (outcome.status, outcome.stderr) == (0, "")
    note = "note: nothing to draw: every layer is exact at every pixel"
    assert note in outcome.stdout.splitlines()
    assert exact.drawn(plot, "--json").data["plot"] is None
    assert not plot.exists()


# Verification that fails.


def test_a_failing_layer_is_drawn_and_the_exit_is_1(three: Files, tmp_path: Path) -> None:
    """One weight of an exact layer, one so little that only an impulse shows it."""

    def fault(tensors: dict[str, Tensor]) -> None:
        tensors["exact.0.weight"][1, 2, 0, 1] += 1.0
        weight = tensors["line.0.weight"]
        tensors["line.0.weight"] = moved_by_ulps(weight, (0, 0, 0), 4)

    faulty = three.faulty(fault)
    plot = tmp_path / "border.png"
    outcome = three.drawn(plot, squeezed=faulty)
    plain = run_here("verify", three.original, faulty)
    assert (outcome.status, outcome.stderr) == (plain.status, plain.stderr)
    assert outcome.status == 1
    assert len(outcome.errors) == 2
    assert f"drawn: 3 layers, {plot}" in outcome.stdout
    assert plot.read_bytes().startswith(b"\x89PNG")
    report = three.report(faulty)
    told = dict(zip([one.name for one in panels(report)], headings(report), strict=True))
    assert "FAILED" not in told["ring.0"]
    assert "FAILED: differs by" in told["exact.0"]
    assert "is rounding, line.0.weight, output channel 0, at [0, 0]" in told["line.0"]
    (one,) = (one for one in report.maps if one.name == "exact.0")
    assert not bool(one.excused.any())
    below = ~ring((32, 32), ({0}, set()))  # the tap looks one row up, where there is padding
    assert torch.equal(one.differs, below)
    assert np.array_equal(~drawn_image(report, panel=2).mask, below.numpy())


def test_no_number_is_drawn_as_such(three: Files) -> None:
    def fault(tensors: dict[str, Tensor]) -> None:
        tensors["exact.0.bias"][0] = torch.inf
        tensors["line.0.weight"][0, 0, 0] = torch.nan

    report = three.report(three.faulty(fault))
    assert not report.ok
    finite = [bool(one.share.isfinite().all()) for one in report.maps]
    assert finite == [True, False, False]
    assert "Cyan: no finite number." in " ".join(str(figure_of(report).get_supxlabel()).split())
    assert len(rendered(report, ".png")) > 1000


def test_a_linear_layer_that_failed_is_one_number(tmp_path: Path) -> None:
    entry = {"chain": [{"name": "0", "type": "linear"}, {"name": "1", "type": "linear"}]}
    files = files_of(tmp_path, nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)), entry)

    def fault(tensors: dict[str, Tensor]) -> None:
        tensors["0.bias"][1] += 1.0

    report = files.report(files.faulty(fault))
    (one,) = report.maps
    assert one.difference.shape == ()
    assert float(one.difference) == pytest.approx(1.0, rel=1e-5)
    assert len(rendered(report, ".png")) > 1000


def test_a_layer_that_cannot_be_run_is_named(three: Files, tmp_path: Path) -> None:
    def fault(tensors: dict[str, Tensor]) -> None:
        tensors["line.0.weight"] = tensors["line.0.weight"].half()

    outcome = three.drawn(tmp_path / "border.png", squeezed=three.faulty(fault))
    assert outcome.status == 1
    assert "note: not drawn, as they could not be run: line.0" in outcome.stdout
    assert "drawn: 1 layer, " in outcome.stdout


def test_nothing_is_drawn_where_nothing_can_be_run(twice: Files, tmp_path: Path) -> None:
    faulty = twice.faulty(lambda tensors: tensors.update({"0.weight": tensors["0.weight"].half()}))
    outcome = twice.drawn(tmp_path / "border.png", squeezed=faulty)
    assert outcome.status == 1
    assert "note: nothing to draw: 0 could not be run" in outcome.stdout
    assert not (tmp_path / "border.png").exists()


def test_without_a_plan_nothing_was_run(twice: Files, tmp_path: Path) -> None:
    torch.save({"other.weight": torch.zeros(1)}, tmp_path / "other.pt")
    outcome = Files(tmp_path / "other.pt", twice.squeezed).drawn(tmp_path / "border.png")
    assert outcome.status == 1
    assert "note: nothing to draw: no layer was run" in outcome.stdout


# Refusals, before anything is verified.


def refused(outcome: Outcome) -> str:
    assert (outcome.status, outcome.stdout) == (2, "")
    (error,) = outcome.errors
    return error


def test_without_matplotlib(twice: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    plot = twice.original.with_name("border.png")
    error = refused(twice.drawn(plot))
    assert error.startswith(f"{plot}: cannot be drawn (")
    assert error.endswith("Install it with `pip install matplotlib`, or leave --plot out.")
    assert not plot.exists()
    assert run_here("verify", twice.original, twice.squeezed).status == 0


@pytest.mark.parametrize("name", ["border", "border.jpg", "border.png.gz", ".png"])
def test_a_suffix_that_is_not_drawn(twice: Files, name: str) -> None:
    plot = twice.original.with_name(name)
    error = refused(twice.drawn(plot))
    assert error == (
        f"{plot}: does not end in .png, .pdf, .svg, one of which was needed. Name the figure so."
    )
    assert not plot.exists()


def test_an_existing_file_is_kept_without_overwrite(twice: Files, tmp_path: Path) -> None:
    plot = tmp_path / "border.png"
    plot.write_bytes(b"an earlier picture")
    assert refused(twice.drawn(plot)).endswith("or replace it with --overwrite.")
    assert plot.read_bytes() == b"an earlier picture"
    before = sorted(path.name for path in tmp_path.iterdir())
    assert twice.drawn(plot, "--overwrite").status == 0
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_places_that_cannot_be_written(twice: Files, tmp_path: Path) -> None:
    assert "Create it first." in refused(twice.drawn(tmp_path / "no" / "border.png"))
    assert "is not a directory" in refused(twice.drawn(twice.original / "border.png"))
    (tmp_path / "folder.png").mkdir()
    assert "no regular file" in refused(twice.drawn(tmp_path / "folder.png", "--overwrite"))
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nowhere")
    assert "exists already" in refused(twice.drawn(tmp_path / "dangling.png"))


def test_an_input_is_never_replaced(twice: Files, tmp_path: Path) -> None:
    for source in (twice.original, twice.squeezed):
        plot, content = tmp_path / f"{source.stem}.png", source.read_bytes()
        os.link(source, plot)
        assert "is an input" in refused(twice.drawn(plot, "--overwrite"))
        assert source.read_bytes() == plot.read_bytes() == content


def test_a_file_that_appears_meanwhile_is_kept(
    twice: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plot = tmp_path / "border.png"
    report = twice.report()

    def meanwhile(report: Report, suffix: str) -> bytes:
        plot.write_bytes(b"somebody else's")
        return b"a picture"

    monkeypatch.setattr("convsqueeze.plot.rendered", meanwhile)
    with pytest.raises(OutputError, match="has come to exist while"):
        write_plot(report, plot, overwrite=False)
    assert plot.read_bytes() == b"somebody else's"
    assert [path.name for path in tmp_path.glob(".convsqueeze*")] == []


def test_maps_are_values(twice: Files) -> None:
    (one,) = twice.report().maps
    assert isinstance(one, DifferenceMap)
    with pytest.raises(AttributeError):
        one.largest = 0.0  # type: ignore[misc]
