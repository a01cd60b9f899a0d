"""What `inspect` prints for people: the layers of a checkpoint, and the recipe if it has one."""

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from convsqueeze.checkpoint import Checkpoint
from convsqueeze.cli.layout import new_table
from convsqueeze.inspection import FoundLayer
from convsqueeze.names import shown
from convsqueeze.recipe import Recipe, read_recipe


def print_inspection(console: Console, checkpoint: Checkpoint, layers: list[FoundLayer]) -> None:
    """The layers of a checkpoint, one a row."""
    table = new_table(checkpoint.path.name, "name", "kind", "shape", "what it tells", "dtype")
    for layer in layers:
        dtypes = {str(info.dtype).removeprefix("torch.") for info in layer.tensors.values()}
        table.add_row(
            Text(shown(layer.name) or "(top)", style="bold"),
            layer.kind,
            "x".join(map(str, layer.shape)) or "one number",
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
            "x".join(map(str, layer.kernel_size)) or layer.kind,
            "x".join(map(str, layer.stride)),
            ", ".join(map(str, sides)),
            str(layer.groups),
            layer.border,
        )
    console.print(table)
