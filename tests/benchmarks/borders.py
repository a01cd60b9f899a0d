"""How much faster than the layers a corrected merge is, and what correcting costs.

Ratios are medians over rounds in which each way runs once. In onnxruntime and in torch, float32.
"""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

from convsqueeze.export import build_model
from convsqueeze.latency.timing import onnx_run, torch_run
from tests.benchmarks.geometries import PAIRS, Pair
from tests.benchmarks.rounds import Run, in_turn

TITLE = "time of a corrected merge, of a plain one and of the layers apart"
LARGEST_COST = 1.5
"""What a corrected merge may take at most of a plain one's time."""
WAYS = ("pair", "corrected", "plain")
RUNTIMES = ("onnxruntime", "torch")


@dataclass(frozen=True)
class Timing:
    """One pair in one runtime: milliseconds of each way, and ratios of the corrected merge."""

    runtime: str
    milliseconds: Mapping[str, float]
    of_plain: float
    of_pair: float


@dataclass(frozen=True)
class Measured:
    """What came of one pair. `pays`: whether the plan expects the corrected merge to be faster."""

    pair: Pair
    form: str
    weights: Mapping[str, int]
    pays: bool
    timings: Sequence[Timing]

    @property
    def broken(self) -> list[str]:
        """Claims that did not hold in this run."""
        found = []
        for one in self.timings:
            where = f"{self.pair.name}, {one.runtime}"
            if self.pair.size >= 256 and one.of_plain > LARGEST_COST:
                found.append(f"{where}: {one.of_plain:.2f} times the time of a plain merge")
            if self.pays and one.of_pair >= 1:
                found.append(f"{where}: {one.of_pair:.2f} times the time of the pair")
        return found


def run(console: Console, options: Namespace) -> list[str]:
    """Time every pair; returns the claims that did not hold."""
    torch.set_num_threads(options.threads)
    found = [
        measure(replace(pair, size=options.size), options.rounds, options.threads) for pair in PAIRS
    ]
    print_table(console, found)
    broken = [claim for one in found for claim in one.broken]
    if not broken:
        console.print(
            f"held: at most {LARGEST_COST} times a plain merge's time, and faster than the pair "
            "wherever the plan says that it pays"
        )
    return broken


def measure(pair: Pair, rounds: int, threads: int) -> Measured:
    """Merge a pair both ways and time all three."""
    merge, corrected = pair.squeezed("corrected")
    plain_merge, plain = pair.squeezed("interior")
    modules = {"pair": pair.module(), "corrected": corrected, "plain": plain}
    x = torch.randn(1, pair.channels[0], pair.size, pair.size)
    models = {
        "pair": _as_onnx(pair),
        "corrected": build_model({"L": corrected}),
        "plain": build_model({"L": plain}),
    }
    timings = [
        _timing("onnxruntime", {way: onnx_run(models[way], x, threads) for way in WAYS}, rounds),
        _timing("torch", {way: torch_run(modules[way], x) for way in WAYS}, rounds),
    ]
    weights = {
        "pair": merge.weights_before,
        "corrected": merge.weights_after,
        "plain": plain_merge.weights_after,
    }
    return Measured(pair, merge.form.name, weights, merge.pays, timings)


def _timing(runtime: str, runs: Mapping[str, Run], rounds: int) -> Timing:
    taken = in_turn(runs, rounds)
    milliseconds = {way: taken.milliseconds(way) for way in runs}
    of = {way: taken.ratio("corrected", way) for way in ("plain", "pair")}
    return Timing(runtime, milliseconds, of["plain"], of["pair"])


def _as_onnx(pair: Pair) -> ModelProto:
    """The two layers as two Conv nodes."""
    nodes, values, name = [], [], "x"
    for index, layer in enumerate(pair.module()):
        inputs = [name, f"weight_{index}"]
        values.append(numpy_helper.from_array(layer.weight.numpy(), inputs[1]))
        if layer.bias is not None:
            inputs.append(f"bias_{index}")
            values.append(numpy_helper.from_array(layer.bias.numpy(), inputs[2]))
        name = f"y_{index}"
        nodes.append(
            helper.make_node(
                "Conv",
                inputs,
                [name],
                pads=[*layer.padding, *layer.padding],
                strides=list(layer.stride),
                group=layer.groups,
            )
        )
    signals = [
        helper.make_tensor_value_info(
            key, TensorProto.FLOAT, ["n", channels, f"{key}_h", f"{key}_w"]
        )
        for key, channels in (("x", pair.channels[0]), (name, pair.channels[2]))
    ]
    graph = helper.make_graph(nodes, "pair", signals[:1], signals[1:], values)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def print_table(console: Console, found: Sequence[Measured]) -> None:
    """One row a pair and runtime."""
    table = Table(title="corrected merges: time of one image, medians", title_justify="left")
    columns = ["pair", "form", "weights: pair, corrected, plain", "runtime"]
    columns += ["ms: pair, corrected, plain", "of plain", "of the pair"]
    for column in columns:
        table.add_column(column, justify="left" if column in columns[:4] else "right")
    for one in found:
        geometry = "-".join(map(str, one.pair.channels))
        kernels = ", ".join(f"{k}x{k}" for k in one.pair.kernel_sizes)
        for timing in one.timings:
            table.add_row(
                f"{one.pair.name} ({geometry}, {kernels}, {one.pair.size}x{one.pair.size})",
                one.form if one.pays else f"{one.form}, does not pay",
                ", ".join(f"{one.weights[way]:,}" for way in WAYS),
                timing.runtime,
                ", ".join(f"{timing.milliseconds[way]:.2f}" for way in WAYS),
                f"{timing.of_plain:.2f}",
                f"{timing.of_pair:.2f}",
            )
        table.add_section()
    console.print(table)
