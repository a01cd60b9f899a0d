"""One random manifest, planned, squeezed and compared with what torch computes layer by layer.

Three answers are right: the program merges and torch agrees at every pixel of every size tried; it
refuses for the border and an input exists on which the plain merge is wrong (and right away from
the border); or it gives a reason why the layers are not one convolution. Anything else raises
`Disagreement` with the case in it.
"""

import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from convsqueeze.algebra.border import wrong_rows
from convsqueeze.checkpoint import from_state_dict
from convsqueeze.errors import PlanError
from convsqueeze.manifest import manifest_from_data
from convsqueeze.module import SqueezedConv, module_of
from convsqueeze.plan import Merge, make_plan
from convsqueeze.recipe import read_recipe
from convsqueeze.squeeze import Squeezed, recipe_of, squeeze

from .manifests import Case, random_case
from .torch_layers import BranchesDisagreeError, network, runs, smallest_size

Verdict = Literal["exact", "border", "not one"]
VERDICTS: tuple[Verdict, ...] = ("exact", "border", "not one")
Size = tuple[int, ...]

NOISE = 1e-12
"""What float64 sums of at most a few thousand products lose, relative to their magnitude."""
WRONG = 1e-6
"""A difference that no rounding makes, relative to the magnitude of the output."""

_ROOMY = {0: ((),), 1: ((40,), (110,)), 2: ((12, 12), (36, 36)), 3: ((7,) * 3, (15,) * 3)}
_MOST_SIZES = {0: 1, 1: 36, 2: 30, 3: 27}

_BORDER = re.compile(r"so no plain convolution is exact")
_BORDER_REASONS = {
    "is not zero outside the image": "a bias leaks",
    "sees the image from outside it": "a window leaks",
    "padding does not pass": "a padding mode does not pass",
}
_NOT_ONE_REASONS = {
    "does not commute with it": "upsampling after a stride it shares a factor with",
    "gives output sizes that no single": "upsampling after a coprime stride",
    "bias that depends on the output phase": "upsampling after a bias",
    "padding before an upsampling": "upsampling after a padding mode",
    "around an upsampled signal": "a padding mode around an upsampled signal",
    "branches of different sizes": "branches of different sizes",
    "branches of different strides": "branches of different strides",
    "branches of different upsamplings": "branches of different upsamplings",
    "are not one layer": "branches of different padding modes",
    r"circular.* crop": "circular padding of what a crop leaves",
}


class Disagreement(AssertionError):
    """The program and torch do not agree about a case."""

    def __init__(self, case: Case, what: str) -> None:
        shapes = {k: f"{tuple(t.shape)} {t.dtype}" for k, t in case.tensors.items()}
        entry = json.dumps(case.entry)
        super().__init__(f"seed {case.seed} ({case.kind}): {what}\n  {entry}\n  {shapes}")


@dataclass(frozen=True)
class Outcome:
    """What a case came to. `sizes` were run; `spared` rows were called wrong and were right."""

    case: Case
    verdict: Verdict
    reason: str = ""
    sizes: int = 0
    flagged: int = 0
    spared: int = 0


@dataclass(frozen=True)
class _Torch:
    """The original layers in float64, and the sizes they take."""

    case: Case

    @cached_property
    def module(self) -> nn.Module:
        return network(self.case.entry, self.case.tensors, self.case.rank)

    @cached_property
    def magnitude(self) -> nn.Module:
        return network(self.case.entry, self.case.tensors, self.case.rank, magnitude=True)

    @cached_property
    def roomy(self) -> Size | None:
        """A size that is large enough on every axis, None if that is beyond what is tried."""
        options = _ROOMY[self.case.rank]
        return next((s for s in options if runs(self.module, self.case.channels, s)), None)

    @cached_property
    def smallest(self) -> Size:
        return smallest_size(self.module, self.case.channels, self.roomy or ())

    def image(self, size: Size, count: int = 2) -> Tensor:
        generator = torch.Generator().manual_seed(self.case.seed + sum(size))
        return torch.randn(count, self.case.channels, *size, generator=generator).double()


def workable_case(seed: int) -> Case:
    """The random case of a seed, small enough to be tried; now and then for one input size only."""
    for attempt in range(1000):
        case = random_case(seed + 1_000_003 * attempt)
        original = _Torch(case)
        try:
            if original.roomy is None:
                continue
        except BranchesDisagreeError:
            return case
        rng = random.Random(case.seed)
        if case.rank and rng.random() < 0.08:
            size = [n + rng.randint(0, 6) for n in original.smallest]
            return replace(case, entry=case.entry | {"input": size})
        return case
    raise ValueError(f"no workable case grows from seed {seed}")


