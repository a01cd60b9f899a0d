"""Plan + tensors -> the merged tensors, the edits they make and the recipe. Touches no file."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import add

import torch
from torch import Tensor

from convsqueeze.algebra.apply import transposed_layout
from convsqueeze.algebra.border.corrections import BORDER
from convsqueeze.algebra.border.values import border_terms
from convsqueeze.algebra.chains import composed_chain
from convsqueeze.algebra.conv import Conv
from convsqueeze.algebra.precision import denormals_kept, dtype_name
from convsqueeze.algebra.threads import one_thread
from convsqueeze.algebra.tree import Chain, Sum, Tree, mapped
from convsqueeze.checkpoint import Checkpoint, Edit, New
from convsqueeze.device import CPU
from convsqueeze.manifest import Border
from convsqueeze.names import as_unicode, shown
from convsqueeze.plan import Growth, Merge, Plan
from convsqueeze.recipe import Recipe, RecipeLayer, Source
from convsqueeze.storage import Widened, round_to_storage

Load = Callable[[str], Tensor]


@dataclass(frozen=True, eq=False)
class Squeezed:
    """One merged layer as it will be stored: `stored` by name within the layer, in torch's layouts
    and the replaced layers' dtype.

    `widened` are the tensors that are stored in a wider dtype, as that does not hold their values;
    `notes` tell of them and of strange values in the layers. `exact` are the values that were
    rounded, as `exact_values` gives them: for verification, to be dropped once that has seen them.
    """

    merge: Merge
    stored: Mapping[str, Tensor]
    widened: tuple[Widened, ...] = ()
    notes: tuple[str, ...] = ()
    exact: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    def tensors(self) -> dict[str, Tensor]:
        """By full name."""
        return {f"{self.merge.into}.{name}": tensor for name, tensor in self.stored.items()}


def exact_values(merge: Merge, load: Load, device: torch.device = CPU) -> dict[str, Tensor]:
    """What a merge stores before it is rounded, by name within the layer: float64, weights in the
    layout of `Geometry`. Raises TensorDataError for layers that make no operator.

    They are computed, and lie, on the `device`, wherever `load` has its tensors: there from the
    layers' own values on.
    """
    convs = mapped(merge.tree, lambda leaf: leaf.conv(load).on(device))
    whole = composed(convs)
    exact = {"weight": whole.weight.double()}
    if whole.bias is not None:
        exact["bias"] = whole.bias.double()
    if merge.corrections is not None:
        terms = border_terms(convs, merge.corrections, merge.border_taps)
        exact |= {f"{BORDER}.{name}": value for name, value in terms.items()}
    return exact


@denormals_kept()
@one_thread()
def squeeze_one(
    merge: Merge, load: Load, *, widen: bool = False, device: torch.device = CPU
) -> Squeezed:
    """One merge of a plan, composed on the `device` in float64, rounded once on the CPU; `load`
    gives a stored tensor by name.

    Raises TensorDataError for values that are not finite, or do not fit the stored dtype unless
    `widen` stores their tensor in a wider one.
    """
    exact = {name: value.cpu() for name, value in exact_values(merge, load, device).items()}
    rounded, widened = round_to_storage(merge, exact, widen=widen)
    stored = {name: t.contiguous() for name, t in stored_layout(merge, rounded).items()}
    notes = [note for leaf in merge.layers for note in leaf.value_notes(load)]
    notes += [one.note(merge.into) for one in widened]
    return Squeezed(merge, stored, widened, tuple(notes), exact)


def stored_layout(merge: Merge, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a merge makes, by name within the layer, laid out as it is stored."""
    found = dict(values)
    if merge.geometry.is_transposed:
        found["weight"] = transposed_layout(found["weight"], merge.geometry.groups)
    return found


def composed(convs: Tree[Conv]) -> Conv:
    """One operator of a tree of them, in float64 where there is anything to compute."""
    if isinstance(convs, Chain):
        return composed_chain([composed(link) for link in convs.links])
    if isinstance(convs, Sum):
        return reduce(add, (composed(branch) for branch in convs.branches))
    return convs


