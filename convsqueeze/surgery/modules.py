"""The modules of a model: which does what, by running it, and which has a merge's place."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial

import torch
from torch import Tensor, nn

from convsqueeze.algebra.sizes import merged, reach, smallest_size
from convsqueeze.algebra.tree import Chain, Sum, Tree, leaves
from convsqueeze.checkpoint import Checkpoint
from convsqueeze.copying import copied
from convsqueeze.graph import Modules, Placement, placement, replaced_modules
from convsqueeze.hooks import has_hooks
from convsqueeze.plan import Merge, ResolvedLayer, geometry_tree
from convsqueeze.surgery.shapes import InputShapes
from convsqueeze.tracing.raised import describe_error, exits_caught
from convsqueeze.verify.reference import Run, reference


def placement_in(
    model: nn.Module, own: Checkpoint, merge: Merge, shapes: InputShapes
) -> Placement[ResolvedLayer] | None:
    """Where a merge goes in a model, by the names of its layers; `own` are the model's tensors,
    `shapes` what its modules are given.
    """
    if encloses(merge):
        return Placement(merge.into, ())

    def unit(tree: Tree[ResolvedLayer]) -> str | None:
        if isinstance(tree, Chain | Sum) or tree.layer.name is None:
            return _enclosing(model, own, tree, merge, shapes)
        return tree.layer.name

    def is_skip(leaf: ResolvedLayer) -> bool:
        return leaf.layer.is_identity

    modules = Modules(unit, is_skip, lambda name: name == merge.into)
    found = placement(merge.tree, modules)
    if found is not None or _is_within(merge):
        return found
    silent = replaced_modules(merge.tree, modules, passes=True)
    if silent is None or any(f"{merge.into}.".startswith(f"{one.name}.") for one in silent):
        return None
    return Placement("", silent)


def _is_within(merge: Merge) -> bool:
    """Whether the module that is to take the merge belongs to it."""
    return any(key.startswith(f"{merge.into}.") for leaf in merge.layers for key in leaf.keys)


def _enclosing(
    model: nn.Module,
    own: Checkpoint,
    tree: Tree[ResolvedLayer],
    merge: Merge,
    shapes: InputShapes,
) -> str | None:
    """The smallest module that does just what these layers do, and whose tensors all go with a
    merge, if one that holds them does.
    """
    for name in _around(tree):
        module = submodule(model, own.prefix + name)
        stays = any(key.startswith(f"{name}.") and key not in merge.consumed for key in own.tensors)
        if module is None or stays or any(map(has_hooks, module.modules())):
            return None
        with suppress(NotRunError):
            if computes(module, own, tree, partial(shapes.of, own.prefix + name)):
                return name
    return None


def _around(tree: Tree[ResolvedLayer]) -> Iterator[str]:
    """The smallest module that holds these layers, and those around it: what has no tensors, as a
    pad, may stand there.
    """
    names = [name.split(".") for leaf in leaves(tree) for name in _modules_of(leaf)]
    shared: list[str] = []
    for parts in zip(*names, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    for length in range(len(shared), 0, -1):
        yield ".".join(shared[:length])


def _modules_of(leaf: ResolvedLayer) -> Iterator[str]:
    yield from (key.rpartition(".")[0] for key in leaf.keys)
    if leaf.layer.name is not None and not leaf.keys:
        yield leaf.layer.name


def submodule(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def encloses(merge: Merge) -> bool:
    """Whether the module `into` holds every merged layer, so that replacing it replaces all."""
    inside = f"{merge.into}."
    names = [leaf.layer.name for leaf in merge.layers]
    return (
        all(key.startswith(inside) for leaf in merge.layers for key in leaf.keys)
        and all(name is None or f"{name}.".startswith(inside) for name in names)
        and any(name != merge.into for name in names)
    )


LARGE = 2.0**20
"""Where inputs are this large no bias keeps what comes out above zero, or below."""


class NotRunError(Exception):
    """A module whose own code raises, in a phrase."""


def computes(
    module: nn.Module,
    own: Checkpoint,
    tree: Tree[ResolvedLayer],
    given: Callable[[], Sequence[int] | None] = lambda: None,
) -> bool:
    """Whether a module computes what the layers do, on random images and in float64: small and
    large values, each with its negative, as activations may pass what has one sign.

    The images are small ones of two sizes, for what rounds its output size another way; where the
    module takes none of them, they have the shape that is `given` to it in the model. Raises
    NotRunError where it takes neither.
    """
    shapes = geometry_tree(tree)
    rank = len(merged(shapes).axes)
    channels = merged(shapes).in_channels
    small = [smallest_size(shapes, axis) + reach(shapes, axis) for axis in range(rank)]
    run, expected = copied(module).cpu().double().eval(), reference(tree, own.load)
    sizes = [(1, channels, *(size + more for size in small)) for more in (0, 1)]
    try:
        return all(_agree(run, expected, size) for size in sizes)
    except NotRunError:
        shape = given()
        if shape is None or len(shape) != rank + 2 or shape[1] != channels:
            raise
    return _agree(run, expected, shape)


def _agree(module: nn.Module, expected: Run, shape: Sequence[int]) -> bool:
    """On images of one shape. Raises NotRunError."""
    generator = torch.Generator().manual_seed(sum(shape))
    image = torch.randn(*shape, generator=generator, dtype=torch.float64)
    for factor in (1.0, -1.0, LARGE, -LARGE):
        with torch.no_grad():
            wanted = expected(factor * image)
            try:
                with exits_caught():
                    found = module(factor * image)
            except Exception as error:
                size = "x".join(map(str, shape))
                raise NotRunError(f"{describe_error(error)}, on an input of {size}") from error
        if not isinstance(found, Tensor) or found.shape != wanted.shape:
            return False
        if not (found - wanted).abs().max() <= 1e-9 * wanted.abs().max():
            return False
    return True
