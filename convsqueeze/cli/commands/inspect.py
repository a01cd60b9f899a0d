"""`inspect`: the layers of a checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

from convsqueeze.cli import options
from convsqueeze.cli.signals import importing


def inspect(
    file: Annotated[Path, typer.Argument(help="Any checkpoint.")],
    key: options.Key = None,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """List the layers of a checkpoint: what a manifest is written from."""
    with importing():
        from convsqueeze.checkpoint import open_checkpoint
        from convsqueeze.cli import inspection, output
        from convsqueeze.inspection import found_layers
    checkpoint = open_checkpoint(file, key=key)
    layers = found_layers(checkpoint)
    if as_json:
        output.print_json(inspection.inspect_data(checkpoint, layers))
    else:
        inspection.print_inspection(output.consoles(as_json)[0], checkpoint, layers)
