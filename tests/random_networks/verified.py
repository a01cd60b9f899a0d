"""Random manifests planned, merged and verified, in every dtype and policy, with values far apart.

An oracle that is independent of the product decides what is right: torch's own layers in float64,
each input channel alone beside random images, so that no channel hides another. Four answers are
right: verified where the oracle agrees, refused while planning or for values that no dtype holds,
and failed where the oracle disagrees, of which there may be none. Time and memory are measured.
"""

import random
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import reduce
from itertools import pairwise
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from convsqueeze.algebra.border.mismatches import wrong_rows
from convsqueeze.checkpoint import from_state_dict
from convsqueeze.errors import PlanError, TensorDataError
from convsqueeze.manifest import Border, manifest_from_data
from convsqueeze.module import SqueezedConv, module_of
from convsqueeze.pipeline.merging import planned
from convsqueeze.plan import Merge
from convsqueeze.squeezing import Squeezed, recipe_layer, squeeze_one
from convsqueeze.verify import Settings, verify_merge

from .layers import DTYPES, Item
from .manifests import Case, _Source
from .original import NOISE, Original, Size, half_spacing, in_float64, places
from .torch_layers import BranchesDisagreeError

Verdict = Literal["verified", "not planned", "values refused", "wrong", "wrongly failed"]
POLICIES: tuple[Border, ...] = get_args(Border)
SPREADS = (0, 0, 2, 6, 15, 30)
"""Powers of ten that channels may be apart from one, at most."""
_HALF_SPREAD = 3
MOST_S, MOST_BYTES = 30.0, 2 << 30


@dataclass(frozen=True)
class Outcome:
    """What one merge of a case came to, and what `merge` or `verify` takes for it, which of the two
    takes more.
    """

    seed: int
    dtype: str
    border: str
    verdict: Verdict
    reason: str
    seconds: float
    peak_bytes: int
    told: str = ""

    @property
    def is_fault(self) -> bool:
        return self.verdict in ("wrong", "wrongly failed") or self.is_costly

    @property
    def is_costly(self) -> bool:
        return self.seconds > MOST_S or self.peak_bytes > MOST_BYTES


class _Deep(_Source):
    """Longer chains, with sums of chains within them."""

    def case(self) -> Case:
        channels, self.rank = self.width(), max(self.rank, 1)
        links = self.links(self.style(), self.rng.randint(2, 4), channels)
        for _ in range(self.rng.randint(1, 2)):
            more = self.links(self.style(), self.rng.randint(1, 2), links[-1].channels)
            links = [*links, *more]
            if self.chance(0.5):
                links.append(self.sum(links[-1].channels, chains=True))
        entry: Item = dict(self.chained(links).item)
        return Case(self.seed, "chain", entry, self.tensors, self.rank, channels)


def drawn_case(seed: int) -> tuple[Case, Original]:
    """The case of a seed in float64; every eighth a deep one."""
    source = _Deep if seed % 8 == 7 else _Source
    for attempt in range(200):
        case = in_float64(source(seed + 1_000_003 * attempt).case())
        original = Original(case)
        with suppress(BranchesDisagreeError):
            if original.roomy is not None:
                return replace(case, seed=seed), original
    raise ValueError(f"no workable case grows from seed {seed}")


def spread_out(case: Case, dtype: torch.dtype) -> Case:
    """The same layers stored in a dtype, channels of each tensor multiplied by powers of ten."""
    rng = random.Random(case.seed)
    spread = rng.choice(SPREADS)
    if dtype == torch.float16:
        spread = min(spread, _HALF_SPREAD)
    lowest, highest = torch.finfo(dtype).tiny, torch.finfo(dtype).max / 64
    found = {}
    for name, tensor in case.tensors.items():
        if not tensor.is_floating_point():
            found[name] = tensor
            continue
        for dim in range(min(tensor.ndim, 2)):
            powers = [10 ** rng.uniform(-spread, spread) for _ in range(tensor.shape[dim])]
            shape = [-1 if d == dim else 1 for d in range(tensor.ndim)]
            tensor = tensor * torch.tensor(powers, dtype=torch.float64).reshape(shape)
        sizes = tensor.abs().clamp(lowest, highest).where(tensor != 0, 0.0)
        found[name] = (sizes * tensor.sign()).to(dtype)
    return replace(case, tensors=found)


def examined(seed: int) -> list[Outcome]:
    """A case in every dtype and policy; a policy that comes to the same merge as another is left
    out.
    """
    torch.set_num_threads(1)
    case, _ = drawn_case(seed)
    found: list[Outcome] = []
    for dtype in DTYPES:
        stored, seen = spread_out(case, dtype), set[str]()
        found += [o for policy in POLICIES for o in _examined(stored, dtype, policy, seen)]
    return found


