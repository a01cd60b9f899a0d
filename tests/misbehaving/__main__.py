"""`python -m tests.misbehaving [NAME ...]`: `merge --model` with every misbehaving factory and
model, in a process of its own; its exit status and what it said.

Exit 1 where one leaves no words, an output that it should not, or none with exit status 0.
"""

import os
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from tests.command_line import plain_environment
from tests.misbehaving import corpus

CORPUS = Path(corpus.__file__)
LIMIT_S = 120
HARMLESS = {"AsksSettings", "InDouble", "forks_and_waits"}
"""Models of their own that are merged."""
ALONE = (
    *("no_model", "a_class", "a_thousand", "a_namespace", "NothingOut", "EndlessOut", "OddOut"),
    *("NotFinite", "ChangesInput", "ChangesWeights", "ReplacesLayer", "AsksSettings", "AsksKind"),
    *("InDouble", "forks_and_waits", "ExitsAtExit", "StaysBehind"),
)


def every_name() -> list[str]:
    """Of the corpus."""
    return [
        *corpus.names(),
        *(f"{where}_{name}" for where in ("factory", "forward") for name in corpus.BESIDE),
        *(f"depends_{name}" for name in corpus.DEPENDS),
        *ALONE,
    ]


@dataclass(frozen=True)
class Ended:
    """What a run came to."""

    name: str
    status: int
    errors: str
    out: str
    tensors: dict[str, Tensor] | None

    @property
    def problem(self) -> str | None:
        """What is wrong with it: its words, its output, or that it goes with its status."""
        told = self.errors.strip()
        if "Traceback" in told or "internal:" in told:
            return "a traceback, or called a mistake of the program"
        if self.status not in (0, 1, 2, 128 + signal.SIGINT, -signal.SIGINT):
            return f"exit status {self.status}"
        if (self.status == 0) != (self.tensors is not None):
            return f"exit status {self.status} {'without' if self.status == 0 else 'with'} output"
        if self.status and "error: " not in told and self.status in (1, 2):
            return "no words"
        if max(map(len, told.splitlines()), default=0) > 3000:
            return "an endless line"
        if self.tensors is not None and not self._is_right():
            return "what was merged is not the model"
        if self.name.startswith("depends_") and self.status == 0 and self._is_merged():
            return None if self.name.removeprefix("depends_") in UNSEEN else "called equal"
        return None

    def _is_merged(self) -> bool:
        return self.tensors is not None and "b.weight" not in self.tensors

    def _is_right(self) -> bool:
        """Of merged tensors: one 3x3 convolution that is the two; otherwise they are untouched."""
        assert self.tensors is not None
        original = weights()
        if not self._is_merged():
            return all(t.equal(self.tensors[name]) for name, t in original.items())
        weight = torch.einsum(
            "ok,kihw->oihw",
            original["b.weight"][:, :, 0, 0].double(),
            original["a.weight"].double(),
        )
        return torch.allclose(self.tensors["a.weight"].double(), weight, rtol=0, atol=1e-6)


UNSEEN = {
    "default_dtype",  # which nothing here changes
    "caller",
}
"""Of which no run here is on the other side."""


@cache
def weights() -> dict[str, Tensor]:
    """Of every model of the corpus."""
    torch.manual_seed(0)
    return corpus.Net().state_dict()


def ended(name: str) -> Ended:
    """`merge` with one of them."""
    with tempfile.TemporaryDirectory() as folder:
        model, output = Path(folder, "net.pt"), Path(folder, "out.pt")
        torch.save(weights(), model)
        given = ["merge", model, "--model", f"{CORPUS}:{name}", "--input", "1,3,16,16"]
        done = subprocess.run(
            [sys.executable, "-m", "convsqueeze", *map(str, given), "-o", str(output)],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LIMIT_S,
            env=plain_environment() | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            cwd=CORPUS.parent.parent.parent,
        )
        for _ in range(50):  # what was forked may be about to write
            if output.exists():
                break
        tensors = torch.load(output) if output.exists() else None
        others = {path.name for path in Path(folder).iterdir()} - {"net.pt", "out.pt"}
        errors = done.stderr + "".join(f"left behind: {other}\n" for other in others)
        return Ended(name, done.returncode, errors, done.stdout, tensors)


def safely_ended(name: str) -> Ended:
    """A run that does not end in time has status 124."""
    try:
        return ended(name)
    except subprocess.TimeoutExpired:
        return Ended(name, 124, f"error: not ended in {LIMIT_S} s", "", None)


def main(names: list[str]) -> int:
    """The number of those with a problem."""
    wrong = 0
    weights()  # while there is one thread, as the seed is everyone's
    with ThreadPoolExecutor(2) as pool:
        for one in pool.map(safely_ended, names or every_name()):
            said = next((x for x in one.errors.splitlines() if x.startswith("error: ")), "")
            print(f"{one.status:4} {one.name:42} {one.problem or ''} | {said[:150]}", flush=True)
            wrong += one.problem is not None
    print(f"{len(names or every_name())} runs, {wrong} with a problem")
    return wrong


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))
