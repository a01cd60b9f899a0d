"""Every partition of a chain, and of the branches of a sum, each part planned by `make_plan` alone.

Written apart from `plan.partition`: lists all partitions and takes the cheapest.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from convsqueeze.checkpoint import Checkpoint, from_state_dict
from convsqueeze.errors import PlanError
from convsqueeze.manifest import Border, manifest_from_data
from convsqueeze.plan import Growth, Merge, make_plan

from .chains import Drawn, Item, Size, written

Numbers = tuple[int, ...]
Clock = Callable[[Merge], tuple[int, int]]


@dataclass
class Everything:
    """The cheapest of all partitions under one measure; `clock` gives two times of a merge."""

    drawn: Drawn
    border: Border
    growth: Growth
    minimize: str
    clock: Clock | None = None
    known: dict[str, Numbers | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.checkpoint: Checkpoint = from_state_dict(self.drawn.tensors)

    def order(self, numbers: Numbers) -> Numbers:
        """(weights, macs, layers, links, time) in the order that decides."""
        weights, macs, layers, links, time = numbers
        first = {"weights": (weights, macs), "macs": (macs, weights)}
        return (*first.get(self.minimize, (time, weights, macs)), layers, links)

    def chain(self, items: Sequence[Item], size: Size) -> Numbers:
        """The cheapest of the 2^(n-1) partitions of a chain."""
        sizes = [size]
        for item in items:
            sizes.append(self.behind(item, sizes[-1]))
        found = []
        for cuts in range(2 ** (len(items) - 1)):
            total: Numbers | None = (0, 0, 0, 0, 0)
            for start, end in _runs(len(items), cuts):
                run = items[start:end]
                own = (
                    self.run(run, sizes[start]) if len(run) > 1 else self.item(run[0], sizes[start])
                )
                total = None if own is None or total is None else _plus(total, own)
            if total is not None:
                found.append(total)
        return min(found, key=self.order)

    def branches(self, items: Sequence[Item], size: Size) -> Numbers:
        """The cheapest of all set partitions of a sum's branches."""
        found = []
        for groups in _set_partitions(list(items)):
            total: Numbers | None = (0, 0, 0, 0, 0)
            for group in groups:
                own = (
                    self.merged({"sum": group}, size)
                    if len(group) > 1
                    else self.item(group[0], size)
                )
                total = None if own is None or total is None else _plus(total, own)
            if total is not None:
                found.append(total)
        return min(found, key=self.order)

    def run(self, items: Sequence[Item], size: Size) -> Numbers | None:
        real = [item for item in items if item.get("type") != "identity"]
        if len(real) < 2 and not any("sum" in item for item in real):
            return None
        return self.merged({"chain": list(items)}, size)

    def item(self, item: Item, size: Size) -> Numbers:
        if "sum" in item:
            return self.branches(item["sum"], size)
        if "chain" in item:
            return self.chain(item["chain"], size)
        layers = int(item.get("type") != "identity")
        return self.drawn.weights(item), self.drawn.macs(item, size), layers, 1, 0

    def behind(self, item: Item, size: Size) -> Size:
        if "sum" in item:
            return self.behind(item["sum"][0], size)
        for link in item.get("chain", [item]):
            size = self.drawn.size_behind(link, size) if link is item else self.behind(link, size)
        return size

    def merged(self, entry: Item, size: Size) -> Numbers | None:
        key = f"{entry} {size}"
        if key not in self.known:
            self.known[key] = self.planned(entry, size)
        return self.known[key]

    def planned(self, entry: Item, size: Size) -> Numbers | None:
        data = {**written(entry), **({} if _tells_axes(entry) else {"input": list(size)})}
        manifest = manifest_from_data({"version": 1, "pairs": [data]})
        try:
            plan = make_plan(manifest, self.checkpoint, border=self.border, growth=self.growth)
        except PlanError:
            return None
        if not plan.merges:
            return None
        merge = replace(plan.merges[0], size=size)
        change = 0
        if self.clock is not None:
            before, after = self.clock(merge)
            if after >= before:
                return None
            change = after - before
        return merge.weights_after, merge.macs_after, 1, 1, change


def _tells_axes(item: Item) -> bool:
    if "sum" in item or "chain" in item:
        return any(_tells_axes(part) for part in item.get("sum", item.get("chain")))
    return item.get("type", "conv") in ("conv", "conv_transpose")


def _plus(one: Numbers, other: Numbers) -> Numbers:
    return tuple(a + b for a, b in zip(one, other, strict=True))


def _runs(count: int, cuts: int) -> Iterator[tuple[int, int]]:
    """The runs between the set bits of `cuts`: bit i cuts behind link i."""
    start = 0
    for end in range(1, count + 1):
        if end == count or cuts >> (end - 1) & 1:
            yield start, end
            start = end


def _set_partitions(items: list[Item]) -> Iterator[list[list[Item]]]:
    """Every way to put items into groups; within a group they keep their order."""
    if not items:
        yield []
        return
    first, rest = items[0], items[1:]
    for groups in _set_partitions(rest):
        yield [[first], *groups]
        for index, group in enumerate(groups):
            yield [*groups[:index], [first, *group], *groups[index + 1 :]]
