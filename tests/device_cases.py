"""Layers of every kind, drawn, with the manifest that merges them: every device does them alike."""

from typing import Any

import torch
from torch import Tensor

import tests.verify.test_large_layers as large
from tests import border_checkpoint, mixed_checkpoint
from tests.command_line import BLOCKS, SESR, SESR_PAIRS

Tensors = dict[str, Tensor]
Drawn = tuple[dict[str, Any], dict[str, tuple[int, ...]]]


def entry(*links: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"into": "c", "chain": list(links), **more}


A, B = {"name": "a"}, {"name": "b"}
EXTRAS: dict[str, Drawn] = {
    "scale, pool, pad": (
        entry(
            {**A, "padding": 1},
            {"type": "scale", "factor": 0.3},
            {"type": "avg_pool", "kernel_size": [2, 3], "stride": [2, 1]},
            {"type": "pad", "padding": [[1, 0], [-1, 2]]},
            B,
            border="corrected",
        ),
        {"a.weight": (8, 4, 3, 3), "b.weight": (5, 8, 1, 2), "b.bias": (5,)},
    ),
    "constants beside a layer": (
        {
            "into": "c",
            "sum": [
                {**A, "padding": 1},
                {"type": "identity"},
                {"type": "avg_pool", "kernel_size": [3, 3], "stride": 1, "padding": 1},
            ],
        },
        {"a.weight": (4, 4, 3, 3), "a.bias": (4,)},
    ),
    "groups that share nothing": (
        entry({**A, "groups": 3}, {**B, "groups": 4}),
        {"a.weight": (24, 2, 3, 1), "a.bias": (24,), "b.weight": (8, 6, 1, 3)},
    ),
    "mirrored volume": (
        entry(A, {**B, "padding": 1, "padding_mode": "reflect"}, border="corrected"),
        {"a.weight": (3, 2, 1, 1, 1), "a.bias": (3,), "b.weight": (2, 3, 3, 2, 3)},
    ),
    "weight norm": (
        entry({**A, "padding": 1}, {**B, "type": "linear"}),
        {"a.weight_g": (6, 1, 1), "a.weight_v": (6, 2, 3), "b.weight": (3, 6)},
    ),
    "scaled by channel": (
        entry(A, {"name": "s", "type": "scale", "factor": -2.0}, {**B, "padding": 1}),
        {"a.weight": (6, 3, 1), "s.weight": (6,), "b.weight": (2, 6, 3)},
    ),
    "shifted by channel": (
        entry(
            {**A, "padding": 1},
            {"name": "s", "type": "scale"},
            {**B, "padding": 1},
            border="interior",
        ),
        {"a.weight": (6, 3, 3), "s.bias": (6,), "b.weight": (2, 6, 3)},
    ),
    "shifted by a number": (
        entry(
            {**A, "padding": 1},
            {"type": "scale", "factor": 0.6, "shift": -0.4},
            {**B, "padding": 1},
            border="corrected",
        ),
        {"a.weight": (6, 3, 3), "b.weight": (2, 6, 3)},
    ),
}  # fmt: skip


def drawn(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype) -> Tensors:
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for name, shape in shapes.items()
    }


def small(name: str, dtype: torch.dtype) -> tuple[Tensors, dict[str, Any]]:
    """A case that verification runs in full."""
    if name == "mixed":
        return dict(mixed_checkpoint.mixed_state_dict(dtype)), mixed_checkpoint.MANIFEST
    if name in ("corrected", "interior"):
        chosen = border_checkpoint.CORRECTED if name == "interior" else border_checkpoint.TABLE
        chosen = tuple(one for one in chosen if name == "corrected" or one in WITH_AN_INSIDE)
        manifest = {**border_checkpoint.manifest_of(*chosen), "border": name}
        return dict(border_checkpoint.border_state_dict(dtype, chosen)), manifest
    item, shapes = EXTRAS[name]
    return drawn(shapes, dtype), {"version": 1, "pairs": [item]}


WITH_AN_INSIDE = ("twice", "constant", "strided", "dilated", "three", "volume", "up")
SMALL = ("mixed", "corrected", "interior", *EXTRAS)
LARGE = tuple(large.CASES)
"""Those that verification holds to their values computed anew."""


def large_case(name: str, dtype: torch.dtype) -> tuple[Tensors, dict[str, Any]]:
    return large.drawn(name, dtype), {"version": 1, "pairs": [large.CASES[name][0]]}


FILES = (
    (SESR, SESR_PAIRS),
    (SESR.with_suffix(".safetensors"), SESR_PAIRS),
    *(
        (BLOCKS / f"{name}{suffix}", BLOCKS / f"{name}.yaml")
        for name, suffix in (
            ("repvgg", ".pt"),
            ("convnext_ols_stem", ".safetensors"),
            ("locon", ".safetensors"),
        )
    ),
)
"""The samples, each with its manifest."""
