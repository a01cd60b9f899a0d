"""`scan`: the model's code in, a manifest out."""

from pathlib import Path
from typing import Annotated

import typer

from convsqueeze.cli import options
from convsqueeze.cli.signals import importing


def scan(
    code: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:FACTORY",
            help="Code that builds the model, as package.module:factory. It is run.",
        ),
    ],
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", help="The model's weights: names must fit.")
    ] = None,
    shapes: options.InputShapes = None,
    destination: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The manifest; default: standard output."),
        options.WRITTEN,
    ] = None,
    minimize: options.Minimize = "weights",
    border: options.BorderPolicy = None,
    growth: options.GrowthPolicy = "refuse",
    runtime: options.Runtime = "onnxruntime",
    key: options.Key = None,
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Find the layers of a model that can be merged, from its own code, and write the manifest."""
    with importing():
        from convsqueeze.checkpoint.new_files import NewFiles
        from convsqueeze.cli import data, output, tables
        from convsqueeze.cli.progress import DelayedProgress
        from convsqueeze.models import code_of, scan_model
        from convsqueeze.paths import check_outputs
        from convsqueeze.scan.writing import left_lines, scan_yaml
        from convsqueeze.tracing.raised import user_errors_told

        latency = None
        if minimize == "latency":
            from convsqueeze.latency import measuring

            latency = measuring(runtime)
    console, errors = output.consoles(as_json or destination is None)
    if destination is not None:
        check_outputs([destination], overwrite=overwrite)
    with DelayedProgress(errors) as track, user_errors_told():
        built = code_of(code, shapes or [], track, checkpoint, key)
        track(f"scanning {code}", 0, 0)
        found = scan_model(
            built.model,
            built.inputs,
            minimize=minimize,
            border=border or "exact",
            growth=growth,
            latency=latency,
            sandbox=built.sandbox,
        )
    output.print_notes(errors, built.notes)
    text = scan_yaml(found, code)
    if destination is not None and found.document is not None:
        with NewFiles(overwrite=overwrite, inputs=built.files) as files:
            files.add(destination, lambda file: file.write(text.encode()))
            files.commit()
    with output.reporting([destination if found.document is not None else None]):
        if as_json:
            output.print_notes(errors, found.notes)
            output.print_json(data.scan_data(found, code, built.notes))
        elif destination is None:
            output.print_notes(errors, found.notes)
            typer.echo(text, nl=False)
        else:
            if found.entries:
                tables.print_entries(console, code, found.entries)
            for line in left_lines(found.left):
                console.print(line, style="dim", markup=False, soft_wrap=True, highlight=False)
            output.print_notes(console, found.notes)
            if found.document is None:
                console.print("Nothing to merge, nothing written.")
            else:
                output.print_files(console, [destination])
