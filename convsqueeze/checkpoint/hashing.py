"""The hash of a checkpoint's files, computed while other work goes on."""

import threading
from collections.abc import Callable
from types import TracebackType

from convsqueeze.checkpoint.base import Checkpoint

WATCH_S = 0.1


class _NotNeeded(Exception):
    """Ends the thread."""


class Hashing:
    """A context in which `checkpoint.sha256()` is computed by a thread; leaving it ends that."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._done = 0
        self._left, self._ended = threading.Event(), threading.Event()
        self._sha256 = ""
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="sha256", daemon=True)

    def __enter__(self) -> "Hashing":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._left.set()
        self._ended.wait()

    def result(self, watch: Callable[[int], None]) -> str:
        """The hash; until it is there `watch` is told now and then how many bytes are done.

        Raises what `Checkpoint.sha256` raises.
        """
        # not by join: one that a signal interrupts takes a running thread for ended (bpo-45274)
        while not self._ended.wait(WATCH_S):
            watch(self._done)
        if self._error is not None:
            raise self._error
        return self._sha256

    def _run(self) -> None:
        try:
            self._sha256 = self._checkpoint.sha256(self._advance)
        except _NotNeeded:
            pass
        except Exception as error:  # noqa: BLE001  it is raised again where the result is wanted
            self._error = error
        finally:
            self._ended.set()

    def _advance(self, nbytes: int) -> None:
        if self._left.is_set():
            raise _NotNeeded
        self._done += nbytes