def edit_of(
    squeezed: Squeezed, names: Sequence[str], keep: Callable[[Tensor], New] = lambda tensor: tensor
) -> Edit:
    """What a merge does to a file whose tensors are `names`: the result takes the first's place.

    `keep` puts each new tensor where it is to wait.
    """
    consumed = frozenset(squeezed.merge.consumed)
    return Edit(
        at=next(name for name in names if name in consumed),
        remove=consumed,
        insert={name: keep(tensor) for name, tensor in squeezed.tensors().items()},
    )


def recipe_of(
    plan: Plan,
    source: Checkpoint,
    *,
    border: Border | None = None,
    growth: Growth = "refuse",
    layers: Sequence[RecipeLayer] | None = None,
    sha256: str | None = None,
) -> Recipe:
    """The recipe of a plan for a checkpoint, with the policies given over the manifest's.

    `layers` are its entries and `sha256` is the source's, or stands for it, where they are known
    already.
    """
    return Recipe(
        source=Source(file=as_unicode(source.path.name), sha256=sha256 or source.sha256()),
        layers=tuple(map(recipe_layer, plan.merges) if layers is None else layers),
        manifest=plan.manifest.to_data(),
        border=border,
        growth=growth,
    )


def recipe_layer(merge: Merge, widened: Sequence[Widened] = ()) -> RecipeLayer:
    """A merge's entry in the recipe."""
    return RecipeLayer.of(
        merge.into,
        merge.geometry,
        sources=[leaf.label for leaf in merge.layers],
        border=merge.border,
        weights_before=merge.weights_before,
        corrections=merge.corrections,
        widened={one.name: dtype_name(one.dtype) for one in widened},
    )


def recipe_differences(plan: Plan, recipe: Recipe, where: str) -> Iterator[str]:
    """Where a recipe does not say what the plan gives, a sentence each; `where` names its file."""
    merges = {merge.into: merge for merge in plan.merges}
    found = {layer.name: layer for layer in recipe.layers}
    counts = Counter(layer.name for layer in recipe.layers)
    for name in sorted(name for name in counts if counts[name] > 1):
        yield f"{where}: its recipe has the layer {shown(name)} twice."
    for name in merges.keys() - found.keys():
        yield f"{where}: its recipe lacks the layer {shown(name)}, which the manifest merges."
    for name in found.keys() - merges.keys():
        yield f"{where}: its recipe has a layer {shown(name)}, which the manifest does not merge."
    for name in (name for name in merges if name in found):
        for full in (f"{name}.{one}" for one in found[name].widened or {}):
            if full not in merges[name].tensors:
                yield (
                    f"{where}: its recipe says that {shown(full)} is stored in a wider dtype, "
                    "which is no tensor of the merged layer."
                )
        planned = recipe_layer(merges[name])
        for key in RecipeLayer.model_fields:
            wanted, given = getattr(planned, key), getattr(found[name], key)
            if key == "widened":  # follows from values: each tensor's own dtype is held against it
                continue
            if wanted != given and key == "corrections":
                yield f"{where}: its recipe says corrections of {name}, others were needed."
            elif wanted != given:
                yield (
                    f"{where}: its recipe says {key} {_plain(given)} of {name}, "
                    f"{_plain(wanted)} was needed."
                )


def is_far_larger(found: RecipeLayer, planned: RecipeLayer) -> bool:
    """Whether a recipe's layer has numbers so far beyond the planned ones that it costs to run."""
    return _largest_number(found) > 64 + 4 * _largest_number(planned)


def _largest_number(layer: RecipeLayer) -> int:
    pairs = [number for pair in layer.padding for number in pair]
    return max(map(abs, (*layer.stride, *layer.dilation, *(layer.output_stride or ()), *pairs, 0)))


def _plain(value: object) -> str:
    return str(value).replace("(", "[").replace(",)", "]").replace(")", "]")
