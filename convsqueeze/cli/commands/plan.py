"""`plan`: what merging would do, and what would be better."""

from convsqueeze.cli.importing import importing
from convsqueeze.cli.options import (
    AsJson,
    BorderPolicy,
    Debug,
    GrowthChoice,
    GrowthPolicy,
    Key,
    Minimize,
    MinimizeChoice,
    Model,
    Pairs,
    Runtime,
    RuntimeChoice,
)


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
