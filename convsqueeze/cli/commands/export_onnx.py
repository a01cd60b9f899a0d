"""`export-onnx`: the squeezed layers, or the whole model that has them, as ONNX."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from convsqueeze.cli import options
from convsqueeze.cli.signals import importing


def export_onnx(
    squeezed: Annotated[Path, typer.Argument(help="What `merge` wrote.")],
    destination: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Default: <stem>.onnx beside SQUEEZED."),
        options.WRITTEN,
    ] = None,
    layer: Annotated[
        list[str] | None, typer.Option("--layer", help="Only this layer; may be given again.")
    ] = None,
    opset: Annotated[int | None, typer.Option("--opset", help="ONNX operator set.")] = None,
    model: options.ModelCode = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option("--checkpoint", help="With --model: what was squeezed, to check against."),
    ] = None,
    shapes: options.InputShapes = None,
    key: options.Key = None,
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Write the squeezed layers as one ONNX model, or the whole model that has them, checked
    against torch first.
    """
    if model is None and (checkpoint is not None or shapes):
        raise typer.BadParameter("--checkpoint and --input are for a whole model: give --model.")
    if model is not None and layer:
        raise typer.BadParameter("--layer is for the layers alone, --model for all of them.")
    with importing():
        from convsqueeze.cli import output, tables
        from convsqueeze.cli.progress import DelayedProgress
        from convsqueeze.export import check_onnx_destination, default_onnx_destination, export

        if model is not None:
            from convsqueeze.models import code_of
            from convsqueeze.models.onnx import check_exporter, export_whole
            from convsqueeze.tracing.raised import user_errors_told
    console, errors = output.consoles(as_json)
    place = destination or default_onnx_destination(squeezed)
    as_theirs = user_errors_told() if model is not None else nullcontext()
    with DelayedProgress(errors) as track, as_theirs:
        if model is None:
            track(f"exporting {squeezed.name}", 0, 0)
            result = export(squeezed, place, names=layer, key=key, opset=opset, overwrite=overwrite)
        else:
            # what can be refused is refused before the user's code runs
            check_onnx_destination(place, overwrite=overwrite, inputs=[squeezed])
            check_exporter(opset)
            built = code_of(model, shapes or [], track)
            output.print_notes(errors, built.notes)
            whole = export_whole(
                built.model,
                squeezed,
                place,
                built.inputs,
                checkpoint=checkpoint,
                key=key,
                opset=opset,
                overwrite=overwrite,
                track=track,
                sandbox=built.sandbox,
            )
    with output.reporting((result if model is None else whole.written).files):
        if as_json:
            told = result.to_data() if model is None else whole.to_data()
            notes = built.notes if model is not None else ()
            output.print_json({**told, "notes": [*notes, *told["notes"]]})
        if model is None:
            tables.print_export(console, result)
        else:
            tables.print_whole_export(console, whole)
