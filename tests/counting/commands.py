"""What is run: `squeeze` and three commands, on the SESR sample and an example of 64x64."""

import contextlib
import io
import runpy
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).parents[2]
SESR = ROOT / "samples" / "sesr"
NETWORK = SESR / "network.py"
CHECKPOINT = SESR / "sesr_x2.pt"
FORWARD = (str(NETWORK), "SESR.forward")
CODE = ("--model", f"{NETWORK}:SESR", "--input", "1,1,64,64")
SQUEEZED = "squeezed.pt"
"""In the folder for outputs: what `merge --pairs` wrote, which `export-onnx` is given."""
PAIRS = ("merge", CHECKPOINT, "--pairs", SESR / "pairs.yaml", "-o")

Arguments = tuple[object, ...]
COMMANDS: Mapping[str, Callable[[Path], Arguments] | None] = {
    "squeeze": None,
    "merge-pairs": lambda folder: (*PAIRS, folder / "by_pairs.pt"),
    "merge-model": lambda folder: ("merge", CHECKPOINT, *CODE, "-o", folder / "by_code.pt"),
    "export-onnx-model": lambda folder: (
        "export-onnx",
        folder / SQUEEZED,
        "--checkpoint",
        CHECKPOINT,
        *CODE,
        "-o",
        folder / "whole.onnx",
    ),
}
"""The arguments of each, given a folder for outputs; None for the function."""


def work(name: str, folder: Path) -> Callable[[], object]:
    """One run of a command. The sample's model is made here, and convsqueeze imported there."""
    arguments = COMMANDS[name]
    return _squeezing() if arguments is None else lambda: command(*arguments(folder))


def command(*arguments: object) -> None:
    """`convsqueeze ARGUMENTS` in this process. Raises RuntimeError with its words if it fails."""
    told = io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["convsqueeze", *map(str, arguments)]),
        contextlib.redirect_stdout(told),
        contextlib.redirect_stderr(told),
    ):
        from convsqueeze.cli.main import main

        try:
            main()
        except SystemExit as leaving:
            if leaving.code:
                raise RuntimeError(told.getvalue()) from leaving


def _squeezing() -> Callable[[], object]:
    import torch

    model = runpy.run_path(str(NETWORK))["SESR"]()
    model.load_state_dict(torch.load(CHECKPOINT, weights_only=True)["params_ema"])
    example = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))

    def run() -> None:
        from convsqueeze import squeeze

        squeeze(model.eval(), example)

    return run
