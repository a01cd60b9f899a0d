"""The commands: options in, reports out, the exit status that the outcome has.

Imports typer and what takes no time; each command imports what it needs before its work begins.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from convsqueeze.cli.importing import importing
from convsqueeze.cli.options import (
    AsJson,
    BorderPolicy,
    Debug,
    Device,
    GrowthChoice,
    GrowthPolicy,
    InputShapes,
    Key,
    Minimize,
    MinimizeChoice,
    Model,
    ModelCode,
    Overwrite,
    Pairs,
    Runtime,
    RuntimeChoice,
    Seed,
    ShardSize,
    Trials,
)

app = typer.Typer(
    name="convsqueeze",
    help="Merge trained convolutions that follow each other into one, exactly.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


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
    pairs: Annotated[
        Path | None, typer.Option("--pairs", help="Manifest: which layers to merge.")
    ] = None,
    code: ModelCode = None,
    shapes: InputShapes = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Default: <stem>.squeezed<suffix> beside MODEL."),
    ] = None,
    onnx: Annotated[
        Path | None, typer.Option("--onnx", help="Also write the squeezed layers as ONNX.")
    ] = None,
    border: BorderPolicy = None,
    growth: GrowthPolicy = GrowthChoice.refuse,
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
    """Merge layers of a checkpoint, verify the result and write it: those of a manifest, or those
    that a scan of the model's own code finds.
    """
    if pairs is None and code is None:
        raise typer.BadParameter("which layers? Give a manifest (--pairs) or the code (--model).")
    if shapes and code is None:
        raise typer.BadParameter("--input is for the model's own code: give --model.")
    with importing():
        from convsqueeze.cli.data import merge_data
        from convsqueeze.cli.layout import print_notes
        from convsqueeze.cli.output import consoles, print_json
        from convsqueeze.cli.progress import DelayedProgress
        from convsqueeze.cli.tables import print_export, print_merge, print_whole
        from convsqueeze.pipeline import in_turn, merge_file
        from convsqueeze.verify import Settings

        if code is not None:
            from convsqueeze.cli.scanning import manifest_from_code, whole_job
            from convsqueeze.models import code_of
        onnx_job = whole = None
        if onnx is not None:
            from convsqueeze.cli.onnx_job import OnnxJob

            onnx_job = OnnxJob(onnx, overwrite=overwrite, seed=seed)
    console, errors = consoles(as_json)
    policies: Any = {"border": border.value if border else None, "growth": growth.value}
    manifest: Any = pairs
    with DelayedProgress(errors, quiet=quiet) as track:
        if code is not None:
            own = code_of(code, shapes or [], track, model, key)
            whole = whole_job(own, seed, track)
            if pairs is None:
                manifest = manifest_from_code(own, code, track, **policies)
        done = merge_file(
            model,
            manifest,
            output,
            key=key,
            **policies,
            widen=widen,
            settings=Settings(trials, seed),
            dry_run=dry_run,
            overwrite=overwrite,
            largest_shard=max_shard_size,
            beside=in_turn(whole, onnx_job),
            track=track,
            device=device,
        )
        exported = onnx_job.result() if onnx_job else None
        seen = whole.report if whole else None
    if as_json:
        onnx_data = {"onnx": exported.to_data()} if exported else {}
        whole_data = {"whole_model": seen.to_data()} if seen else {}
        print_json({**merge_data(done), **whole_data, **onnx_data})
    if not quiet:
        print_merge(console, done)
        if code is not None:
            print_notes(console, own.notes)
        if seen:
            print_whole(console, seen)
        if exported:
            print_export(console, exported)


@app.command()
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


@app.command()
def plan(
    model: Model,
    pairs: Pairs,
    minimize: Minimize = MinimizeChoice.weights,
    border: BorderPolicy = None,
    growth: GrowthPolicy = GrowthChoice.refuse,
    runtime: Runtime = RuntimeChoice.onnxruntime,
    key: Key = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Tell what merging would do, and which partition of the layers is better; writes nothing."""
    with importing():
        from convsqueeze.cli.output import consoles, print_json
        from convsqueeze.cli.progress import DelayedProgress
        from convsqueeze.cli.reviews import print_review, review_data
        from convsqueeze.pipeline import review_file

        latency = None
        if minimize is MinimizeChoice.latency:
            from convsqueeze.latency import measuring

            latency = measuring(runtime.value)
    console, errors = consoles(as_json)
    with DelayedProgress(errors, quiet=False) as track:
        found = review_file(
            model,
            pairs,
            key=key,
            border=border.value if border else None,
            growth=growth.value,
            minimize=minimize.value,
            latency=latency,
            track=track,
        )
    if as_json:
        print_json(review_data(found))
    print_review(console, found)
    if found.refused is not None:
        raise found.refused


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
