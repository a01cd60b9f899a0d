"""`plan`: what merging would do, and what would be better."""

from convsqueeze.cli import options
from convsqueeze.cli.signals import importing


def plan(
    model: options.Model,
    pairs: options.Pairs,
    minimize: options.Minimize = "weights",
    border: options.BorderPolicy = None,
    growth: options.GrowthPolicy = "refuse",
    runtime: options.Runtime = "onnxruntime",
    key: options.Key = None,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Tell what merging would do, and which partition of the layers is better; writes nothing."""
    with importing():
        from convsqueeze.cli import data, output, tables
        from convsqueeze.cli.progress import DelayedProgress
        from convsqueeze.pipeline.reviewing import review_file

        latency = None
        if minimize == "latency":
            from convsqueeze.latency import measuring

            latency = measuring(runtime)
    console, errors = output.consoles(as_json)
    with DelayedProgress(errors) as track:
        found = review_file(
            model,
            pairs,
            key=key,
            border=border,
            growth=growth,
            minimize=minimize,
            latency=latency,
            track=track,
        )
    if as_json:
        output.print_json(data.review_data(found))
    tables.print_review(console, found)
    if found.refused is not None:
        raise found.refused