def _examined(case: Case, dtype: torch.dtype, policy: Border, seen: set[str]) -> Iterator[Outcome]:
    marks, _ = [time.monotonic()], _reset_peak()

    def outcome(border: str, verdict: Verdict, reason: str, told: str = "") -> Outcome:
        marks.append(time.monotonic())
        taken = max(end - begin for begin, end in pairwise(marks))
        name = str(dtype).removeprefix("torch.")
        return Outcome(case.seed, name, border, verdict, reason, taken, _peak(), told)

    checkpoint, manifest = from_state_dict(case.tensors), manifest_from_data(case.manifest)
    try:
        plan = planned(manifest, checkpoint, policy, "allow")
    except PlanError as error:
        yield outcome(policy, "not planned", "planning", str(error))
        return
    (merge,) = plan.merges
    if merge.border in seen:
        return
    seen.add(merge.border)
    try:
        squeezed = squeeze_one(merge, checkpoint.load, widen=case.seed % 2 == 0)
    except TensorDataError as error:
        yield outcome(merge.border, "values refused", "merging", str(error))
        return
    layer = recipe_layer(merge, squeezed.widened)
    problems = []
    for exact in (squeezed.exact, None):  # in `merge`, and anew in `verify`
        settings = Settings(seed=case.seed)
        report = verify_merge(merge, layer, checkpoint, squeezed.tensors(), exact, settings)
        problems += [report.problem] if report.problem else []
        if exact is not None:
            marks.append(time.monotonic())
    done = outcome(merge.border, "verified", _size_told(merge))
    wrong = disagreement(case, merge, squeezed, module_of(layer, squeezed.tensors()))
    if wrong is not None:
        yield replace(done, verdict="wrong", told=f"{wrong}; verification: {problems}")
    elif problems:
        yield replace(done, verdict="wrongly failed", told=" / ".join(problems))
    else:
        yield done


def _size_told(merge: Merge) -> str:
    kernel = "x".join(map(str, merge.geometry.kernel_size)) or "linear"
    apart = len(merge.layers)
    return f"{apart} layers, kernel {kernel}, {merge.weights_after:,} weights"


def disagreement(case: Case, merge: Merge, squeezed: Squeezed, module: SqueezedConv) -> str | None:
    """Where the squeezed layer does not give what torch's layers give, if it does not."""
    original = Original(in_float64(case))
    spacing = module.converted(half_spacing, half_spacing, signs=False)
    wide = module.double()
    for size in _sizes(original, merge):
        x = _images(original, size)
        expected, actual = original.module(x), wide(x)
        if actual.shape != expected.shape:
            return f"{size}: shape {tuple(actual.shape)}, torch gives {tuple(expected.shape)}"
        allowed = spacing(x.abs()) + NOISE * _magnitude(original, merge, x, expected.shape)
        wrong = ~((actual - expected).abs() <= allowed)
        if merge.border == "interior":
            for axis, n in enumerate(size):
                rows = sorted(wrong_rows(merge.geometry_tree, axis, n))
                wrong.index_fill_(2 + axis, torch.tensor(rows, dtype=torch.long), False)
        if bool(wrong.any()):
            worst = ((actual - expected).abs() / allowed)[wrong].max()
            return f"{size}: differs {worst.item():.3g} times what rounding can at {places(wrong)}"
    return None


def _sizes(original: Original, merge: Merge) -> list[Size]:
    if merge.input_size is not None:
        return [merge.input_size]
    smallest, roomy = original.smallest, original.roomy or ()
    rng = random.Random(original.case.seed)
    near = tuple(min(n + rng.randint(0, 3), most) for n, most in zip(smallest, roomy, strict=True))
    middle = tuple((n + 2 * most) // 3 for n, most in zip(smallest, roomy, strict=True))
    return list(dict.fromkeys([smallest, near, middle]))


def _images(original: Original, size: Size) -> Tensor:
    """Two random images, and one for each input channel alone."""
    x, channels = original.image(size), original.case.channels
    alone = torch.eye(channels, dtype=torch.float64).reshape(channels, channels, *(1 for _ in size))
    return torch.cat([x, alone * original.image(size, channels)])


def _magnitude(original: Original, merge: Merge, x: Tensor, shape: torch.Size) -> Tensor:
    """What rounding errors follow: sums of absolute values, at a border no less than anywhere,
    since what a plain kernel adds up too much there is taken off again.
    """
    found = original.magnitude(x.abs())
    if merge.border != "corrected":
        return found
    rank = len(merge.geometry.axes)
    dims = tuple(range(2, 2 + rank))
    constant = x.abs().amax(dims, keepdim=True).expand(*x.shape[:2], *(original.roomy or ()))
    most = original.magnitude(constant.contiguous()).amax(dims, keepdim=True)
    return reduce(torch.maximum, [found, most.expand(shape)])


# The memory of a case


def _reset_peak() -> None:
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    """The largest resident size since the last reset, in bytes."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    return 0
