"""`scan`: the model's code in, a manifest out."""

from pathlib import Path
from typing import Annotated

import typer

from convsqueeze.cli.importing import importing
from convsqueeze.cli.options import (
    AsJson,
    BorderPolicy,
    Debug,
    GrowthChoice,
    GrowthPolicy,
    InputShapes,
    Key,
    Minimize,
    MinimizeChoice,
    Overwrite,
    Runtime,
    RuntimeChoice,
)


def scan(
    code: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:FACTORY",
            help="Code that builds the model, as package.module:factory. It is run.",
        ),
    ],
    checkpoint: Annotated[
        Path | None,
        typer.Option("--checkpoint", help="The model's weights: names must fit."),
    ] = None,
    shapes: InputShapes = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The manifest; default: standard output.")
    ] = None,
    minimize: Minimize = MinimizeChoice.weights,
    border: BorderPolicy = None,
    growth: GrowthPolicy = GrowthChoice.refuse,
    runtime: Runtime = RuntimeChoice.onnxruntime,
    key: Key = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Find the layers of a model that can be merged, from its own code, and write the manifest."""
    with importing():
        from convsqueeze.cli.layout import print_notes
        from convsqueeze.cli.output import consoles, print_json
        from convsqueeze.cli.progress import DelayedProgress
        from convsqueeze.cli.scanning import (
            check_output,
            latency_of,
            print_scan,
            scan_data,
            write_scan,
        )
        from convsqueeze.models import code_of, scan_model
        from convsqueeze.scan.writing import scan_yaml

        latency = latency_of(minimize, runtime)
    console, errors = consoles(as_json or output is None)
    check_output(output, checkpoint, overwrite=overwrite)
    with DelayedProgress(errors, quiet=False) as track:
        own = code_of(code, shapes or [], track, checkpoint, key)
        track(f"scanning {code}", 0, 0)
        found = scan_model(
            own.model,
            own.inputs,
            minimize=minimize.value,
            border=border.value if border else "exact",
            growth=growth.value,
            latency=latency,
        )
    print_notes(errors, own.notes)
    if output is not None:
        write_scan(found, code, output, overwrite=overwrite)
    if as_json:
        print_json(scan_data(found, code, own.notes))
    elif output is None:
        typer.echo(scan_yaml(found, code), nl=False)
    else:
        print_scan(console, found, code, output)
