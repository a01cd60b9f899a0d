"""`merge`: a manifest or the model's code in, a smaller checkpoint out."""

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from convsqueeze.cli import options
from convsqueeze.cli.signals import importing


def merge(
    model: options.Model,
    pairs: Annotated[
        Path | None, typer.Option("--pairs", help="Manifest: which layers to merge.")
    ] = None,
    code: options.ModelCode = None,
    shapes: options.InputShapes = None,
    destination: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Default: <stem>.squeezed<suffix> beside MODEL."),
        options.WRITTEN,
    ] = None,
    onnx: Annotated[
        Path | None,
        typer.Option("--onnx", help="Also write the squeezed layers as ONNX."),
        options.WRITTEN,
    ] = None,
    border: options.BorderPolicy = None,
    growth: options.GrowthPolicy = "refuse",
    widen: Annotated[
        bool, typer.Option("--widen", help="Store a tensor wider whose dtype cannot hold it.")
    ] = False,
    max_shard_size: options.ShardSize = None,
    key: options.Key = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Plan only, write nothing.")] = False,
    overwrite: options.Overwrite = False,
    trials: options.Trials = 3,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    as_json: options.AsJson = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print errors only.")] = False,
    debug: options.Debug = False,
) -> None:
    """Merge layers of a checkpoint, verify the result and write it: those of a manifest, or those
    that a scan of the model's own code finds.
    """
    if pairs is None and code is None:
        raise typer.BadParameter("which layers? Give a manifest (--pairs) or the code (--model).")
    if shapes and code is None:
        raise typer.BadParameter("--input is for the model's own code: give --model.")
    with importing():
        from convsqueeze.cli import data, output, tables
        from convsqueeze.cli.progress import DelayedProgress
        from convsqueeze.pipeline import compose, merge_file
        from convsqueeze.verify import Settings

        if code is not None:
            from convsqueeze.models import WholeReport, code_of, plan_from_code, put_in_place
            from convsqueeze.tracing.raised import user_errors_told
        if onnx is not None:
            from convsqueeze.export import CheckedModel, check_onnx_destination, checked_onnx

            check_onnx_destination(onnx, overwrite=overwrite)
    console, errors = output.consoles(as_json)
    manifest: Any = pairs
    notes: tuple[str, ...] = ()
    built: Any = None
    wholes: list[WholeReport] = []
    checked: list[CheckedModel] = []

    def check_whole(result: Any, files: Any) -> None:
        """The whole model with the merged layers, held against the original."""
        given = {"sandbox": built.sandbox, "seed": seed, "track": track}
        wholes.append(put_in_place(built.model, result, built.inputs, **given)[1])

    def write_onnx(result: Any, files: Any) -> None:
        """The ONNX model of a verified result, held against torch and written with it."""
        place: Any = onnx
        settings: dict[str, Any] = {"overwrite": overwrite, "seed": seed}
        text = result.recipe.to_json()
        checked.append(checked_onnx(result.modules(), place, recipe_json=text, **settings))
        checked[0].stage(files)

    as_theirs = user_errors_told() if code is not None else nullcontext()
    with DelayedProgress(errors, quiet=quiet) as track, as_theirs:
        if code is not None:
            built = code_of(code, shapes or [], track, model, key)
            notes = built.notes
            manifest = pairs or partial(plan_from_code, built, code, track, border, growth)
        done = merge_file(
            model,
            manifest,
            destination,
            key=key,
            border=border,
            growth=growth,
            widen=widen,
            settings=Settings(trials, seed),
            dry_run=dry_run,
            overwrite=overwrite,
            largest_shard=max_shard_size,
            post_verify=compose(check_whole if code else None, write_onnx if onnx else None),
            track=track,
            device=device,
            keep_exact=code is not None,
        )
    exported = checked[0].result() if checked else None
    seen = wholes[0] if wholes else None
    with output.reporting([done.output, *(exported.files if exported else ())]):
        if as_json:
            onnx_data = {"onnx": exported.to_data()} if exported else {}
            whole_data = {"whole_model": seen.to_data()} if seen else {}
            found = [
                *notes,
                *done.notes,
                *(note for one in (seen, exported) if one for note in one.notes),
            ]
            output.print_json({**data.merge_data(done), "notes": found, **whole_data, **onnx_data})
        if not quiet:
            tables.print_merge(console, done)
            output.print_notes(console, notes)
            if seen:
                tables.print_whole(console, seen)
            if exported:
                tables.print_export(console, exported)
