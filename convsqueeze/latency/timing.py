"""The time of a merge and of its layers apart.

Both are run in every round, so that what slows the machine down for a while slows both.
"""

import time
from collections.abc import Callable, Hashable, Sequence
from statistics import median
from typing import Literal

import torch
from onnx import ModelProto
from torch import Tensor

from convsqueeze.algebra.apply import transposed_layout
from convsqueeze.export import build_model
from convsqueeze.export.session import session_of
from convsqueeze.latency.unmerged import as_onnx, in_torch, random_values
from convsqueeze.module import SqueezedConv, module_of
from convsqueeze.plan import Merge, Timing
from convsqueeze.squeezing import recipe_layer

Runtime = Literal["onnxruntime", "torch"]
ROUNDS, LEAST_NS, MOST_NS = 15, 200_000_000, 3_000_000_000
"""Rounds at least, and how long they take at least; a round begun after the most is none."""
SURE = 0.8
"""Share of the rounds in which the merge has to be the faster one."""
LEAST_GAIN = 0.03
"""Of the time apart: what is less may be noise that all rounds share."""


def measuring(
    runtime: Runtime = "onnxruntime", *, threads: int | None = None
) -> Callable[[Merge], Timing]:
    """A function that times a merge against its layers; merges that are alike are timed once.

    `threads`: by default as many as torch uses. What a runtime has no kernels for, half precision
    and in onnxruntime float64, is timed in float32.
    """
    count = threads or torch.get_num_threads()
    known: dict[Hashable, Timing] = {}

    def latency(merge: Merge) -> Timing:
        kinds = tuple((op.layer.type, str(op.layer.settings), *op.shapes) for op in merge.layers)
        whole = merge.geometry, merge.corrections, merge.dtype, merge.size
        key = (merge.geometry_tree, kinds, whole)  # all that the time depends on
        if key not in known:
            known[key] = measure(merge, runtime, count)
        return known[key]

    return latency


def measure(merge: Merge, runtime: Runtime, threads: int) -> Timing:
    """Time a merge and its layers now."""
    # onnxruntime has no convolution in float64 for every rank
    double = merge.dtype == torch.float64 and runtime == "torch"
    dtype = torch.float64 if double else torch.float32
    x = torch.randn((1, merge.geometry.in_channels, *merge.size), dtype=dtype)
    values, whole = random_values(merge, dtype), random_squeezed(merge, dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        if runtime == "torch":
            return judge(*in_rounds(torch_run(in_torch(merge, values), x), torch_run(whole, x)))
        apart = onnx_run(as_onnx(merge, values), x, threads)
        return judge(*in_rounds(apart, onnx_run(build_model({"merged": whole}), x, threads)))
    finally:
        torch.set_num_threads(before)


def random_squeezed(merge: Merge, dtype: torch.dtype) -> SqueezedConv:
    """The merged layer with random values, corrections and all."""
    tensors = {name: torch.randn(shape, dtype=dtype) for name, shape in merge.tensors.items()}
    weight = f"{merge.into}.weight"
    if merge.geometry.is_transposed:
        tensors[weight] = transposed_layout(tensors[weight], merge.geometry.groups).contiguous()
    return module_of(recipe_layer(merge), tensors).requires_grad_(False)


def in_rounds(
    apart: Callable[[], object],
    merged: Callable[[], object],
    clock: Callable[[], int] = time.perf_counter_ns,
) -> tuple[list[int], list[int]]:
    """Nanoseconds of both in each round, every other round in the other order, after a warm-up."""
    runs = (apart, merged)
    taken: tuple[list[int], list[int]] = ([], [])
    for run in runs * 3:
        run()
    begin = clock()
    while len(taken[0]) < ROUNDS or clock() - begin < LEAST_NS:
        for index in (0, 1) if len(taken[0]) % 2 == 0 else (1, 0):
            start = clock()
            runs[index]()
            taken[index].append(clock() - start)
        if clock() - begin > MOST_NS:
            break
    return taken


def judge(before: Sequence[int], after: Sequence[int]) -> Timing:
    """The shortest times, and whether the second is faster beyond the noise.

    Whatever disturbs a run makes it longer, so the shortest of many is the nearest to the time that
    it takes by itself, and can be held against one of another moment. Faster is what wins in most
    rounds, and by enough in half of them.
    """
    times = min(before), min(after)
    wins = sum(b > a for b, a in zip(before, after, strict=True))
    gain = median(1 - a / b for b, a in zip(before, after, strict=True))
    faster = wins >= SURE * len(before) and gain >= LEAST_GAIN and times[1] < times[0]
    return Timing(*times, faster)


def torch_run(run: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], object]:
    """Runs a module in torch, without gradients; gives what it gives."""
    return torch.inference_mode()(lambda: run(x))


def onnx_run(model: ModelProto, x: Tensor, threads: int) -> Callable[[], object]:
    """Runs a model of one input in onnxruntime on so many threads; gives what it gives."""
    session = session_of(model, threads)
    feed = {session.get_inputs()[0].name: x.numpy()}
    return lambda: session.run(None, feed)
