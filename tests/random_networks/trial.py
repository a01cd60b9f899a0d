"""One random manifest, planned, squeezed and compared with what torch computes layer by layer.

Three answers are right: the program merges and torch agrees at every pixel of every size tried; it
refuses for the border and an input exists on which the plain merge is wrong (and right away from
the border); or it gives a reason why the layers are not one convolution. What merges in any way is
also merged with `border: corrected`: see `corrected`. Anything else raises `Disagreement` with the
case in it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from convsqueeze.algebra.border.mismatches import wrong_rows
from convsqueeze.checkpoint import from_state_dict
from convsqueeze.errors import PlanError
from convsqueeze.manifest import manifest_from_data
from convsqueeze.module import SqueezedConv, module_of
from convsqueeze.plan import Merge, make_plan
from convsqueeze.recipe import read_recipe
from convsqueeze.squeezing import Squeezed, recipe_of, squeeze_one

from .corrected import Corrected, check_other_sizes, check_stored_dtype, corrected
from .manifests import Case, has_sum
from .original import (
    NOISE,
    ROOMY,
    WRONG,
    Disagreement,
    Original,
    Size,
    half_spacing,
    in_float64,
    input_sizes,
    places,
)
from .torch_layers import BranchesDisagreeError, runs

Verdict = Literal["exact", "border", "not one"]
VERDICTS: tuple[Verdict, ...] = ("exact", "border", "not one")

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


@dataclass(frozen=True)
class Outcome:
    """What a case came to. `sizes` were run; `spared` rows were called wrong and were right.
    `corrected` is the same case with `border: corrected`, None where it is not one convolution.
    """

    case: Case
    verdict: Verdict
    reason: str = ""
    sizes: int = 0
    flagged: int = 0
    spared: int = 0
    corrected: Corrected | None = None


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
    squeezed = squeeze_one(plan.merges[0], checkpoint.load)
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
    original, full = Original(case), corrected(case)
    if full.merge.corrections is not None:
        raise Disagreement(case, "called exact, but is given corrections")
    half_ulps = {name: half_spacing(tensor) for name, tensor in squeezed.tensors().items()}
    bound = module_of(module.layer, half_ulps).requires_grad_(False)
    module = module.double().requires_grad_(False)
    count = 0
    for size in input_sizes(original, merge.geometry.axes):
        x = original.image(size)
        expected, actual = original.module(x), _run(case, module, x)
        if actual.shape != expected.shape:
            told = f"{tuple(actual.shape)}, torch gives {tuple(expected.shape)}"
            raise Disagreement(case, f"called exact, an input of {size} gives {told}")
        magnitude = original.magnitude(x.abs())
        allowed = NOISE * magnitude
        if squeezed.stored["weight"].dtype != torch.float64:
            allowed = allowed + bound(x.abs())
        error = (actual - expected).abs()
        if not bool((error <= allowed).all()):
            worst = (error / allowed).max().item()
            raise Disagreement(
                case,
                f"called exact, differs on an input of {size} by {error.max().item():.3e}, "
                f"{worst:.1f} times what rounding can do, at {places(error > allowed)}",
            )
        full.check_pixels(x, expected, magnitude)
        count += 1
    return Outcome(case, "exact", _exact_reason(merge), count, corrected=full)


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
    """The plain merge in float64 is wrong on some input, and nowhere but in the rows told. With
    corrections it is right, and there are some for the sizes that it is wrong for and no others.
    """
    original, full = Original(case), corrected(case)
    merge, module = _plain(case)
    found, tried, flagged, spared = False, [], 0, 0
    for size in input_sizes(original, merge.geometry.axes):
        x = original.image(size)
        expected, actual = original.module(x), _run(case, module, x)
        if actual.shape != expected.shape:
            told = f"{tuple(actual.shape)}, torch gives {tuple(expected.shape)}"
            raise Disagreement(case, f"the plain merge of an input of {size} gives {told}")
        magnitude = original.magnitude(x.abs())
        full.check_pixels(x, expected, magnitude)
        share = (actual - expected).abs() / magnitude.clamp(min=1e-300)
        rows = [sorted(wrong_rows(merge.geometry_tree, axis, n)) for axis, n in enumerate(size)]
        _check_rows(case, size, share, rows, "told")
        _check_rows(case, size, share, full.rows(size), "corrected")
        wrong = share > WRONG
        if not bool(wrong.any()) and any(full.rows(size)) and _ought_to_differ(case, module, x):
            raise Disagreement(case, f"the rows {full.rows(size)} of {size} are corrected in vain")
        found = found or bool(wrong.any())
        flagged += sum(len(told) for told in rows)
        spared += _spared(wrong, rows)
        tried.append(size)
    if not found:
        raise Disagreement(case, f"refused for the border ({reason}), but no input was found wrong")
    if case.seed % 3 == 0:
        check_stored_dtype(full, original, tried)
    check_other_sizes(full, original)
    return Outcome(case, "border", reason, len(tried), flagged, spared, full)


def _plain(case: Case) -> tuple[Merge, SqueezedConv]:
    """What `border: interior` makes of a case, in float64."""
    wide = in_float64(case)
    checkpoint = from_state_dict(wide.tensors)
    plan = make_plan(
        manifest_from_data(wide.manifest), checkpoint, border="interior", growth="allow"
    )
    recipe = read_recipe(recipe_of(plan, checkpoint).to_json(), "the recipe")
    if recipe.layers[0].border != "interior":
        raise Disagreement(case, "refused for the border, then called exact")
    squeezed = squeeze_one(plan.merges[0], checkpoint.load)
    module = module_of(recipe.layers[0], squeezed.tensors()).requires_grad_(False)
    return plan.merges[0], module


def _ought_to_differ(case: Case, module: SqueezedConv, x: Tensor) -> bool:
    """Whether a row that reads something else on one axis has to give something else. Not if all
    that a few samples are read by on another axis is nothing, or a branch that this row is not of.
    """
    if case.rank == 1:
        return True
    reads = module.converted(Tensor.abs, None)(x.abs())
    return not has_sum(case.entry) and bool(reads.any())


def _check_rows(
    case: Case, size: Size, share: Tensor, rows: Sequence[Sequence[int]], what: str
) -> None:
    """Raises Disagreement where the plain merge differs in other rows than those of each axis."""
    differs = share > NOISE
    elsewhere = differs.clone()
    for axis, told in enumerate(rows, start=2):
        elsewhere.index_fill_(axis, torch.tensor(told, dtype=torch.long), False)
    if bool(elsewhere.any()):
        raise Disagreement(
            case,
            f"the plain merge differs on an input of {size} at {places(differs)}, "
            f"only the rows {list(rows)} were {what}",
        )


def _spared(wrong: Tensor, rows: Sequence[Sequence[int]]) -> int:
    """How many rows that were called wrong hold no wrong output."""
    axes = (wrong.movedim(2 + axis, 0).flatten(1).any(1) for axis in range(len(rows)))
    return sum(not bool(bad[row]) for bad, told in zip(axes, rows, strict=True) for row in told)


def _refused_as_not_one(case: Case, reason: str) -> Outcome:
    """Where the reason can be seen from outside, it is looked for."""
    if reason in ("branches of different sizes", "branches of different strides"):
        original = Original(case)
        try:
            for size in ROOMY[case.rank]:
                for axis in range(case.rank):
                    for more in range(7):
                        grown = (*size[:axis], size[axis] + more, *size[axis + 1 :])
                        runs(original.module, case.channels, grown)
        except BranchesDisagreeError:
            return Outcome(case, "not one", reason)
        raise Disagreement(case, f"refused for {reason}, but torch adds them up at every size")
    return Outcome(case, "not one", reason)
