"""`merge`: a manifest or the model's code in, a smaller checkpoint out."""

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
    Model,
    ModelCode,
    Overwrite,
    Seed,
    ShardSize,
    Trials,
)


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
            from convsqueeze.cli.scanning import planner_from_code, whole_job
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
                manifest = planner_from_code(own, code, track, **policies)
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
            keep_exact=whole is not None,
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
