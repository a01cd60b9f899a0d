"""A seeded source of manifests: pairs, chains, sums and what nests.

A style says what a chain aims at: padding that merges exactly, padding that leaks, or anything.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .layers import Item, LayerSource, Part, Sizes, Wish, padding_sizes

MODES = ("circular", "reflect", "replicate")
KINDS = ("pair", "chain", "sum", "chain in sum", "sum in chain")
_KIND_SHARES = (39, 26, 13, 13, 9)
_STYLES = (
    *("leaky", "mixed", "valid", "full", "pointwise", "circular", "transposed"),
    *("biased", "bordered"),
)
_STYLE_SHARES = (20, 10, 8, 8, 7, 4, 15, 17, 11)


@dataclass(frozen=True)
class Case:
    """One entry of `pairs` as plain data, and the state dict it speaks of."""

    seed: int
    kind: str
    entry: Item
    tensors: dict[str, Tensor]
    rank: int
    channels: int

    @property
    def manifest(self) -> dict[str, Any]:
        return {"version": 1, "pairs": [self.entry]}


def random_case(seed: int) -> Case:
    """The case of a seed: the same one every time."""
    return _Source(seed).case()


class _Source(LayerSource):
    """Draws what layers make together."""

    def case(self) -> Case:
        kind = self.rng.choices(KINDS, _KIND_SHARES)[0]
        channels = self.width()
        entry = self.of_vectors(kind, channels) if self.rank == 0 else self.entry(kind, channels)
        if self.chance(0.3):
            entry["into"] = "merged"
        return Case(self.seed, kind, entry, self.tensors, self.rank, channels)

    def entry(self, kind: str, channels: int) -> Item:
        if kind == "pair":
            first, second = self.links(self.style(), 2, channels)
            return {"first": first.item, "second": second.item}
        if kind == "chain":
            length = self.rng.choices((2, 3, 4), (5, 4, 1))[0]
            return dict(self.chain(self.style(), length, channels).item)
        if kind == "sum":
            return dict(self.sum(channels, chains=False).item)
        if kind == "chain in sum":
            return dict(self.sum(channels, chains=True).item)
        return dict(self.chain_with_sum(channels).item)

    def of_vectors(self, kind: str, channels: int) -> Item:
        """Linear layers on vectors, with what else has one tap."""
        links = [self.linear(channels, None)]
        for _ in range(1 if kind in ("pair", "sum") else self.rng.randint(1, 3)):
            make = self.rng.choice((self.linear, self.batch_norm, self.scale))
            links.append(make(links[-1].channels, None))
        if kind == "pair":
            return {"first": links[0].item, "second": links[1].item}
        if kind == "chain":
            return dict(self.chained(links).item)
        back = self.linear(links[-1].channels, None, out=channels)
        branch = self.chained([*links, back]).item
        branches = [branch, {"type": "identity"}, self.linear(channels, None, out=channels).item]
        if kind == "sum in chain":
            return {"chain": [self.batch_norm(channels, None).item, {"sum": branches}]}
        return {"sum": branches}

    # chains

    def style(self) -> str:
        return self.rng.choices(_STYLES, _STYLE_SHARES)[0]

    def chain(self, style: str, length: int, channels: int, out: int | None = None) -> Part:
        return self.chained(self.links(style, length, channels, out))

    def chained(self, parts: Sequence[Part]) -> Part:
        """The parts in a row, now and then with some of them as a chain within the chain."""
        sizes = [Sizes()] * self.rank
        for part in parts:
            sizes = [a.then(b) for a, b in zip(sizes, part.sizes, strict=True)]
        items = [part.item for part in parts]
        if len(items) > 2 and self.chance(0.2):
            at = self.rng.randint(0, len(items) - 2)
            items[at : at + 2] = [{"chain": items[at : at + 2]}]
        return Part({"chain": items}, parts[-1].channels, tuple(sizes))

    def links(self, style: str, length: int, channels: int, out: int | None = None) -> list[Part]:
        if style == "transposed":
            return self.with_transposed(length, channels, out)
        wishes = self.wishes(style, length)
        parts: list[Part] = []
        for index, wish in enumerate(wishes):
            last = index == len(wishes) - 1
            if index == 0 and length > 2 and self.chance(0.12):
                parts.append(self.pad(channels, Wish("full", mode=wish.mode)))
                continue
            parts.append(self.link(channels, wish, out=out if last else None))
            channels = parts[-1].channels
        if not any(_tells_rank(part.item) for part in parts):
            parts[0] = self.conv(self.entering(parts[0]), wishes[0], out=parts[0].channels)
        return parts

    def wishes(self, style: str, length: int) -> list[Wish]:
        mode = self.rng.choice(MODES) if self.chance(0.35) else "zeros"
        if style == "leaky":
            first = Wish("same" if self.chance(0.7) else "any", taps="many")
            return [first, *(Wish("same", taps="many") for _ in range(length - 1))]
        if style == "valid":
            return [Wish("any", mode=mode), *(Wish("none") for _ in range(length - 1))]
        if style == "full":
            return [*(Wish("full", bias=False) for _ in range(length - 1)), Wish("any")]
        if style == "pointwise":
            strided = self.chance(0.3)
            first = Wish("none", None if mode != "zeros" else False, stride=strided, taps="one")
            rest = [Wish("none") for _ in range(length - 2)]
            return [first, Wish("some", mode=mode), *rest]
        if style == "biased":
            return self.biased_wishes(length)
        if style == "bordered":
            return [Wish("wide", mode=self.rng.choice(("zeros", *MODES))) for _ in range(length)]
        if style == "circular":
            size_kept = [Wish("size", mode="circular", stride=False) for _ in range(length - 1)]
            return [*size_kept, Wish("some", mode="circular")]
        return [
            Wish(mode=self.rng.choice(MODES) if self.chance(0.25) else "zeros")
            for _ in range(length)
        ]

    def biased_wishes(self, length: int) -> list[Wish]:
        """Layers of which none sees the image from outside it, and a bias that meets padding."""
        point = self.chance(0.6)
        first = Wish("none", True, taps="one") if point else Wish("full", True)
        rest = [Wish("none") for _ in range(length - 2)]
        return [first, Wish("some", taps="many"), *rest]

    def with_transposed(self, length: int, channels: int, out: int | None) -> list[Part]:
        """A transposed layer first, last or anywhere, mostly with neighbours that let it merge."""
        at = self.rng.choice((0, 0, length - 1, self.rng.randrange(length)))
        loose = self.chance(0.45)
        parts: list[Part] = []
        for index in range(length):
            target = out if index == length - 1 else None
            before = index < at
            bias = None if loose or not before else False
            if index == at:
                later = self.chance(0.5)
                part = self.transposed(channels, None if later or loose else False, out=target)
            else:
                padding = self.rng.choice(("none", "full", "any") if before else ("none", "any"))
                wish = Wish(padding, bias, stride=loose or not before)
                part = self.link(channels, wish, out=target)
            parts.append(part)
            channels = part.channels
        return parts

    def chain_with_sum(self, channels: int) -> Part:
        """A chain of which one link is a sum."""
        before, after = self.rng.choices(((0, 1), (1, 0), (1, 1), (0, 2)), (3, 3, 1, 1))[0]
        style = self.rng.choices(
            ("leaky", "valid", "full", "mixed", "biased", "bordered"), (20, 22, 22, 10, 16, 10)
        )[0]
        wishes = self.wishes(style, before + 1 + after)
        parts: list[Part] = []
        for index, wish in enumerate(wishes):
            width = parts[-1].channels if parts else channels
            if index == before:
                parts.append(self.sum(width, chains=self.chance(0.2), wish=wish))
            else:
                parts.append(self.link(width, wish))
        return self.chained(parts)

    # sums

    def sum(self, channels: int, *, chains: bool, wish: Wish | None = None) -> Part:
        """Two to four branches that fit each other, or now and then do not."""
        out = channels if self.chance(0.5) else self.width()
        if chains:
            first = self.chain(self.style(), self.rng.randint(2, 3), channels, out)
        elif wish is None and self.chance(0.12):
            first = self.transposed(channels, None, out=out)
        else:
            mode = self.rng.choice(MODES) if self.chance(0.2) else "zeros"
            first = self.conv(channels, wish or Wish(mode=mode), out=out)
        modes = [mode for mode in (*MODES, "zeros") if mode in _modes(first.item)]
        mode = modes[0] if modes else "zeros"
        branches = [first]
        for _ in range(self.rng.randint(1, 3 if self.rank < 3 and wish is None else 2)):
            target = first.sizes
            if self.chance(0.08):
                target = tuple(self.missed(s) for s in target)
            wanted = self.rng.choice((*MODES, "zeros")) if self.chance(0.04) else mode
            bias = None if wish is None else wish.bias
            branches.append(self.branch(channels, out, target, wanted, bias, chains))
        self.rng.shuffle(branches)
        return Part({"sum": [branch.item for branch in branches]}, out, first.sizes)

    def missed(self, sizes: Sizes) -> Sizes:
        if self.chance(0.5):
            return Sizes(sizes.up, sizes.stride + 1, sizes.slack)
        return Sizes(sizes.up, sizes.stride, sizes.slack + 1)

    def branch(
        self,
        channels: int,
        out: int,
        target: tuple[Sizes, ...],
        mode: str,
        bias: bool | None,
        chains: bool,
    ) -> Part:
        """A branch that treats every axis as `target` says."""
        if all(s == Sizes() for s in target) and channels == out and self.chance(0.5):
            kinds = [self.identity, self.scale] + [self.batch_norm] * (bias is not False)
            return self.rng.choice(kinds)(channels, bias)
        if any(s.up > 1 for s in target):
            return self.fitting_transposed(channels, out, target, bias)
        if not chains or self.chance(0.4):
            return self.fitting_conv(channels, out, target, mode, bias)
        if self.chance(0.5):
            first = self.link(channels, Wish("none", False, stride=False, taps="one"))
            return self.chained([first, self.fitting_conv(first.channels, out, target, mode, bias)])
        first = self.fitting_conv(channels, self.width(), target, mode, bias)
        last = self.link(first.channels, Wish("none", stride=False, taps="one"), out=out)
        return self.chained([first, last])

    def fitting_conv(
        self, channels: int, out: int, target: tuple[Sizes, ...], mode: str, bias: bool | None
    ) -> Part:
        kernel, dilation = self.kernel("any"), self.dilation()
        pairs, crops = [], []
        for k, d, wanted in zip(kernel, dilation, target, strict=True):
            total = wanted.slack + d * (k - 1)
            before = total // 2 if self.chance(0.6) else self.rng.randint(0, max(total, 0))
            pairs.append((before, total - before) if total >= 0 else (0, 0))
            crops.append((0, 0) if total >= 0 else (total // 2, total - total // 2))
        strides = [wanted.stride for wanted in target]
        conv = self.conv_of(channels, out, kernel, strides, dilation, pairs, bias, mode)
        if not any(amount for crop in crops for amount in crop):
            return conv
        pad = Part(self.pad_item(crops, "zeros"), channels, tuple(padding_sizes(crops)))
        return self.chained([pad, conv])

    def fitting_transposed(
        self, channels: int, out: int, target: tuple[Sizes, ...], bias: bool | None
    ) -> Part:
        kernel, dilation = self.kernel("any"), self.dilation()
        pairs = []
        for axis, wanted in enumerate(target):
            while dilation[axis] * (kernel[axis] - 1) < wanted.slack:
                kernel[axis] += 1
            total = dilation[axis] * (kernel[axis] - 1) - wanted.slack
            before = total // 2 if self.chance(0.6) else self.rng.randint(0, total)
            pairs.append((before, total - before))
        strides = [wanted.up for wanted in target]
        extras = [0] * self.rank
        return self.transposed_of(channels, out, kernel, strides, dilation, pairs, extras, bias)


def _tells_rank(item: Item) -> bool:
    return item.get("type", "conv") in ("conv", "conv_transpose")


def has_sum(item: Item) -> bool:
    """Whether branches meet anywhere in an item."""
    return "sum" in item or any(map(has_sum, item.get("chain", ())))


def _modes(item: Item) -> set[str]:
    """The padding modes that an item names, however deep."""
    inside = [part for key in ("chain", "sum") for part in item.get(key, ())]
    own = {item["padding_mode"]} if "padding_mode" in item else set()
    return own.union(*(_modes(part) for part in inside))
