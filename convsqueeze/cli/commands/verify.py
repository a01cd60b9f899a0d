"""`verify`: a squeezed checkpoint against its original."""

from pathlib import Path
from typing import Annotated, Any

import typer

from convsqueeze.cli import options
from convsqueeze.cli.signals import importing


def verify(
    original: Annotated[Path, typer.Argument(help="The checkpoint that was merged.")],
    squeezed: Annotated[Path, typer.Argument(help="What `merge` wrote.")],
    pairs: Annotated[
        Path | None, typer.Option("--pairs", help="Manifest, instead of the recipe's own.")
    ] = None,
    onnx: Annotated[
        Path | None, typer.Option("--onnx", help="Also run the layers of this ONNX file.")
    ] = None,
    key: options.Key = None,
    trials: options.Trials = 3,
    seed: options.Seed = 0,
    exhaustive: Annotated[
        bool, typer.Option("--exhaustive", help="Impulses at every position: proves equality.")
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", help="Draw where layers differ: .png .pdf .svg (matplotlib)."),
        options.WRITTEN,
    ] = None,
    device: options.Device = "cpu",
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Hold a squeezed checkpoint against its original; exit 1 where they differ."""
    with importing():
        from convsqueeze.cli import data, output, tables
        from convsqueeze.cli.progress import DelayedProgress
        from convsqueeze.errors import VerificationError
        from convsqueeze.manifest import load_manifest
        from convsqueeze.pipeline import verify_files
        from convsqueeze.verify import Settings

        if onnx is not None:
            from convsqueeze.export import check_onnx_file, onnx_files
            from convsqueeze.module import load_layers
        if plot is not None:
            from convsqueeze.plot import check_plot, write_plot

            check_plot(plot, overwrite=overwrite)
    console, errors = output.consoles(as_json)
    more_data: dict[str, Any] = {"onnx": []} if onnx else {}
    with DelayedProgress(errors) as track:
        report = verify_files(
            original,
            squeezed,
            manifest=None if pairs is None else load_manifest(pairs),
            key=key,
            settings=Settings(trials, seed, exhaustive, maps=plot is not None),
            track=track,
            device=device,
        )
        if onnx is not None and report.ok:
            try:
                seen = check_onnx_file(onnx, load_layers(squeezed, key=key), seed=seed)
                more_data["onnx"] = [one.to_data() for one in seen]
            except VerificationError as error:
                report = report.with_problems(error.problems)
    more_data["state_dict"] = report.state_dict
    drawn = None
    if plot is not None:
        inputs = [*([pairs] if pairs else []), *(onnx_files(onnx) if onnx else [])]
        drawn = write_plot(report, plot, overwrite=overwrite, inputs=inputs)
        more_data["plot"] = drawn.output
    try:
        with output.reporting([drawn.output if drawn else None]):
            tables.print_verify(console, report)
            if drawn:
                tables.print_plot(console, drawn)
            if as_json:
                output.print_json({**data.report_data(report), **more_data})
    finally:  # a report that cannot be printed hides no failure
        report.raise_if_failed()
