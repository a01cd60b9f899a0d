"""The files that version 0.1.0 wrote, read by torch and the safetensors library alone.

How they were made: `fixtures/squeezed_by_0_1/make.py`.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.squeezed_files import RECIPE_KEY

FIXTURES = Path(__file__).parent / "fixtures" / "squeezed_by_0_1"
INDEX_SUFFIX = ".index.json"
UNIT_ROUNDOFF = 2.0**-53


@dataclass(frozen=True)
class Case:
    """An original, its manifest, and what `merge` made of them with these options."""

    name: str
    original: Path
    pairs: Path
    squeezed: Path
    options: tuple[str, ...] = ()

    @property
    def key(self) -> str | None:
        """What `--key` chooses in both files."""
        return self.options[self.options.index("--key") + 1] if "--key" in self.options else None

    @property
    def key_options(self) -> tuple[str, ...]:
        return () if self.key is None else ("--key", self.key)

    @property
    def expected(self) -> "dict[str, list[Expected]]":
        """By layer, in float64."""
        found: dict[str, list[Expected]] = {}
        tensors = load_file(self.squeezed.with_name("expected.safetensors"))
        for place in sorted({name.rpartition("/")[0] for name in tensors}):
            values = (tensors[f"{place}/{role}"] for role in ("input", "output", "magnitude"))
            found.setdefault(place.rpartition("/")[0], []).append(
                Expected(*(value.double() for value in values))
            )
        return found


@dataclass(frozen=True)
class Expected:
    """What a squeezed layer gives, and the sum of magnitudes of what it adds up."""

    input: Tensor
    output: Tensor
    magnitude: Tensor

    def is_met_by(self, module: nn.Module, dtype: torch.dtype) -> bool:
        """Whether a layer in this dtype gives the same but for what sums in it can lose."""
        return self.share(module, dtype) <= 1

    def share(self, module: nn.Module, dtype: torch.dtype) -> float:
        """The largest difference as a share of the bound.

        Of `n` roundings in float64 each may cost a unit; in a narrower dtype, in which sums are
        kept wider or rounding errors mostly cancel, eight are enough.
        """
        terms = sum(parameter.numel() for parameter in module.parameters())
        lost = 2 * terms * UNIT_ROUNDOFF
        if dtype != torch.float64:
            lost += 8 * torch.finfo(dtype).eps
        with torch.no_grad():
            y = module(self.input.to(dtype))
        assert y.dtype == dtype
        assert y.shape == self.output.shape
        bound = lost * self.magnitude + torch.finfo(dtype).tiny
        return float(((y.double() - self.output).abs() / bound).max())


def _cases() -> Iterator[Case]:
    for name, arguments in json.loads((FIXTURES / "cases.json").read_text()).items():
        original, _, pairs, _, squeezed, *options = arguments
        paths = ((FIXTURES / name / path).resolve() for path in (original, pairs, squeezed))
        yield Case(name, *paths, tuple(options))


CASES = {case.name: case for case in _cases()}


@dataclass(frozen=True)
class Stored:
    """What is in a file, read by torch and the safetensors library."""

    tensors: dict[str, Tensor]
    recipe: dict[str, Any]
    around: Any = field(default=None)


@cache
def stored(path: Path, key: str | None = None) -> Stored:
    if path.name.endswith(INDEX_SUFFIX):
        index = json.loads(path.read_text())
        shards = {n: load_file(path.with_name(n)) for n in set(index["weight_map"].values())}
        tensors = {name: shards[shard][name] for name, shard in index["weight_map"].items()}
        recipe = index["metadata"].pop(RECIPE_KEY)
        return Stored(tensors, json.loads(recipe), index["metadata"])
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return Stored(tensors, json.loads(metadata.pop(RECIPE_KEY)), metadata)
    whole = torch.load(path, weights_only=True)
    wrapper = key or next((name for name in ("state_dict", "params_ema") if name in whole), None)
    state_dict = whole if wrapper is None else whole[wrapper]
    metadata = dict(state_dict._metadata)
    recipe = metadata.pop(RECIPE_KEY)
    others = {k: v for k, v in whole.items() if k != wrapper} if wrapper else {}
    return Stored(dict(state_dict), json.loads(recipe), {"metadata": metadata, **others})


def assert_equal(found: Any, wanted: Any) -> None:
    """The same mappings, tensors and plain values."""
    assert type(found) is type(wanted)
    if isinstance(wanted, Tensor):
        assert torch.equal(found, wanted)
    elif isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            assert_equal(found[name], value)
    else:
        assert found == wanted


def with_recipe_of(path: Path, folder: Path, change: dict[str, Any]) -> Path:
    """A copy of a squeezed file whose recipe says something else."""
    for other in path.parent.glob("squeezed*"):
        (folder / other.name).write_bytes(other.read_bytes())
    copy = folder / path.name
    recipe = json.dumps({**stored(path).recipe, **change})
    if path.name.endswith(INDEX_SUFFIX):
        index = json.loads(path.read_text())
        index["metadata"][RECIPE_KEY] = recipe
        copy.write_text(json.dumps(index))
    elif path.suffix == ".safetensors":
        save_file(load_file(path), copy, {"format": "pt", RECIPE_KEY: recipe})
    else:
        state_dict = torch.load(path, weights_only=True)
        state_dict._metadata[RECIPE_KEY] = recipe
        torch.save(state_dict, copy)
    return copy
