"""A case merged with `border: corrected`, stored in float64: torch agrees at every pixel.

What is stored is what the plan told, and nothing of it is in vain: a size has corrections exactly
if the plain merge of it is wrong, in no other rows, and no border tap is made of the others.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from math import prod
from typing import Literal

import torch
from torch import Tensor

from convsqueeze.algebra.apply import transposed_layout
from convsqueeze.algebra.border.corrections import SizeClass
from convsqueeze.checkpoint import from_state_dict
from convsqueeze.errors import ConvsqueezeError, GeometryError
from convsqueeze.manifest import manifest_from_data
from convsqueeze.module import SqueezedConv, module_of
from convsqueeze.plan import Merge, make_plan
from convsqueeze.recipe import Recipe, RecipeLayer, read_recipe
from convsqueeze.squeezing import recipe_of, squeeze_one

from .manifests import Case
from .original import NOISE, Disagreement, Original, Size, half_spacing, in_float64, places
from .torch_layers import runs

Form = Literal["plain", "bias", "strips"]
FORMS: tuple[Form, ...] = ("plain", "bias", "strips")


def form_of(merge: Merge) -> Form:
    """What the border of a merge takes: nothing, biases alone, or strips of the input."""
    if merge.corrections is None:
        return "plain"
    return "bias" if merge.corrections.only_biases else "strips"


def leaves_out_zeros(merge: Merge) -> bool:
    found = merge.corrections
    return found is not None and bool(found.absent or found.absent_biases)


def depends_on_size(merge: Merge) -> bool:
    found = merge.corrections
    return found is not None and any(len(axis.classes) > 1 for axis in found.axes)


@dataclass(frozen=True)
class Corrected:
    """The merge of a case, and the layer that it makes."""

    case: Case
    merge: Merge
    module: SqueezedConv

    def rows(self, size: Size) -> list[list[int]]:
        """The rows on each axis to which something is added, counted from the start."""
        if self.merge.corrections is None:
            return [[] for _ in size]
        counts = self.merge.geometry.output_size(size)
        axes = zip(self.merge.corrections.axes, size, counts, strict=True)
        return [_rows(axis.of(n), n, count) for axis, n, count in axes]

    def check_pixels(self, x: Tensor, expected: Tensor, magnitude: Tensor) -> None:
        """Raises Disagreement unless the layer gives what torch gives, to the last rounding."""
        size = tuple(x.shape[2:])
        actual = self.run(self.module, x)
        if actual.shape != expected.shape:
            told = f"{tuple(actual.shape)}, torch gives {tuple(expected.shape)}"
            raise Disagreement(self.case, f"corrected, an input of {size} gives {told}")
        error, allowed = (actual - expected).abs(), NOISE * magnitude
        if bool((error <= allowed).all()):
            return
        # what is added at a border can be larger than all that torch adds up there
        sizes = self.module.converted(Tensor.abs, Tensor.abs, signs=False)
        allowed = allowed + NOISE * self.run(sizes, x.abs())
        self.hold(size, error, allowed)

    def hold(self, size: Size, error: Tensor, allowed: Tensor) -> None:
        if not bool((error <= allowed).all()):
            worst = (error / allowed).max().item()
            raise Disagreement(
                self.case,
                f"corrected, differs on an input of {size} by {error.max().item():.3e}, "
                f"{worst:.1f} times what rounding can do, at {places(~(error <= allowed))}",
            )

    def run(self, module: SqueezedConv, x: Tensor) -> Tensor:
        try:
            return module(x)
        except (RuntimeError, LookupError, ValueError, ConvsqueezeError) as error:
            told = str(error).split("\n")[0]
            where = f"the corrected layer does not run on {tuple(x.shape[2:])}"
            raise Disagreement(self.case, f"{where}: {told}") from error


def _rows(one: SizeClass, size: int, outputs: int) -> list[int]:
    """Rows with entries that do not cancel: one from either end may be the same for some sizes."""
    factors: Counter[tuple[int, int | None, int]] = Counter()
    for row, column, tap, factor in one.weights:
        place = _from_start(row, outputs), _from_start(column, size)
        if 0 <= place[0] < outputs and 0 <= place[1] < size:
            factors[*place, tap] += factor
    for row, tap, factor in one.biases:
        if 0 <= _from_start(row, outputs) < outputs:
            factors[_from_start(row, outputs), None, tap] += factor
    return sorted({row for (row, *_), factor in factors.items() if factor})


def _from_start(place: int, count: int) -> int:
    return place if place >= 0 else place + count


def corrected(case: Case) -> Corrected:
    """The case in float64 as a user gets it. Raises Disagreement where what is stored is not what
    was told, or holds anything in vain.
    """
    made = _made(in_float64(case))
    check_border_taps(made)
    return made


def _made(case: Case) -> Corrected:
    """Planned, squeezed and read back from the recipe's text."""
    checkpoint = from_state_dict(case.tensors)
    manifest = manifest_from_data(case.manifest)
    plan = make_plan(manifest, checkpoint, border="corrected", growth="allow")
    squeezed = squeeze_one(plan.merges[0], checkpoint.load)
    recipe = recipe_of(plan, checkpoint, border="corrected", growth="allow")
    layer = _through_json(case, recipe)
    tensors, merge = squeezed.tensors(), plan.merges[0]
    _check_stored(case, merge, layer, tensors)
    return Corrected(case, merge, module_of(layer, tensors).requires_grad_(False))


