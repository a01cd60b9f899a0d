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
        from convsqueeze.cli.output import consoles, print_json
        from convsqueeze.cli.progress import DelayedProgress
        from convsqueeze.cli.tables import print_whole_export
        from convsqueeze.export import check_onnx_destination, default_onnx_destination
        from convsqueeze.models import guess_inputs, load_model, parsed_inputs
        from convsqueeze.models.onnx import check_exporter, export_whole
    console, errors = consoles(as_json)
    destination = output or default_onnx_destination(squeezed)
    check_onnx_destination(destination, overwrite=overwrite, source=squeezed)
    check_exporter(opset)
    inputs = parsed_inputs(shapes) if shapes else None
    with DelayedProgress(errors, quiet=False) as track:
        track(f"running {place}", 0, 0)
        model = load_model(place).eval()
        if inputs is None:
            guess = guess_inputs(model)
            inputs = guess.inputs
            errors.print(f"[yellow]note[/]: {guess.told}", soft_wrap=True, highlight=False)
        result = export_whole(
            model,
            squeezed,
            destination,
            inputs,
            checkpoint=checkpoint,
            key=key,
            opset=opset,
            overwrite=overwrite,
            track=track,
        )
    if as_json:
        print_json(result.to_data())
    print_whole_export(console, result)
