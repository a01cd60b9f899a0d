"""Faults planted in correction tensors and in what the recipe says of them: `verify` names each.

See `border_faults` for how small a fault it promises to see. Every file holds one fault in each of
its layers, which are verified apart, so that a file stands for as many cases.
"""

import json
from collections.abc import Callable, Iterator
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from convsqueeze import merge_file
from convsqueeze.checkpoint import from_state_dict
from convsqueeze.errors import VerificationError
from convsqueeze.manifest import manifest_from_data
from convsqueeze.module import module_of
from convsqueeze.plan import make_plan
from convsqueeze.squeezing import border_terms, recipe_layer, squeeze_one
from convsqueeze.verify.layer import check_layer
from tests.border_checkpoint import CORRECTED, TABLE, border_state_dict, dominated, manifest_of
from tests.border_faults import (
    CLASS_FAULTS,
    EXTRA,
    FORM_FAULTS,
    RECIPE_FAULTS,
    VALUE_FAULTS,
    Change,
    border_names,
    changed_or_none,
    just_too_far,
)
from tests.command_line import run_here
from tests.fault_tables import SPOTS, index_of
from tests.planted import DTYPES, NARROW, Squeezing, assert_told, saved
from tests.squeezed_files import Parts, moved_by_ulps

pytestmark = pytest.mark.stress

FLAT = tuple(name for name in TABLE if name != "volume")
FILES = (FLAT, ("volume",))
RECIPES = ("twice", "strided", "three", "branches", "up")
Make = Callable[..., Squeezing]


