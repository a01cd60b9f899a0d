"""The sound files that examples begin with: one small network, saved and squeezed in every way."""

import io
import json
import tempfile
from collections import OrderedDict
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convsqueeze.pipeline import merge_file

PAIR = {"first": {"name": "body.0"}, "second": {"name": "body.1"}}
PAIRS: dict[str, Any] = {"version": 1, "pairs": [PAIR]}
"""What every checkpoint is merged by."""

SQUEEZED: dict[str, Any] = {
    "version": 1,
    "border": "corrected",
    "pairs": [
        {"first": {"name": "body.0", "padding": 1}, "second": {"name": "body.1", "padding": 1}},
        {
            "chain": [
                {"name": "up", "type": "conv_transpose", "stride": 2},
                {"name": "norm", "type": "batch_norm", "eps": 1e-5},
            ]
        },
        {"sum": [{"name": "flat", "type": "linear"}, {"type": "identity"}]},
    ],
}
"""A merge with corrections, a transposed one and a linear one."""


def tensors() -> "OrderedDict[str, Tensor]":
    """Layers of every kind, some tens of numbers each."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return OrderedDict(
        {
            "body.0.weight": normal(3, 2, 1, 1),
            "body.0.bias": normal(3),
            "body.1.weight": normal(2, 3, 3, 3),
            "up.weight": normal(2, 3, 2, 2),
            "up.bias": normal(3),
            "norm.weight": normal(3),
            "norm.bias": normal(3),
            "norm.running_mean": normal(3),
            "norm.running_var": normal(3).abs() + 0.5,
            "norm.num_batches_tracked": torch.tensor(7),
            "flat.weight": normal(4, 4),
            "flat.bias": normal(4),
        }
    )


def pickled(value: object, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def stored(named: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """A safetensors file of float32 and int64 tensors."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    data = b""
    for name, tensor in named.items():
        piece = bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())
        dtype = {torch.float32: "F32", torch.int64: "I64"}[tensor.dtype]
        offsets = [len(data), len(data) + len(piece)]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": offsets}
        data += piece
    return framed(json.dumps(header).encode(), data)


def framed(header: bytes, data: bytes, length: int | None = None) -> bytes:
    """A safetensors file from its parts; `length` is what it says of its header."""
    told = len(header) if length is None else length % (1 << 64)
    return told.to_bytes(8, "little") + header + data


def parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and data of a sound safetensors file."""
    stop = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:stop]), data[stop:]


@cache
def squeezed(suffix: str) -> tuple[bytes, bytes]:
    """An original and its squeezed file, `.pt` or `.safetensors`."""
    state = tensors()
    del state["norm.num_batches_tracked"]
    state["body.0.weight"] = state["body.0.weight"].repeat(1, 1, 3, 3)
    original = stored(state) if suffix == ".safetensors" else pickled(state)
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder, "model" + suffix), Path(folder, "squeezed" + suffix)
        source.write_bytes(original)
        (pairs := Path(folder, "pairs.yaml")).write_text(json.dumps(SQUEEZED))
        merge_file(source, pairs, output, growth="allow")
        return original, output.read_bytes()


@cache
def exported() -> bytes:
    """The ONNX model of the squeezed file's layers."""
    from convsqueeze.export import export

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "squeezed.safetensors")
        source.write_bytes(squeezed(".safetensors")[1])
        export(source, Path(folder, "layers.onnx"))
        return Path(folder, "layers.onnx").read_bytes()
