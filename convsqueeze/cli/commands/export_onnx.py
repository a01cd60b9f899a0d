"""`export-onnx`: the squeezed layers, or the whole model that has them, as ONNX."""

from pathlib import Path
from typing import Annotated

import typer

from convsqueeze.cli.importing import importing
from convsqueeze.cli.options import (
    AsJson,
    Debug,
    InputShapes,
    Key,
    ModelCode,
    Overwrite,
)


def export_onnx(
    squeezed: Annotated[Path, typer.Argument(help="What `merge` wrote.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Default: <stem>.onnx beside SQUEEZED.")
    ] = None,
    layer: Annotated[
        list[str] | None, typer.Option("--layer", help="Only this layer; may be given again.")
    ] = None,
    opset: Annotated[int | None, typer.Option("--opset", help="ONNX operator set.")] = None,
    model: ModelCode = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option("--checkpoint", help="With --model: what was squeezed, to check against."),
    ] = None,
    shapes: InputShapes = None,
    key: Key = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write the squeezed layers as one ONNX model, or the whole model that has them, checked
    against torch first.
    """
    if model is not None:
        if layer:
            raise typer.BadParameter("--layer is for the layers alone, --model for all of them.")
        from convsqueeze.cli.whole_model import export_whole_model

        export_whole_model(
            squeezed,
            output,
            model,
            checkpoint=checkpoint,
            shapes=shapes or [],
            opset=opset,
            key=key,
            overwrite=overwrite,
            as_json=as_json,
        )
        return
    if checkpoint is not None or shapes:
        raise typer.BadParameter("--checkpoint and --input are for a whole model: give --model.")
    with importing():
        from convsqueeze.cli.output import consoles, print_json
        from convsqueeze.cli.progress import DelayedProgress
        from convsqueeze.cli.tables import print_export
        from convsqueeze.export import default_onnx_destination, export
    console, errors = consoles(as_json)
    with DelayedProgress(errors, quiet=False) as track:
        track(f"exporting {squeezed.name}", 0, 0)
        result = export(
            squeezed,
            output or default_onnx_destination(squeezed),
            names=layer or None,
            opset=opset,
            key=key,
            overwrite=overwrite,
        )
    if as_json:
        print_json(result.to_data())
    print_export(console, result)
