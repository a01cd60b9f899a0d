"""An original, what merging made of it, and what `verify` says of it once a fault is planted."""

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.command_line import Outcome, run_here
from tests.squeezed_files import Parts, put_together, taken_apart

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
NARROW = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Squeezing:
    """An original and what merging made of it."""

    original: Path
    squeezed: Path
    pairs: Path

    def parts(self) -> Parts:
        return taken_apart(self.squeezed)

    def verified(self, parts: Parts, folder: Path, *options: object) -> Outcome:
        """`verify` of the original and of a file with these `parts`."""
        faulty = put_together(parts, folder / f"faulty{self.squeezed.suffix}")
        return run_here("verify", self.original, faulty, *options)


def saved(tensors: "OrderedDict[str, Tensor]", path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path


def assert_told(outcome: Outcome, *words: str) -> None:
    """Exit 1, and one of the problems holds all of `words`."""
    assert outcome.status == 1, outcome
    assert "Traceback" not in outcome.stderr
    assert any(all(word in error for word in words) for error in outcome.errors), outcome.errors
