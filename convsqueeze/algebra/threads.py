"""Work shared among threads with the same bits for any number of them. Knows no convolutions.

torch shares a long sum among its threads in as many parts as there are threads, so its bits depend
on their number. Here torch has one thread, and threads take whole blocks of the result.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
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
        threads = min(_available.get(), len(blocks)) if large else 1
        if threads < 2:
            for block in blocks:
                work(block)
            return
        inference = torch.is_inference_mode_enabled()

        def work_as_here(block: Block) -> None:
            # a new thread has the processor's modes of the calling one, but not torch's
            with torch.no_grad(), torch.inference_mode(inference):
                work(block)

        pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
        try:
            done = [pool.submit(work_as_here, block) for block in blocks]
            wait(done, return_when=FIRST_EXCEPTION)
        finally:
            pool.shutdown(cancel_futures=True)
        for one in done:
            if not one.cancelled():
                one.result()
