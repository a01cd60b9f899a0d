"""`plan`: what merging would do, and what would be better."""

from convsqueeze.cli import options
from convsqueeze.cli.importing import importing


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
        from convsqueeze.cli.data import review_data
        from convsqueeze.cli.output import consoles, print_json
        from convsqueeze.cli.progress import DelayedProgress
        from convsqueeze.cli.tables import print_review
        from convsqueeze.pipeline.reviewing import review_file

        latency = None
        if minimize == "latency":
            from convsqueeze.latency import measuring

            latency = measuring(runtime)
    console, errors = consoles(as_json)
    with DelayedProgress(errors, quiet=False) as track:
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
        print_json(review_data(found))
    print_review(console, found)
    if found.refused is not None:
        raise found.refused
