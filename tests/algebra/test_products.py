"""The sum of products by BLAS is the sum by its definition, and its bits are always the same."""

import gc
import signal
import threading
import time
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from convsqueeze import layers
from convsqueeze.algebra import Conv, products, threads

from .drawn import convolutions, law, operators, ranks, whole
from .test_operators import composed

pytestmark = pytest.mark.quick


@pytest.fixture(params=[1, 2, 3])
def thread_count(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


LIMITS = {"LARGE": 0, "ROWS": 2, "COLUMNS": 2, "RESULT": 4}


WAYS = {"runs of taps": 0, "all places of a tap": 1 << 40}
"""Two of the ways to sum, and the threshold by which each is chosen."""


@pytest.fixture(params=WAYS)
def tiny_blocks(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Threads and many blocks also for the smallest layers, either way."""
    for name, value in {**LIMITS, "GATHERED": WAYS[request.param]}.items():
        monkeypatch.setattr(products, name, value)


CASES = {
    "dense": ((5, 3, 3, 3), (7, 5, 2, 3), 1, 1),
    "many channels": ((130, 40, 3), (150, 130, 3), 1, 1),
    "depthwise twice": ((40, 1, 3, 3), (40, 1, 3, 3), 40, 40),
    "depthwise then pointwise": ((20, 1, 3, 3), (6, 20, 1, 1), 20, 1),
    "pointwise then depthwise": ((20, 6, 1, 1), (20, 1, 3, 3), 1, 20),
    "groups": ((24, 4, 3, 3), (12, 6, 3, 3), 4, 4),
    "crossed groups": ((24, 4, 3), (12, 6, 3), 6, 4),
    "linear": ((5, 3), (4, 5), 1, 1),
    "no taps in common": ((4, 4, 1, 5), (4, 4, 3, 1), 1, 1),
    "3-d": ((6, 4, 2, 2, 2), (5, 6, 1, 2, 3), 1, 1),
}


def pair(case: str, seed: int = 1) -> tuple[Conv, Conv]:
    first, second, inner_groups, outer_groups = CASES[case]
    make = layers.linear if len(first) == 2 else layers.convolution
    extra = ({}, {}) if len(first) == 2 else ({"groups": outer_groups}, {"groups": inner_groups})
    return make(whole(seed, *second), **extra[0]), make(whole(seed + 1, *first), **extra[1])


def random_pair(case: str) -> tuple[Conv, Conv]:
    """The same geometries, with values whose sums depend on their order."""
    generator = torch.Generator().manual_seed(0)

    def normal(conv: Conv) -> Conv:
        weight = torch.randn(conv.weight.shape, generator=generator, dtype=torch.float64)
        return Conv(weight, None, conv.axes, conv.groups)

    outer, inner = pair(case)
    return normal(outer), normal(inner)


@pytest.mark.stress
@pytest.mark.usefixtures("tiny_blocks", "thread_count")
@pytest.mark.parametrize("case", CASES)
def test_every_way_of_summing_is_the_sum(case: str) -> None:
    """Whole numbers, so the sums are exact; the oracle is the layers one after the other."""
    outer, inner = pair(case)
    merged = outer @ inner
    size = [2 * axis.kernel_size + 1 for axis in merged.axes]
    x = whole(3, 2, inner.geometry.in_channels, *size)
    assert torch.equal(merged(x), outer(inner(x)))


@law(60)
@given(st.data(), ranks, st.sampled_from([*WAYS.values()]))
def test_blocks_change_nothing(data: st.DataObject, rank: int, gathered: int) -> None:
    """Any geometry in blocks of two channels, by threads, either way."""
    inner = data.draw(operators(rank))
    outer = data.draw(operators(rank, inner.geometry.out_channels))
    merged = composed(outer, inner)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**LIMITS, "GATHERED": gathered}.items():
            patch.setattr(products, name, value)
        assert torch.equal((outer @ inner).weight, merged.weight)


@pytest.mark.stress
@pytest.mark.usefixtures("tiny_blocks")
@pytest.mark.parametrize("case", CASES)
def test_bits_do_not_depend_on_threads(case: str) -> None:
    outer, inner = random_pair(case)
    before, seen = torch.get_num_threads(), set()
    for count in (1, 2, 3, 8):
        torch.set_num_threads(count)
        seen.add((outer @ inner).weight.numpy().tobytes())
        assert torch.get_num_threads() == count
    torch.set_num_threads(before)
    assert len(seen) == 1


@law(30)
@given(st.data(), ranks)
def test_gradients_flow(data: st.DataObject, rank: int) -> None:
    """A merged weight can be trained: its values and gradients are those of the layers."""
    inner = data.draw(convolutions(rank, bias=False))
    outer = data.draw(convolutions(rank, inner.geometry.out_channels, bias=False))
    weights = [conv.weight.requires_grad_() for conv in (outer, inner)]
    merged = outer @ inner
    assert merged.weight.requires_grad
    merged.weight.sum().backward()
    assert all(weight.grad is not None for weight in weights)
    with torch.no_grad():
        assert torch.equal((outer @ inner).weight, merged.weight)


@pytest.mark.usefixtures("tiny_blocks")
def test_threads_work_in_inference_mode() -> None:
    outer, inner = pair("dense")
    torch.set_num_threads(3)
    with torch.inference_mode():
        merged = outer @ inner
    torch.set_num_threads(1)
    assert torch.equal(merged.weight, (outer @ inner).weight)


class Largest(TorchDispatchMode):
    """Counts the numbers of the largest tensor with memory of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor):
            self.numbers = max(self.numbers, made.untyped_storage().nbytes() // 8)
        return made


@pytest.mark.parametrize(
    ("first", "second", "groups"),
    [
        ((64, 64, 3, 3), (64, 64, 3, 3), (1, 1)),
        ((256, 1, 3, 3), (256, 1, 3, 3), (256, 256)),
        ((256, 4, 3, 3), (256, 4, 3, 3), (64, 64)),
        ((256, 1, 3, 3), (64, 256, 1, 1), (256, 1)),
        ((256, 32, 1, 1), (256, 1, 3, 3), (1, 256)),
        ((32, 32, 1, 31), (32, 32, 31, 1), (1, 1)),
    ],
)
def test_no_tensor_is_larger_than_the_result_or_an_operand(
    first: tuple[int, ...], second: tuple[int, ...], groups: tuple[int, int]
) -> None:
    """And groups are not padded to a dense kernel."""
    inner = layers.convolution(torch.randn(first), groups=groups[0])
    outer = layers.convolution(torch.randn(second), groups=groups[1])
    with Largest() as largest:
        merged = outer @ inner
    allowed = max(merged.weight.numel(), inner.weight.numel(), outer.weight.numel())
    assert 0 < largest.numbers <= max(allowed, products.RESULT)


@pytest.mark.parametrize("fails_at", [0, 1, 2])
def test_what_one_thread_raises_stops_all(fails_at: int) -> None:
    """No further block is begun, and it is raised where the work was asked for."""
    done = []

    def work(block: int) -> None:
        if block == fails_at:
            raise KeyboardInterrupt
        time.sleep(0.02)
        done.append(block)

    before = threading.active_count()
    torch.set_num_threads(3)
    with pytest.raises(KeyboardInterrupt):
        threads.in_parallel(work, range(1000), large=True)
    torch.set_num_threads(1)
    assert threading.active_count() == before
    assert len(done) < 20


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX timers")
def test_a_signal_ends_the_work_of_all_threads() -> None:
    done = []

    def work(block: int) -> None:
        time.sleep(0.01)
        done.append(block)

    def handler(*_: object) -> None:
        raise KeyboardInterrupt

    before, kept = threading.active_count(), signal.signal(signal.SIGALRM, handler)
    torch.set_num_threads(2)
    gc.disable()  # what is raised in a callback of hypothesis, which it calls, is lost
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            threads.in_parallel(work, range(10_000), large=True)
    finally:
        gc.enable()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, kept)
        torch.set_num_threads(1)
    assert threading.active_count() == before
    assert len(done) < 5000


def test_every_block_is_done_once() -> None:
    done: list[int] = []
    torch.set_num_threads(4)
    threads.in_parallel(done.append, range(100), large=True)
    torch.set_num_threads(1)
    assert sorted(done) == list(range(100))
