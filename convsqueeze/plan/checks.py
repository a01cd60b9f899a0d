"""What stands against merges that are each sound, conflicts and growth, and notes on them."""

from collections.abc import Iterator, Sequence

from convsqueeze.algebra.sizes import smallest_size
from convsqueeze.algebra.tree import Chain
from convsqueeze.plan.model import Growth, Merge
from convsqueeze.plan.parameters import Infos
from convsqueeze.plan.wording import grows


def conflicts(merges: Sequence[Merge], infos: Infos) -> list[str]:
    """Entries listed twice, tensors that two layers use, and results that would overwrite something
    that stays.
    """
    once: dict[tuple[str, ...], Merge] = {}
    repeated = []
    for merge in merges:
        same = (merge.into, *(key for leaf in merge.layers for key in leaf.keys))
        if (first := once.setdefault(same, merge)) is not merge:
            repeated.append(
                f"{merge.place}: merges {_labels(merge)} into {merge.into}, as {first.place} "
                "does, one entry for it was needed. Remove one of the two."
            )
    kept = list(once.values())
    return [*repeated, *_used_twice(kept), *_overwritten(kept, infos), *_same_into(kept)]


def _labels(*merges: Merge) -> str:
    return ", ".join(dict.fromkeys(leaf.label for merge in merges for leaf in merge.layers))


def _used_twice(merges: Sequence[Merge]) -> Iterator[str]:
    users: dict[str, list[Merge]] = {}
    for merge in merges:
        of_layers = [key for leaf in merge.layers for key in leaf.keys]
        for key in [*of_layers, *(key for key in merge.consumed if key not in of_layers)]:
            users.setdefault(key, []).append(merge)
    for key, merges_of in users.items():
        if len(merges_of) > 1:
            by = " and ".join(dict.fromkeys(merge.place for merge in merges_of))
            yield (
                f"{merges_of[-1].place}: {key} is used {len(merges_of)} times (by {by}). "
                f"Use it once{_as_one_chain(merges_of, key)}."
            )


def _as_one_chain(users: Sequence[Merge], key: str) -> str:
    """What to do about a tensor of two entries whose layers follow each other."""
    apart = list({id(merge): merge for merge in users}.values())
    for first, second in (apart, apart[::-1]) if len(apart) == 2 else ():
        trees = isinstance(first.tree, Chain) and isinstance(second.tree, Chain)
        if trees and key in first.layers[-1].keys and key in second.layers[0].keys:
            chain = f"chain: [{_labels(first, second)}]"
            return f": layers that follow each other are one entry, {chain}"
    return ""


def _overwritten(merges: Sequence[Merge], infos: Infos) -> Iterator[str]:
    gone = {key for merge in merges for key in merge.consumed}
    borders = [key for key in infos if ".border." in key]
    for merge in merges:
        if not merge.into:
            yield f"{merge.place}: no layer here has a name to merge into. Give into: NAME."
        inside = [key for key in borders if key.startswith(f"{merge.into}.border.")]
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
        message = f"{merge.place}: {merge.into} {grows(merge.weights_before, merge.weights_after)}"
        if growth == "skip":
            skipped.append(f"{message} and is left as it is")
        else:
            refused.append(
                f"{message}, a merge must not grow the checkpoint. "
                "Remove the entry, or use --growth skip or --growth allow."
            )
    return kept, refused, skipped


def tie_notes(merges: Sequence[Merge], ties: Sequence[Sequence[str]]) -> Iterator[str]:
    consumed = {key for merge in merges for key in merge.consumed}
    for group in ties:
        gone = ", ".join(key for key in group if key in consumed)
        stays = ", ".join(key for key in group if key not in consumed)
        if gone and stays:
            yield f"{gone} shares its memory with {stays}, which stays"


def small_input_notes(merges: Sequence[Merge]) -> Iterator[str]:
    """Merges whose padding is wider than images that the layers apart take, as circular adds up."""
    for merge in merges:
        axes = enumerate(merge.geometry.axes)
        wide = (a for n, a in axes if not a.accepts(smallest_size(merge.geometry_tree, n)))
        if axis := next(wide, None):
            yield (
                f"{merge.into} pads by {max(axis.before, axis.after)} ({axis.padding_mode}): "
                "torch's own layer refuses smaller images, SqueezedConv and ONNX take them"
            )
