"""The commands: options in, reports out, the exit status that the outcome has.

Imports typer and what takes no time; each command imports what it needs before its work begins.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from convsqueeze.cli.importing import importing
from convsqueeze.cli.sizes import byte_count

app = typer.Typer(
    name="convsqueeze",
    help="Merge trained convolutions that follow each other into one, exactly.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


class BorderChoice(StrEnum):
    """Border policies of `--border`."""

    exact = "exact"
    corrected = "corrected"
    interior = "interior"


class GrowthChoice(StrEnum):
    """What becomes of a merge that would store more weights."""

    refuse = "refuse"
    skip = "skip"
    allow = "allow"


Model = Annotated[Path, typer.Argument(help="Checkpoint: .pt .pth .ckpt .bin .safetensors, index.")]
Key = Annotated[
    str | None, typer.Option("--key", help="Entry of the file that holds the state dict.")
]
Trials = Annotated[int, typer.Option(min=1, help="Random images for each input size.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the random images.")]
Device = Annotated[
    str,
    typer.Option("--device", help="Where torch computes: cpu, cuda or cuda:N, the N-th GPU."),
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
Debug = Annotated[bool, typer.Option("--debug", help="Show where an internal error comes from.")]
"""Heeded by `main`, which words what no command does."""


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"convsqueeze {version('convsqueeze')}")
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


@app.command()
def merge(
    model: Model,
    pairs: Annotated[Path, typer.Option("--pairs", help="Manifest: which layers to merge.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Default: <stem>.squeezed<suffix> beside MODEL."),
    ] = None,
    onnx: Annotated[
        Path | None, typer.Option("--onnx", help="Also write the squeezed layers as ONNX.")
    ] = None,
    border: Annotated[
        BorderChoice | None,
        typer.Option(
            help="For all entries: exact, corrected or interior at the border.", metavar="POLICY"
        ),
    ] = None,
    growth: Annotated[
        GrowthChoice, typer.Option(help="For a merge that would store more weights.")
    ] = GrowthChoice.refuse,
    widen: Annotated[
        bool, typer.Option("--widen", help="Store a tensor wider whose dtype cannot hold it.")
    ] = False,
    max_shard_size: ShardSize = None,
    key: Key = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Plan only, write nothing.")] = False,
    overwrite: Overwrite = False,
    trials: Trials = 3,
    seed: Seed = 0,
    device: Device = "cpu",
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print errors only.")] = False,
    debug: Debug = False,
) -> None:
    """Merge layers of a checkpoint, verify the result and write it."""
    with importing():
        from convsqueeze.cli.data import merge_data
        from convsqueeze.cli.output import consoles, print_json
        from convsqueeze.cli.progress import DelayedProgress
        from convsqueeze.cli.tables import print_export, print_merge
        from convsqueeze.pipeline import merge_file
        from convsqueeze.verify import Settings

        onnx_job = None
        if onnx is not None:
            from convsqueeze.cli.onnx_job import OnnxJob

            onnx_job = OnnxJob(onnx, overwrite=overwrite, seed=seed)
    console, errors = consoles(as_json)
    with DelayedProgress(errors, quiet=quiet) as track:
        done = merge_file(
            model,
            pairs,
            output,
            key=key,
            border=border.value if border else None,
            growth=growth.value,
            widen=widen,
            settings=Settings(trials, seed),
            dry_run=dry_run,
            overwrite=overwrite,
            largest_shard=max_shard_size,
            beside=onnx_job or (lambda result, files: None),
            track=track,
            device=device,
        )
        exported = onnx_job.result() if onnx_job else None
    if as_json:
        onnx_data = {"onnx": exported.to_data()} if exported else {}
        print_json({**merge_data(done), **onnx_data})
    if not quiet:
        print_merge(console, done)
        if exported:
            print_export(console, exported)


@app.command()
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


@app.command("export-onnx")
def export_onnx(
    squeezed: Annotated[Path, typer.Argument(help="What `merge` wrote.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Default: <stem>.onnx beside SQUEEZED.")
    ] = None,
    layer: Annotated[
        list[str] | None, typer.Option("--layer", help="Only this layer; may be given again.")
    ] = None,
    opset: Annotated[int | None, typer.Option("--opset", help="ONNX operator set.")] = None,
    key: Key = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write the squeezed layers as one ONNX model, checked against torch first."""
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


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="Any checkpoint.")],
    key: Key = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """List the layers of a checkpoint: what a manifest is written from."""
    with importing():
        from convsqueeze.checkpoint import open_checkpoint
        from convsqueeze.cli.data import inspect_data
        from convsqueeze.cli.inspection import print_inspection
        from convsqueeze.cli.output import consoles, print_json
        from convsqueeze.inspection import found_layers
    checkpoint = open_checkpoint(file, key=key)
    layers = found_layers(checkpoint)
    if as_json:
        print_json(inspect_data(checkpoint, layers))
    else:
        print_inspection(consoles(as_json)[0], checkpoint, layers)


@app.command()
def schema() -> None:
    """Print the manifest's JSON Schema, for editors that check YAML."""
    with importing():
        from convsqueeze.cli.output import print_json
        from convsqueeze.manifest import json_schema
    print_json(json_schema())