def _through_json(case: Case, recipe: Recipe) -> RecipeLayer:
    """The recipe's only layer, as it is read back from the recipe's text."""
    back = read_recipe(recipe.to_json(), "the recipe")
    alone = RecipeLayer.model_validate_json(recipe.layers[0].model_dump_json(by_alias=True))
    if not back.layers == recipe.layers == (alone,):
        raise Disagreement(case, "the recipe's layer is another one after a way through JSON")
    return back.layers[0]


def _check_stored(
    case: Case, merge: Merge, layer: RecipeLayer, tensors: Mapping[str, Tensor]
) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    told = dict(merge.tensors)
    if merge.geometry.is_transposed:
        kernel = torch.empty(told[f"{merge.into}.weight"])
        told[f"{merge.into}.weight"] = tuple(transposed_layout(kernel, merge.geometry.groups).shape)
    if shapes != told:
        raise Disagreement(case, f"stored {shapes}, {told} was told")
    numbers = sum(map(prod, shapes.values()))
    if not numbers == merge.weights_after == layer.weights_after:
        after = f"{merge.weights_after}, {layer.weights_after} in the recipe"
        raise Disagreement(case, f"stored {numbers} numbers, {after} were told")
    if not merge.form.exact or merge.form.name != form_of(merge):
        raise Disagreement(case, f"called {merge.form}, it is exact and {form_of(merge)}")
    border = "exact" if merge.corrections is None else "corrected"
    if not merge.border == layer.border == border:
        raise Disagreement(case, f"called {merge.border}, {layer.border} in the recipe")


# Nothing in vain


def check_border_taps(made: Corrected) -> None:
    """Raises Disagreement where a border tap is made of those before it: storage in vain. Only one
    that takes fractions is kept, so that every factor in the recipe is whole.
    """
    if made.merge.corrections is None:
        return
    for axis, taps in enumerate(made.merge.border_taps):
        for what, matrix in (("border", taps.border), ("border bias", taps.border_bias)):
            for index in _dependent(matrix):
                if all(f.denominator == 1 for f in _factors(matrix[:index], matrix[index])):
                    raise Disagreement(
                        made.case, f"{what} tap {index} of axis {axis} is made of those before"
                    )


def _dependent(matrix: Tensor) -> Iterator[int]:
    """Rows that add nothing to the rank of those before them."""
    if not len(matrix) or int(torch.linalg.matrix_rank(matrix)) == len(matrix):
        return
    for index in range(len(matrix)):
        ranks = (torch.linalg.matrix_rank(matrix[:n]) if n else 0 for n in (index, index + 1))
        if len({int(rank) for rank in ranks}) == 1:
            yield index


def _factors(rows: Tensor, row: Tensor) -> list[Fraction]:
    """What `row` is made of: the factors of independent `rows`."""
    found = torch.linalg.lstsq(rows.T, row.unsqueeze(1), driver="gelsd").solution.flatten()
    return [Fraction(factor).limit_denominator(64) for factor in found.tolist()]


# Beside the sizes and the dtype of the first look


def check_stored_dtype(made: Corrected, original: Original, tried: Sequence[Size]) -> None:
    """The weights as they are stored, on some sizes: each is off by half a unit in its last place
    at most.
    """
    case = original.case
    stored = _made(case)
    if stored.merge.dtype == torch.float64:
        return
    spacing = stored.module.converted(half_spacing, half_spacing, signs=False)
    magnitude = made.module.converted(Tensor.abs, Tensor.abs, signs=False)
    module = stored.module.double()
    for size in (tried[0], tried[len(tried) // 2], tried[-1]):
        x = original.image(size)
        error = (stored.run(module, x) - original.module(x)).abs()
        allowed = stored.run(spacing, x.abs()) + NOISE * made.run(magnitude, x.abs())
        stored.hold(size, error, allowed)


def check_other_sizes(made: Corrected, original: Original) -> None:
    """A merge for one input size is exact for those that meet the border alike and refuses all
    others.
    """
    found, fixed = made.merge.corrections, made.merge.input_size
    if found is None or fixed is None:
        return
    for more in product((0, 1), repeat=len(fixed)):
        alike = tuple(
            n + step * axis.period if n >= axis.settled else n
            for n, step, axis in zip(fixed, more, found.axes, strict=True)
        )
        x = original.image(alike)
        made.check_pixels(x, original.module(x), original.magnitude(x.abs()))
    for index, (axis, n) in enumerate(zip(found.axes, fixed, strict=True)):
        for other in (n - 1, n + 1):
            size = (*fixed[:index], other, *fixed[index + 1 :])
            alike = axis.class_size(other) == axis.class_size(n)
            if alike or not runs(original.module, original.case.channels, size):
                continue
            try:
                made.module(original.image(size, 1))
            except GeometryError:
                continue
            raise Disagreement(made.case, f"made for inputs of {fixed}, takes {size} too")
