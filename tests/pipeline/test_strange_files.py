"""What is no regular file, or far too large, is refused at once, wherever a command reads one."""

import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.command_line import SESR, SESR_PAIRS, run_here

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no fifos")

NETWORK = SESR.parent / "network.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A merged sample, and what is strange under the names of every kind of file."""
    place = tmp_path_factory.mktemp("strange")
    shutil.copy(SESR, place / "model.pt")
    done = run_here("merge", place / "model.pt", "--pairs", SESR_PAIRS, "-q")
    assert done.status == 0, done
    for suffix in ("yaml", "onnx", "py", "pt", "safetensors", "safetensors.index.json"):
        os.mkfifo(place / f"fifo.{suffix}")
        (place / f"folder.{suffix}").mkdir()
        (place / f"loop.{suffix}").symlink_to(f"loop.{suffix}")
        (place / f"gone.{suffix}").symlink_to("nowhere")
        (place / f"zero.{suffix}").symlink_to("/dev/zero")
        with (place / f"large.{suffix}").open("wb") as file:
            file.truncate(3 << 30)
    return place


READERS: dict[str, tuple[str, Callable[[Path, Path], tuple[object, ...]]]] = {
    "merge --pairs": (
        "yaml",
        lambda at, one: ("merge", at / "model.pt", "--pairs", one, "--dry-run"),
    ),
    "plan --pairs": ("yaml", lambda at, one: ("plan", at / "model.pt", "--pairs", one)),
    "verify --pairs": (
        "yaml",
        lambda at, one: ("verify", at / "model.pt", at / "model.squeezed.pt", "--pairs", one),
    ),
    "verify --onnx": (
        "onnx",
        lambda at, one: ("verify", at / "model.pt", at / "model.squeezed.pt", "--onnx", one),
    ),
    "scan": ("py", lambda at, one: ("scan", f"{one}:Model")),
    "scan --checkpoint": ("pt", lambda at, one: ("scan", f"{NETWORK}:SESR", "--checkpoint", one)),
    "inspect pt": ("pt", lambda at, one: ("inspect", one)),
    "inspect safetensors": ("safetensors", lambda at, one: ("inspect", one)),
    "inspect index": ("safetensors.index.json", lambda at, one: ("inspect", one)),
    "verify": ("pt", lambda at, one: ("verify", at / "model.pt", one)),
    "export-onnx": ("safetensors", lambda at, one: ("export-onnx", one, "-o", at / "new.onnx")),
}
SAYS = {
    "fifo": r"regular file",
    "zero": r"regular file|no module",
    "folder": r"directory|regular file",
    "loop": r"Too many levels of symbolic links|there is no file",
    "gone": r"(?i)no such file|there is no file",
    "large": r"3,221,225,472 bytes|3221225472 bytes|no kind of file",
}


@pytest.mark.parametrize("kind", SAYS)
@pytest.mark.parametrize("reader", READERS)
def test_is_refused_at_once(folder: Path, reader: str, kind: str) -> None:
    suffix, arguments = READERS[reader]
    begin = time.monotonic()
    done = run_here(*arguments(folder, folder / f"{kind}.{suffix}"))
    assert time.monotonic() - begin < 5
    assert done.status == 2, done
    (problem,) = done.errors
    assert problem.startswith(str(folder / f"{kind}.{suffix}"))
    assert re.search(SAYS[kind], problem), problem