def examine(case: Case) -> Outcome:
    """What the case comes to. Raises Disagreement where program and torch differ."""
    manifest, checkpoint = manifest_from_data(case.manifest), from_state_dict(case.tensors)
    try:
        plan = make_plan(manifest, checkpoint, growth="allow")
    except PlanError as refusal:
        told = str(refusal)
        if _BORDER.search(told):
            return _refused_at_border(case, _classified(case, told, _BORDER_REASONS))
        return _refused_as_not_one(case, _classified(case, told, _NOT_ONE_REASONS))
    squeezed = next(squeeze(plan, checkpoint.load))
    recipe = read_recipe(recipe_of(plan, checkpoint).to_json(), "the recipe")
    module = module_of(recipe.layers[0], squeezed.tensors())
    return _exact(case, plan.merges[0], squeezed, module)


def _classified(case: Case, told: str, reasons: dict[str, str]) -> str:
    found = [name for sign, name in reasons.items() if re.search(sign, told)]
    if len(found) != 1 or "\n" in told:
        raise Disagreement(case, f"refused for a reason that was not expected: {told}")
    return found[0]


def _exact(case: Case, merge: Merge, squeezed: Squeezed, module: SqueezedConv) -> Outcome:
    """Every size the original takes, every pixel, within the rounding of the stored weights."""
    original = _Torch(case)
    half_ulps = {name: _half_spacing(tensor) for name, tensor in squeezed.tensors().items()}
    bound = module_of(module.layer, half_ulps).requires_grad_(False)
    module = module.double().requires_grad_(False)
    count = 0
    for size in _sizes(original, merge):
        x = original.image(size)
        expected, actual = original.module(x), _run(case, module, x)
        if actual.shape != expected.shape:
            told = f"{tuple(actual.shape)}, torch gives {tuple(expected.shape)}"
            raise Disagreement(case, f"called exact, an input of {size} gives {told}")
        allowed = NOISE * original.magnitude(x.abs())
        if squeezed.weight.dtype != torch.float64:
            allowed = allowed + bound(x.abs())
        error = (actual - expected).abs()
        if not bool((error <= allowed).all()):
            worst = (error / allowed).max().item()
            raise Disagreement(
                case,
                f"called exact, differs on an input of {size} by {error.max().item():.3e}, "
                f"{worst:.1f} times what rounding can do, at {_places(error > allowed)}",
            )
        count += 1
    return Outcome(case, "exact", _exact_reason(merge), count)


def _run(case: Case, module: SqueezedConv, x: Tensor) -> Tensor:
    try:
        return module(x)
    except RuntimeError as error:
        size = tuple(x.shape[2:])
        told = str(error).split("\n")[0]
        raise Disagreement(case, f"the merged layer does not run on {size}: {told}") from error


def _exact_reason(merge: Merge) -> str:
    """Exact with padding inside, or with none to move."""
    modes = {axis.padding_mode for axis in merge.geometry.axes} - {"zeros"}
    return "with a padding mode" if modes else "with zeros"


def _refused_at_border(case: Case, reason: str) -> Outcome:
    """The plain merge in float64 is wrong on some input, and nowhere but in the rows told."""
    wide = replace(
        case,
        tensors={k: t.double() if t.is_floating_point() else t for k, t in case.tensors.items()},
    )
    checkpoint = from_state_dict(wide.tensors)
    plan = make_plan(
        manifest_from_data(wide.manifest), checkpoint, border="interior", growth="allow"
    )
    merge = plan.merges[0]
    recipe = read_recipe(recipe_of(plan, checkpoint).to_json(), "the recipe")
    if recipe.layers[0].border != "interior":
        raise Disagreement(case, "refused for the border, then called exact")
    squeezed = next(squeeze(plan, checkpoint.load))
    module = module_of(recipe.layers[0], squeezed.tensors()).requires_grad_(False)
    original = _Torch(wide)
    found, sizes, flagged, spared = False, 0, 0, 0
    for size in _sizes(original, merge):
        x = original.image(size)
        expected, actual = original.module(x), _run(case, module, x)
        if actual.shape != expected.shape:
            told = f"{tuple(actual.shape)}, torch gives {tuple(expected.shape)}"
            raise Disagreement(case, f"the plain merge of an input of {size} gives {told}")
        magnitude = original.magnitude(x.abs())
        share = (actual - expected).abs() / magnitude.clamp(min=1e-300)
        excused, rows = _excused(merge, size, share)
        if bool(((share > NOISE) & ~excused).any()):
            raise Disagreement(
                case,
                f"the plain merge differs on an input of {size} at {_places(share > NOISE)}, "
                f"only the rows {rows} were told",
            )
        wrong = share > WRONG
        found = found or bool(wrong.any())
        flagged += sum(len(told) for told in rows)
        spared += _spared(wrong, rows)
        sizes += 1
    if not found:
        raise Disagreement(case, f"refused for the border ({reason}), but no input was found wrong")
    return Outcome(case, "border", reason, sizes, flagged, spared)


