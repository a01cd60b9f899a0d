"""What `inspect` tells: the layers of a checkpoint, and the recipe if it has one."""

from typing import Any

from rich.console import Console

from convsqueeze.algebra.precision import dtype_name
from convsqueeze.checkpoint import Checkpoint
from convsqueeze.cli.output import picked, print_table, words
from convsqueeze.formatting import Row, Table, format_size
from convsqueeze.inspection import FoundLayer
from convsqueeze.names import shown
from convsqueeze.recipe import Recipe, read_recipe


def inspect_data(checkpoint: Checkpoint, layers: list[FoundLayer]) -> dict[str, Any]:
    """The layers of a checkpoint, for --json."""
    return {
        "file": checkpoint.path,
        "metadata": dict(checkpoint.metadata),
        **picked(checkpoint, "format wrapper prefix recipe"),
        "layers": [
            {
                **picked(layer, "name kind detail weights"),
                "tensors": {
                    role: {"shape": info.shape, "dtype": dtype_name(info.dtype)}
                    for role, info in layer.tensors.items()
                },
            }
            for layer in layers
        ],
    }


def print_inspection(console: Console, checkpoint: Checkpoint, layers: list[FoundLayer]) -> None:
    """The layers of a checkpoint, one a row."""
    rows = []
    for layer in layers:
        dtypes = {dtype_name(info.dtype) for info in layer.tensors.values()}
        named = ", ".join(sorted(dtypes - {"int64"}) or sorted(dtypes))
        name, shape = shown(layer.name) or "(top)", format_size(layer.shape) or "one number"
        rows.append(Row((name, layer.kind, shape, shown(layer.detail), named)))
    columns = ("name", "kind", "shape", "what it tells", "dtype")
    print_table(console, Table(checkpoint.path.name, columns, tuple(rows)))
    facts = [f"format {checkpoint.format}", f"{len(checkpoint.tensors)} tensors"]
    if checkpoint.wrapper:
        facts.append(f"state dict under {shown(checkpoint.wrapper)}")
    if checkpoint.prefix:
        facts.append(f"names without their prefix {shown(checkpoint.prefix)}")
    if checkpoint.recipe is None:
        facts.append("no recipe")
    console.print(words("; ".join(facts)))
    if checkpoint.recipe is not None:
        _print_recipe(console, read_recipe(checkpoint.recipe, f"{checkpoint.path}"))


def _print_recipe(console: Console, recipe: Recipe) -> None:
    rows = []
    for layer in recipe.layers:
        sides = (low if low == high else [low, high] for low, high in layer.padding)
        cells = (
            shown(layer.name),
            ", ".join(map(shown, layer.sources)),
            format_size(layer.kernel_size) or layer.kind,
            format_size(layer.stride),
            ", ".join(map(str, sides)),
            str(layer.groups),
            layer.border,
        )
        rows.append(Row(cells))
    columns = ("layer", "from", "kernel", "stride", "padding", "groups", "border")
    title = f"recipe: squeezed from {shown(recipe.source.file)}"
    print_table(console, Table(title, columns, tuple(rows)))
