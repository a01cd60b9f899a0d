"""Work shared among threads with the same bits for any number of them. Knows no convolutions.

torch shares a long sum among its threads in as many parts as there are threads, so its bits depend
on their number. Here torch has one thread, and threads take whole blocks of the result.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import torch

Block = TypeVar("Block")

_available: ContextVar[int] = ContextVar("threads torch had before it was given one", default=0)


@contextmanager
def one_thread() -> Iterator[None]:
    """Operations inside give the same bits on every run, however many threads torch has.

    `in_parallel` inside uses as many threads as torch had.
    """
    threads = torch.get_num_threads()
    token = _available.set(_available.get() or threads)
    if threads > 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if threads > 1:
            torch.set_num_threads(threads)
        _available.reset(token)


def in_parallel(work: Callable[[Block], None], blocks: Sequence[Block], *, large: bool) -> None:
    """Calls `work` on every block, on all threads where the work is `large`.

    `work` must write to places of its own block alone. After an exception in any thread (in the
    calling one a signal can raise it) no thread begins another block, and it is raised once those
    that have begun are done.
    """
    with one_thread():
        helpers = min(_available.get(), len(blocks)) - 1 if large else 0
        if helpers < 1:
            for block in blocks:
                work(block)
            return
        remaining, lock = iter(blocks), threading.Lock()
        inference = torch.is_inference_mode_enabled()
        failures: list[BaseException] = []

        def take_blocks() -> None:
            while not failures:
                with lock:
                    block = next(remaining, None)
                if block is None:
                    return
                work(block)

        def help_with_blocks(done: threading.Event) -> None:
            # a new thread has the processor's modes of the calling one, but not torch's
            torch.set_num_threads(1)
            try:
                with torch.no_grad(), torch.inference_mode(inference):
                    take_blocks()
            except BaseException as failure:  # noqa: BLE001 - raised again in the calling thread
                failures.append(failure)
            finally:
                done.set()

        started: list[tuple[threading.Thread, threading.Event]] = []
        try:
            for _ in range(helpers):
                done = threading.Event()
                thread = threading.Thread(target=help_with_blocks, args=(done,))
                thread.start()
                started.append((thread, done))
            take_blocks()
            _wait_for(started)
        except BaseException as failure:  # noqa: BLE001 - raised again below
            failures.append(failure)
        finally:
            _wait_for(started)
        if failures:
            raise failures[0]


def _wait_for(started: Sequence[tuple[threading.Thread, threading.Event]]) -> None:
    for thread, done in started:
        done.wait()  # a join that a signal interrupts takes the thread for ended: bpo-45274
        thread.join()
