"""Work shared among threads with the same bits for any number of them. Knows no convolutions.

torch shares a long sum among its threads in as many parts as there are threads, so its bits depend
on their number. Here torch has one thread, and the threads share whole blocks of the result, whose
sizes and sums are the same for any number of threads.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from math import prod
from typing import Generic, TypeVar

import torch
from torch import Tensor

Block = TypeVar("Block")
Work = Callable[[Block, "Scratch"], Iterator[None]]

KEPT = 1 << 27
"""Bytes of a scratch, at most, that is kept for the next work: 128 MiB."""
CACHE_LINE = 8
"""Float64 numbers of a line of a processor's cache."""
TOO_REGULAR = 64
"""Rows that lie a multiple of so many numbers apart share too few places of a cache."""
_at_hand: ContextVar[int] = ContextVar("threads that torch had before it was given one", default=0)
_spare: "list[Scratch]" = []


@contextmanager
def one_thread() -> Iterator[None]:
    """What runs inside gives the same bits on every run, however many threads torch has.

    `share` within uses as many threads as torch had.
    """
    threads = torch.get_num_threads()
    token = _at_hand.set(_at_hand.get() or threads)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        _at_hand.reset(token)


def share(work: Work[Block], blocks: Sequence[Block], *, large: bool) -> None:
    """Does the work of every block, on all threads where it is `large`.

    `work` yields now and then: an exception in one thread (in the calling one a signal can raise
    it) stops the others at their next yield. It must write to places of its own block alone.
    """
    with one_thread():
        helpers = min(_at_hand.get(), len(blocks)) - 1 if large else 0
        with borrowed(1 + max(helpers, 0)) as scratches:
            _Shared(work, blocks).run(scratches)


class Scratch:
    """Memory that is used again for one block after another: the first touch of new memory costs
    far more than filling it.
    """

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    @property
    def bytes(self) -> int:
        return 8 * sum(held.numel() for held in self._held.values())

    def numbers(self, name: str, *shape: int) -> Tensor:
        """Uninitialised float64 of a shape, in the place of what had this name before."""
        count = prod(shape)
        held = self._held.get(name)
        if held is None or held.numel() < count:
            held = self._held[name] = torch.empty(count, dtype=torch.float64)
        return held[:count].view(shape)

    def spread(self, name: str, rows: int, *shape: int) -> Tensor:
        """As `numbers`, but rows do not start a power of two apart: those of a right operand that
        do push each other out of the nearest memory, which takes BLAS a tenth of its rate.
        """
        width = prod(shape)
        return self.numbers(name, rows, apart(width))[:, :width].unflatten(1, shape)

    def copied(self, name: str, values: Tensor) -> Tensor:
        """A copy of `values`, contiguous, float64."""
        return self.numbers(name, *values.shape).copy_(values)


def apart(width: int) -> int:
    """Numbers from one row of `width` to the next; see `Scratch.spread`."""
    return width + CACHE_LINE if width % TOO_REGULAR == 0 else width


@contextmanager
def borrowed(count: int) -> Iterator[list[Scratch]]:
    """Scratches for nobody else until this ends; after an exception a thread may still use them."""
    mine = [_spare.pop() if _spare else Scratch() for _ in range(count)]
    yield mine
    _spare.extend(one for one in reversed(mine) if one.bytes <= KEPT)


def give_back() -> None:
    """Frees what is kept for the next work."""
    _spare.clear()


class _Shared(Generic[Block]):
    """Blocks that threads take one after the other until none is left or one of them fails."""

    def __init__(self, work: Work[Block], blocks: Sequence[Block]) -> None:
        self._work, self._blocks = work, iter(blocks)
        self._lock, self._stopped = threading.Lock(), False
        self._failure: BaseException | None = None

    def run(self, scratches: Sequence[Scratch]) -> None:
        """The calling thread has the first scratch, new threads the others."""
        inference = torch.is_inference_mode_enabled()
        started: list[tuple[threading.Thread, threading.Event]] = []
        try:
            for scratch in scratches[1:]:
                ended = threading.Event()
                thread = threading.Thread(target=self._help, args=(scratch, inference, ended))
                thread.start()
                started.append((thread, ended))
            self._take_blocks(scratches[0])
            for _, ended in started:
                ended.wait()
        finally:
            self._stopped = True
            for thread, ended in started:
                ended.wait()  # a join that a signal interrupts takes a thread for ended: bpo-45274
                thread.join()
        if self._failure is not None:
            raise self._failure

    def _help(self, scratch: Scratch, inference: bool, ended: threading.Event) -> None:
        """The work of a new thread, which has the processor's modes, but not torch's."""
        torch.set_num_threads(1)
        try:
            with torch.no_grad(), torch.inference_mode(inference):
                self._take_blocks(scratch)
        except BaseException as failure:  # noqa: BLE001 - raised again in the calling thread
            self._failure, self._stopped = failure, True
        finally:
            ended.set()

    def _take_blocks(self, scratch: Scratch) -> None:
        while not self._stopped:
            with self._lock:
                block = next(self._blocks, None)
            if block is None:
                return
            for _ in self._work(block, scratch):
                if self._stopped:
                    return
