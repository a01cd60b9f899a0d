"""What `inspect` tells: the layers of a checkpoint, and the recipe if it has one."""

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from convsqueeze.algebra.precision import dtype_name
from convsqueeze.checkpoint import Checkpoint
from convsqueeze.cli.layout import new_table
from convsqueeze.cli.output import picked
from convsqueeze.formatting import format_size
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
    table = new_table(checkpoint.path.name, "name", "kind", "shape", "what it tells", "dtype")
    for layer in layers:
        dtypes = {dtype_name(info.dtype) for info in layer.tensors.values()}
        table.add_row(
            Text(shown(layer.name) or "(top)", style="bold"),
            layer.kind,
            format_size(layer.shape) or "one number",
            shown(layer.detail),
            ", ".join(sorted(dtypes - {"int64"}) or sorted(dtypes)),
        )
    console.print(table)
    facts = [f"format {checkpoint.format}", f"{len(checkpoint.tensors)} tensors"]
    if checkpoint.wrapper:
        facts.append(f"state dict under {shown(checkpoint.wrapper)}")
    if checkpoint.prefix:
        facts.append(f"names without their prefix {shown(checkpoint.prefix)}")
    if checkpoint.recipe is None:
        facts.append("no recipe")
    console.print(escape("; ".join(facts)))
    if checkpoint.recipe is not None:
        _print_recipe(console, read_recipe(checkpoint.recipe, str(checkpoint.path)))


def _print_recipe(console: Console, recipe: Recipe) -> None:
    title = f"recipe: squeezed from {shown(recipe.source.file)}"
    table = new_table(title, "layer", "from", "kernel", "stride", "padding", "groups", "border")
    for layer in recipe.layers:
        sides = [low if low == high else [low, high] for low, high in layer.padding]
        table.add_row(
            Text(shown(layer.name), style="bold"),
            ", ".join(map(shown, layer.sources)),
            format_size(layer.kernel_size) or layer.kind,
            format_size(layer.stride),
            ", ".join(map(str, sides)),
            str(layer.groups),
            layer.border,
        )
    console.print(table)