@pytest.fixture(scope="session")
def corrected(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Layers of the border checkpoint merged, once for each dtype and suffix."""

    @cache
    def make(dtype: str, names: tuple[str, ...] = FLAT, suffix: str = ".pt") -> Squeezing:
        folder = tmp_path_factory.mktemp(dtype)
        original = saved(border_state_dict(DTYPES[dtype], names), folder / f"model{suffix}")
        return merged(original, manifest_of(*names))

    return make


def merged(original: Path, manifest: dict[str, Any]) -> Squeezing:
    made = Squeezing(
        original,
        original.with_name(f"model.squeezed{original.suffix}"),
        original.with_name("pairs.yaml"),
    )
    made.pairs.write_text(json.dumps(manifest))
    merge_file(original, manifest_from_data(manifest), made.squeezed, growth="allow")
    return made


Fault = Callable[[Parts, str, str], Tensor | None]
"""What becomes of a layer's correction tensor, given its name; None where it would stay."""


def faulty_files(make: Make, fault: Fault) -> Iterator[tuple[Squeezing, Parts, dict[str, str]]]:
    """Files, in one dtype after another, with this fault in one correction tensor of each layer,
    whose name is given by layer, until every tensor had its turn.
    """
    for number, names in enumerate(FILES):
        for turn in count():
            made = make(list(DTYPES)[(turn + number) % len(DTYPES)], names)
            parts = made.parts()
            cases = {name: possible(parts, name, fault) for name in names}
            if turn >= max(map(len, cases.values())):
                break
            chosen = {name: found[turn % len(found)] for name, found in cases.items() if found}
            parts.tensors.update(chosen.values())
            yield made, parts, {name: key for name, (key, _) in chosen.items()}


def possible(parts: Parts, name: str, fault: Fault) -> list[tuple[str, Tensor]]:
    tried = ((key, fault(parts, name, key)) for key in border_names(parts, name))
    return [(key, faulty) for key, faulty in tried if faulty is not None]


@pytest.mark.parametrize(
    ("dtype", "suffix"), [*((dtype, ".pt") for dtype in DTYPES), ("bfloat16", ".safetensors")]
)
@pytest.mark.parametrize("names", FILES, ids=["flat", "volume"])
def test_honest_file_is_verified(
    corrected: Make, names: tuple[str, ...], dtype: str, suffix: str
) -> None:
    made = corrected(dtype, names, suffix)
    outcome = run_here("verify", made.original, made.squeezed, "--json")
    assert (outcome.status, outcome.errors) == (0, [])
    policies = {layer["name"]: layer["border"]["error"] for layer in outcome.data["layers"]}
    assert list(policies) == list(names)
    parts = made.parts()
    assert all(border_names(parts, name) for name in names if name in CORRECTED)
    assert not border_names(parts, "plain")


def test_honest_file_is_verified_exhaustively(corrected: Make) -> None:
    made = corrected("float32", ("constant", "mirrored", "three", "up"))
    assert run_here("verify", made.original, made.squeezed, "--exhaustive").status == 0


@pytest.mark.parametrize("spot", ["largest", "nearest zero"])
def test_entry_moved_as_far_as_is_promised(corrected: Make, tmp_path: Path, spot: str) -> None:
    def place(parts: Parts, key: str) -> tuple[int, ...]:
        return index_of(SPOTS[spot](parts.tensors[key]), parts.tensors[key])

    def moved(parts: Parts, name: str, key: str) -> Tensor:
        return just_too_far(parts, name, key, place(parts, key))

    for made, parts, faulty in faulty_files(corrected, moved):
        outcome = made.verified(parts, tmp_path)
        for name, key in faulty.items():
            channel = place(made.parts(), key)[0]
            at = "." if key == "bias" else ", at ["
            assert_told(outcome, f"{name}: ", "differs by", f"output channel {channel}{at}")


@pytest.mark.parametrize("fault", VALUE_FAULTS)
def test_wrong_values(corrected: Make, tmp_path: Path, fault: str) -> None:
    assert_each_told(corrected, tmp_path, VALUE_FAULTS[fault], "{name}: ", "output channel")


@pytest.mark.parametrize("fault", FORM_FAULTS)
def test_wrong_form(corrected: Make, tmp_path: Path, fault: str) -> None:
    assert_each_told(corrected, tmp_path, FORM_FAULTS[fault], "{name}: ", "{key} ", "was needed")


@pytest.mark.parametrize("dims", [(0, 1), (-1, -2), (0, -1)])
def test_tensor_transposed(corrected: Make, tmp_path: Path, dims: tuple[int, int]) -> None:
    """A matter of values or, where the sizes differ, of shape."""
    turned = changed_or_none(lambda tensor: tensor.transpose(*dims))
    assert_each_told(corrected, tmp_path, turned, "{name}: ")


def assert_each_told(make: Make, folder: Path, change: Change, *words: str) -> None:
    """Every correction tensor of every layer with this fault, which is told of it alone."""
    seen = set()
    for made, parts, faulty in faulty_files(make, lambda parts, _, k: change(parts.tensors[k])):
        outcome = made.verified(parts, folder)
        for name, key in faulty.items():
            assert_told(outcome, *(word.format(name=name, key=key) for word in words))
        assert len(outcome.errors) == len(faulty)
        seen |= set(faulty.values())
    assert len(seen) > 5


def test_tensor_removed(corrected: Make, tmp_path: Path) -> None:
    for made, parts, gone in faulty_files(corrected, lambda parts, _, key: parts.tensors[key]):
        for key in gone.values():
            del parts.tensors[key]
        outcome = made.verified(parts, tmp_path)
        for name, key in gone.items():
            assert_told(outcome, f"{key} is missing")
            assert_told(outcome, f"{name}: ", f"{key} is missing")


@pytest.mark.parametrize("extra", EXTRA)
def test_tensor_too_many(corrected: Make, tmp_path: Path, extra: str) -> None:
    """Also beside a layer that has no corrections."""
    made = corrected("float16")
    parts = made.parts()
    for name in FLAT:
        parts.tensors[f"{name}.border.{extra}"] = torch.zeros(2, 2, dtype=torch.float16)
    outcome = made.verified(parts, tmp_path)
    for name in FLAT:
        assert_told(outcome, f"{name}.border.{extra} is in neither")
    for name in FLAT[:-1]:
        assert_told(outcome, f"{name}: ", f"{name}.border.{extra} is none of the tensors")


# Every single number.


@pytest.mark.parametrize("name", CORRECTED)
def test_every_entry_of_every_correction_tensor_is_looked_at(name: str) -> None:
    """Each moved as far as is promised, in one dtype after another."""
    layers = [in_memory(border_state_dict(dtype, (name,)), name) for dtype in DTYPES.values()]
    turn = count()
    for key in border_names(layers[0][0], name):
        for element in range(layers[0][0].tensors[key].numel()):
            parts, problem_of = layers[next(turn) % len(layers)]
            place = index_of(element, parts.tensors[key])
            faulty = {**parts.tensors, key: just_too_far(parts, name, key, place)}
            assert f"output channel {place[0]}, at [" in (problem_of(faulty) or ""), (key, place)


@pytest.mark.parametrize(("name", "size"), [("strided", [3, 5]), ("three", [2]), ("line", [1])])
def test_every_entry_for_one_input_size_is_looked_at(name: str, size: list[int]) -> None:
    parts, problem_of = in_memory(border_state_dict(torch.float32, (name,)), name, size)
    assert border_names(parts, name)
    for key in border_names(parts, name):
        for element in range(parts.tensors[key].numel()):
            place = index_of(element, parts.tensors[key])
            faulty = {**parts.tensors, key: just_too_far(parts, name, key, place)}
            assert f"output channel {place[0]}, at [" in (problem_of(faulty) or ""), (key, place)


def test_entry_that_outweighs_what_it_is_added_to_changed_by_four_ulps() -> None:
    layers = [in_memory(dominated(DTYPES[dtype]), "twice") for dtype in NARROW]
    turn = count()
    for key in ("twice.border.0.weight", "twice.border.1.weight", "twice.border.01.weight"):
        for element in range(layers[0][0].tensors[key][0].numel()):
            number = next(turn)
            parts, problem_of = layers[number % len(layers)]
            place = index_of(element, parts.tensors[key])
            moved = moved_by_ulps(parts.tensors[key], place, 4 if number % 2 else -4)
            told = problem_of({**parts.tensors, key: moved})
            assert f"output channel {place[0]}, at [" in (told or ""), (key, place)


@pytest.mark.parametrize("dtype", NARROW)
def test_dominated_entries_outweigh_what_they_are_added_to(dtype: str) -> None:
    """The first and the last sample are read through the middle tap of the merged kernel."""
    tensors = in_memory(dominated(DTYPES[dtype]), "twice")[0].tensors
    plain, top, left, corner = (
        tensors[f"twice.{key}"].double().abs()
        for key in ("weight", "border.0.weight", "border.1.weight", "border.01.weight")
    )
    assert (top > plain[:, :, 2:3]).all()
    assert (left > plain[..., 2:3]).all()
    assert (corner > top[..., 2:3]).all()
    assert (corner > left[:, :, 2:3]).all()


def in_memory(
    tensors: Any, name: str, size: list[int] | None = None
) -> tuple[Parts, Callable[[Any], str | None]]:
    """The merge of one layer, and what verification says of it with other tensors."""
    manifest = manifest_of(name)
    if size is not None:
        manifest["pairs"][0]["input"] = size
    checkpoint = from_state_dict(tensors)
    (merge,) = make_plan(manifest_from_data(manifest), checkpoint, growth="allow").merges
    layer = recipe_layer(merge)
    stored = squeeze_one(merge, checkpoint.load).tensors()

    def problem(given: Any) -> str | None:
        module = module_of(layer, given)
        return check_layer(merge, module, checkpoint.load, trials=1, seed=0).problem

    assert problem(stored) is None
    recipe = {"layers": [layer.model_dump(mode="json", by_alias=True)]}
    return Parts(stored, recipe), problem  # type: ignore[arg-type]


# What the recipe says.


def recipe_rounds(made: Squeezing, fault: Any) -> Iterator[tuple[Parts, list[str]]]:
    """Files in each of which every layer that it is possible for has one variant of a fault."""
    for index in count():
        parts, faulty = made.parts(), []
        assert parts.recipe is not None
        for place, layer in enumerate(parts.recipe["layers"]):
            found = fault(layer) if layer["name"] in CORRECTED else []
            if index < len(found):
                parts.recipe["layers"][place] = found[index]
                faulty.append(layer["name"])
        if not faulty:
            return
        yield parts, faulty


MEANT = ("row shifted", "column shifted", "sign of a factor", "another tap", "entry lost")
SEEN_IN_OUTPUTS = (*MEANT, "classes exchanged")


@pytest.mark.parametrize("fault", RECIPE_FAULTS)
def test_wrong_recipe(corrected: Make, tmp_path: Path, fault: str) -> None:
    """Told by the recipe that was needed and, where what is run changes, by its outputs."""
    key, change = RECIPE_FAULTS[fault]
    made, seen = corrected("bfloat16", RECIPES), 0
    for parts, faulty in recipe_rounds(made, change):
        outcome = made.verified(parts, tmp_path)
        for name in faulty:
            assert_told(outcome, f"its recipe says {key}", f" of {name}, ", " needed")
            if fault in SEEN_IN_OUTPUTS:
                assert_told(outcome, f"{name}: ", "output channel")
        seen += len(faulty)
    assert seen


@pytest.mark.parametrize("fault", CLASS_FAULTS)
@pytest.mark.parametrize("name", ["twice", "strided"])
def test_sizes_without_a_class(corrected: Make, tmp_path: Path, name: str, fault: str) -> None:
    made = corrected("float32", (name,))
    for parts, _ in recipe_rounds(made, CLASS_FAULTS[fault]):
        outcome = made.verified(parts, tmp_path)
        assert_told(outcome, "its recipe says corrections", f" of {name}, ")
        told = [line for line in outcome.errors if line.startswith(f"{name}: ")]
        left_out = any("corrected for inputs of" in line for line in told)
        # a size may also find the wrong class before another finds none
        assert left_out or (fault == "another period" and any("differs by" in x for x in told))


def test_corrections_of_a_plain_layer(corrected: Make, tmp_path: Path) -> None:
    made = corrected("float32")
    parts = made.parts()
    line = parts.layer("line")["corrections"]
    parts.layer("plain").update(corrections=line, border="corrected")
    outcome = made.verified(parts, tmp_path)
    assert_told(outcome, "its recipe says corrections", " of plain, ")
    assert_told(outcome, "its recipe says border corrected of plain, exact was needed")
    assert_told(outcome, "plain: ", "plain.border.0.bias is missing")


def test_corrected_file_made_an_honest_interior_one_shows_against_the_users_manifest(
    corrected: Make, tmp_path: Path
) -> None:
    """A file is only as good as its words; `--pairs` brings the user's."""
    made = corrected("float32", ("line",))
    parts = made.parts()
    for key in border_names(parts, "line"):
        del parts.tensors[key]
    assert parts.recipe is not None
    parts.recipe["manifest"]["border"] = "interior"
    numbers = sum(tensor.numel() for tensor in parts.tensors.values())
    parts.layer("line").update(corrections=None, border="interior", weights_after=numbers)
    assert made.verified(parts, tmp_path).status == 0
    outcome = made.verified(parts, tmp_path, "--pairs", made.pairs)
    assert_told(outcome, "another manifest", str(made.pairs))
    assert_told(outcome, "its recipe says border interior of line, corrected was needed")


# Faults in merging itself.


@pytest.mark.parametrize("name", ["twice", "constant", "up"])
def test_merge_with_a_wrong_border_term_writes_nothing(
    corrected: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    made = corrected("float32", (name,))

    def wrong(*arguments: Any) -> Any:
        terms = border_terms(*arguments)
        last = list(terms)[-1]
        return {**terms, last: terms[last] * (1 + 1e-5)}

    monkeypatch.setattr("convsqueeze.squeezing.border_terms", wrong)
    with pytest.raises(VerificationError, match=rf"{name}: differs by .* output channel"):
        merge_file(made.original, made.pairs, tmp_path / "out.pt", growth="allow")
    assert not list(tmp_path.iterdir())


# What is not seen.

SUMMED: dict[str, Any] = {
    "version": 1,
    "border": "corrected",
    "pairs": [
        {
            "into": "summed",
            "chain": [
                {"name": "a"},
                {"name": "b", "stride": 2, "padding": 2, "padding_mode": "replicate"},
                {"name": "c", "stride": 3, "padding": 1},
            ],
        }
    ],
}


@pytest.mark.parametrize("options", [[], ["--exhaustive"]])
def test_two_entries_exchanged_that_most_sizes_only_add_up(
    tmp_path: Path, options: list[str]
) -> None:
    """Border taps 0 and 5 stand at one place of all classes but one."""
    torch.manual_seed(0)
    tensors: Any = {"a.weight": torch.randn(2, 1, 3), "b.weight": torch.randn(2, 2, 3)}
    tensors["c.weight"] = torch.randn(1, 2, 1)
    made = merged(saved(tensors, tmp_path / "model.pt"), SUMMED)
    parts = made.parts()
    stored = parts.tensors["summed.border.0.weight"]
    stored[..., [0, 5]] = stored[..., [5, 0]]
    assert_told(made.verified(parts, tmp_path, *options), "summed: ", "output channel 0")