def _excused(merge: Merge, size: Size, like: Tensor) -> tuple[Tensor, list[list[int]]]:
    """The outputs in rows that the plan calls wrong, and those rows by axis."""
    mask = torch.zeros(like.shape, dtype=torch.bool)
    rows = []
    for axis, n in enumerate(size):
        rows.append(sorted(wrong_rows(merge.geometry_tree, axis, n)))
        mask.index_fill_(2 + axis, torch.tensor(rows[-1], dtype=torch.long), True)
    return mask, rows


def _spared(wrong: Tensor, rows: Sequence[Sequence[int]]) -> int:
    """How many rows that were called wrong hold no wrong output."""
    axes = (wrong.movedim(2 + axis, 0).flatten(1).any(1) for axis in range(len(rows)))
    return sum(not bool(bad[row]) for bad, told in zip(axes, rows, strict=True) for row in told)


def _refused_as_not_one(case: Case, reason: str) -> Outcome:
    """Where the reason can be seen from outside, it is looked for."""
    if reason in ("branches of different sizes", "branches of different strides"):
        original = _Torch(case)
        try:
            for size in _ROOMY[case.rank]:
                for axis in range(case.rank):
                    for more in range(7):
                        grown = (*size[:axis], size[axis] + more, *size[axis + 1 :])
                        runs(original.module, case.channels, grown)
        except BranchesDisagreeError:
            return Outcome(case, "not one", reason)
        raise Disagreement(case, f"refused for {reason}, but torch adds them up at every size")
    return Outcome(case, "not one", reason)


def _sizes(original: _Torch, merge: Merge) -> Iterator[Size]:
    """From the smallest that torch takes to past the merged kernel, each axis through its range."""
    case = original.case
    if case.entry.get("input"):
        yield tuple(case.entry["input"])
        return
    if not case.rank:
        yield ()
        return
    smallest = original.smallest
    spans = [
        min(axis.extent + abs(axis.before) + abs(axis.after) + axis.stride, 60 // case.rank)
        for axis in merge.geometry.axes
    ]
    rng = random.Random(case.seed)
    most = _MOST_SIZES[case.rank]
    yield smallest
    seen = {smallest}
    for axis, span in enumerate(spans):
        steps = range(1, span + 1)
        share = most // case.rank
        near, far = steps[: share * 2 // 3], steps[share * 2 // 3 :]
        for step in (*near, *rng.sample(far, min(share - len(near), len(far)))):
            size = tuple(
                low + (step if a == axis else rng.randint(0, min(s, 10)))
                for a, (low, s) in enumerate(zip(smallest, spans, strict=True))
            )
            if size not in seen:
                seen.add(size)
                yield size
    largest = tuple(n + span for n, span in zip(smallest, spans, strict=True))
    if case.rank == 1 and largest not in seen:
        yield largest


def _half_spacing(tensor: Tensor) -> Tensor:
    """Half the distance to the next stored number, by the definition of the format, in float64."""
    info = torch.finfo(tensor.dtype)
    exponents = torch.frexp(tensor.double().abs().clamp(min=info.tiny)).exponent - 1
    return torch.ldexp(torch.full_like(tensor, info.eps / 2, dtype=torch.float64), exponents)


def _places(mask: Tensor) -> str:
    places = mask.nonzero()[:, 1:].unique(dim=0).tolist()
    shown = ", ".join(map(str, places[:6]))
    return f"{shown} and {len(places) - 6} more" if len(places) > 6 else shown
