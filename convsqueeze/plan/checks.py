"""What stands against merges that are each sound, conflicts and growth, and notes on them."""

from collections.abc import Iterator, Sequence

from convsqueeze.algebra.sizes import smallest_size
from convsqueeze.plan.model import Growth, Merge
from convsqueeze.plan.parameters import Infos


def conflicts(merges: Sequence[Merge], infos: Infos) -> list[str]:
    """Tensors that two layers use, and results that would overwrite something that stays."""
    return [*_used_twice(merges), *_overwritten(merges, infos), *_same_into(merges)]


def _used_twice(merges: Sequence[Merge]) -> Iterator[str]:
    users: dict[str, list[str]] = {}
    for merge in merges:
        of_layers = [key for leaf in merge.layers for key in leaf.keys]
        for key in [*of_layers, *(key for key in merge.consumed if key not in of_layers)]:
            users.setdefault(key, []).append(merge.place)
    for key, places in users.items():
        if len(places) > 1:
            by = " and ".join(dict.fromkeys(places))
            yield f"{places[-1]}: {key} is used {len(places)} times (by {by}). Use it once."


def _overwritten(merges: Sequence[Merge], infos: Infos) -> Iterator[str]:
    gone = {key for merge in merges for key in merge.consumed}
    for merge in merges:
        if not merge.into:
            yield f"{merge.place}: no layer here has a name to merge into. Give into: NAME."
        inside = [key for key in infos if key.startswith(f"{merge.into}.border.")]
        for key in (f"{merge.into}.weight", f"{merge.into}.bias", *inside):
            if (key in infos and key not in gone) and (merge.corrections or key not in inside):
                yield (
                    f"{merge.place}: {key} is in the checkpoint and is not merged, so into: "
                    f"{merge.into} would overwrite it. Give another into, or list it under drop."
                )


def _same_into(merges: Sequence[Merge]) -> Iterator[str]:
    places: dict[str, list[str]] = {}
    for merge in merges:
        places.setdefault(merge.into, []).append(merge.place)
    for into, used in places.items():
        if len(used) > 1 and into:
            where = " and ".join(used)
            yield f"{where}: into {into} is given {len(used)} times. Give each its own."


def sorted_by_growth(
    merges: Sequence[Merge], growth: Growth
) -> tuple[list[Merge], list[str], list[str]]:
    """Merges to do, refusals of merges that grow, notes on those that are skipped."""
    kept, refused, skipped = [], [], []
    for merge in merges:
        if merge.weights_after <= merge.weights_before or growth == "allow":
            kept.append(merge)
            continue
        times = merge.weights_after / merge.weights_before
        grows = (
            f"{merge.place}: {merge.into} would grow from {merge.weights_before:,} to "
            f"{merge.weights_after:,} weights ({times:.1f} times)"
        )
        if growth == "skip":
            skipped.append(f"{grows} and is left as it is")
        else:
            refused.append(
                f"{grows}, a merge must not grow the checkpoint. "
                "Remove the entry, or use --growth skip or --growth allow."
            )
    return kept, refused, skipped


def tie_notes(merges: Sequence[Merge], ties: Sequence[Sequence[str]]) -> list[str]:
    consumed = {key for merge in merges for key in merge.consumed}
    notes = []
    for group in ties:
        gone = [key for key in group if key in consumed]
        stays = [key for key in group if key not in consumed]
        if gone and stays:
            notes.append(
                f"{', '.join(gone)} shares its memory with {', '.join(stays)}, which stays"
            )
    return notes


def small_input_notes(merges: Sequence[Merge]) -> Iterator[str]:
    """Merges whose padding is wider than images that the layers apart take, as circular adds up."""
    for merge in merges:
        for number, axis in enumerate(merge.geometry.axes):
            smallest = smallest_size(merge.geometry_tree, number)
            if not axis.accepts(smallest):
                yield (
                    f"{merge.into} pads by {max(axis.before, axis.after)} ({axis.padding_mode}): "
                    "torch's own layer refuses smaller images, SqueezedConv and ONNX take them"
                )
                break
