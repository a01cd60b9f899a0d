"""`verify`: a squeezed checkpoint against its original."""

from pathlib import Path
from typing import Annotated, Any

import typer

from convsqueeze.cli.importing import importing
from convsqueeze.cli.options import (
    AsJson,
    Debug,
    Device,
    Key,
    Overwrite,
    Seed,
    Trials,
)


def verify(
    original: Annotated[Path, typer.Argument(help="The checkpoint that was merged.")],
    squeezed: Annotated[Path, typer.Argument(help="What `merge` wrote.")],
    pairs: Annotated[
        Path | None, typer.Option("--pairs", help="Manifest, instead of the recipe's own.")
    ] = None,
    onnx: Annotated[
        Path | None, typer.Option("--onnx", help="Also run the layers of this ONNX file.")
    ] = None,
    key: Key = None,
    trials: Trials = 3,
    seed: Seed = 0,
    exhaustive: Annotated[
        bool,
        typer.Option("--exhaustive", help="Impulses at every position: proves equality."),
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", help="Draw where layers differ: .png .pdf .svg (matplotlib)."),
    ] = None,
    device: Device = "cpu",
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Hold a squeezed checkpoint against its original; exit 1 where they differ."""
    inputs = [path for path in (original, squeezed, pairs, onnx) if path is not None]
    with importing():
        from convsqueeze.cli.data import plot_data, report_data
        from convsqueeze.cli.output import consoles, print_json
        from convsqueeze.cli.progress import DelayedProgress
        from convsqueeze.cli.tables import print_plot, print_verify
        from convsqueeze.manifest import load_manifest
        from convsqueeze.pipeline import verify_files
        from convsqueeze.verify import Settings

        if onnx is not None:
            from convsqueeze.cli.onnx_job import with_onnx
        if plot is not None:
            from convsqueeze.plot import check_plot, write_plot

            check_plot(plot, overwrite=overwrite, inputs=inputs)
    console, errors = consoles(as_json)
    with DelayedProgress(errors, quiet=False) as track:
        report = verify_files(
            original,
            squeezed,
            manifest=None if pairs is None else load_manifest(pairs),
            key=key,
            settings=Settings(trials, seed, exhaustive, maps=plot is not None),
            track=track,
            device=device,
        )
        seen: list[dict[str, Any]] = []
        if onnx is not None and report.ok:
            report, seen = with_onnx(report, onnx, squeezed, key, seed)
    print_verify(console, report)
    drawn = None
    if plot is not None:
        drawn = write_plot(report, plot, overwrite=overwrite, inputs=inputs)
        print_plot(console, drawn)
    if as_json:
        onnx_data = {"onnx": seen} if onnx else {}
        print_json({**report_data(report), **onnx_data, **(plot_data(drawn) if drawn else {})})
    report.raise_if_failed()
