"""`export-onnx --model`: the user's code is run, and the whole model written."""

from pathlib import Path

from convsqueeze.cli.importing import importing


def export_whole_model(
    squeezed: Path,
    output: Path | None,
    place: str,
    *,
    checkpoint: Path | None,
    shapes: list[str],
    opset: int | None,
    key: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """What can be refused is refused before the user's code runs."""
    with importing():
        from convsqueeze.cli.layout import print_notes
        from convsqueeze.cli.output import consoles, print_json
        from convsqueeze.cli.progress import DelayedProgress
        from convsqueeze.cli.tables import print_whole_export
        from convsqueeze.export import check_onnx_destination, default_onnx_destination
        from convsqueeze.models import code_of
        from convsqueeze.models.onnx import check_exporter, export_whole
    console, errors = consoles(as_json)
    destination = output or default_onnx_destination(squeezed)
    check_onnx_destination(destination, overwrite=overwrite, source=squeezed)
    check_exporter(opset)
    with DelayedProgress(errors, quiet=False) as track:
        own = code_of(place, shapes, track)
        print_notes(errors, own.notes)
        result = export_whole(
            own.model,
            squeezed,
            destination,
            own.inputs,
            checkpoint=checkpoint,
            key=key,
            opset=opset,
            overwrite=overwrite,
            track=track,
            sandbox=own.sandbox,
        )
    if as_json:
        print_json(result.to_data())
    print_whole_export(console, result)
