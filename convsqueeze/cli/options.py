"""Options that several commands have, and the words that an option may be given."""

from pathlib import Path
from typing import Annotated, Literal

import typer


def byte_count(text: str) -> int:
    """`5GB` and `5G` are 5e9 bytes, `5GiB` are 5 * 2^30, `500` are 500.

    Raises BadParameter for anything else, and for less than one byte.
    """
    from pydantic import ByteSize, TypeAdapter, ValidationError  # takes a moment

    try:
        count = int(TypeAdapter(ByteSize).validate_python(text))
    except (ValidationError, OverflowError) as error:
        raise typer.BadParameter(f"{text!r} is no size such as 5GB, 200MB or 1GiB.") from error
    if count < 1:
        raise typer.BadParameter(f"{text!r} is less than one byte.")
    return count


WRITTEN = "written"
"""Stands beside the options whose path is that of an output; every other path is read."""
Model = Annotated[Path, typer.Argument(help="Checkpoint: .pt .pth .ckpt .bin .safetensors, index.")]
Key = Annotated[
    str | None, typer.Option("--key", help="Entry of the file that holds the state dict.")
]
Trials = Annotated[int, typer.Option(min=1, help="Random images for each input size.")]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of the images.")]
Device = Annotated[
    str, typer.Option("--device", help="Where torch computes: cpu, cuda or cuda:N, the N-th GPU.")
]
ShardSize = Annotated[
    int | None,
    typer.Option(
        "--max-shard-size",
        parser=byte_count,
        metavar="SIZE",
        help="Write shards of at most so many bytes of values, such as 5GB, and their index.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the report as JSON on stdout.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]
ModelCode = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODULE:FACTORY",
        help="Code that builds the whole model, as package.module:factory. It is run.",
    ),
]
InputShapes = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="SHAPE",
        help="With --model: an argument of its forward, as 1,3,224,224 or 1,77:int64.",
    ),
]
Pairs = Annotated[Path, typer.Option("--pairs", help="Manifest: which layers to merge.")]
BorderPolicy = Annotated[
    Literal["exact", "corrected", "interior"] | None,
    typer.Option(
        "--border",
        help="For all entries: exact, corrected or interior at the border.",
        metavar="POLICY",
    ),
]
GrowthPolicy = Annotated[
    Literal["refuse", "skip", "allow"],
    typer.Option("--growth", help="For a merge that would store more weights."),
]
Minimize = Annotated[
    Literal["weights", "macs", "latency"],
    typer.Option("--minimize", help="What a partition of the layers is best by."),
]
Runtime = Annotated[
    Literal["onnxruntime", "torch"], typer.Option("--runtime", help="What latency is measured in.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show where an internal error comes from.")]
"""Read by `main`, which words the errors of every command."""
