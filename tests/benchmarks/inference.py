"""How much faster the samples are once they are squeezed, block by block, and the whole network.

Ratios are medians over rounds in which each way runs once. In onnxruntime and in torch, float32.
"""

import io
import tempfile
import warnings
from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import onnx
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import convsqueeze
from convsqueeze.latency.timing import onnx_run, torch_run
from convsqueeze.manifest import Border
from tests.benchmarks.rounds import Rounds, in_turn

TITLE = "time of the samples before and after"
SAMPLES = Path(__file__).parents[2] / "samples"
FEWER, FASTER = 16, 5
"""Blocks with so many times fewer weights are so many times faster."""


@dataclass(frozen=True)
class Block:
    """A part of a sample before and after, for an input of `channels`."""

    name: str
    before: nn.Module
    after: nn.Module
    channels: int

    @property
    def weights(self) -> tuple[int, int]:
        return tuple(  # type: ignore[return-value]
            sum(p.numel() for p in module.parameters()) for module in (self.before, self.after)
        )


def blocks() -> Iterator[Block]:
    """The samples' blocks without their activations, and the whole super-resolution network."""
    with tempfile.TemporaryDirectory() as folder:
        yield from _sesr(Path(folder))
        yield from _small(Path(folder))


def _sesr(folder: Path) -> Iterator[Block]:
    sample = _module(SAMPLES / "sesr" / "network.py")
    source = SAMPLES / "sesr" / "sesr_x2.pt"
    networks = [sample.SESR(), sample.SESR()]
    for network in networks:
        network.load_state_dict(torch.load(source, weights_only=True)["params_ema"])
    squeezed = folder / "sesr.pt"
    convsqueeze.merge_file(source, source.with_name("pairs.yaml"), squeezed)
    before, after = networks[0], convsqueeze.apply(networks[1], squeezed)
    layers = convsqueeze.load_layers(squeezed)
    for name, layer in layers.items():
        yield Block(f"SESR {name}", before.get_submodule(name), layer, 1 if name == "head" else 16)
    yield Block("SESR, whole", before, after, 1)


def _small(folder: Path) -> Iterator[Block]:
    sample = _module(SAMPLES / "blocks" / "make.py")
    repvgg = sample.with_lived_in_norms(sample.RepVGGBlock(16))
    repvgg.nonlinearity = nn.Identity()
    networks: dict[str, tuple[nn.Module, str, int, Border]] = {
        "RepVGG block": (nn.ModuleDict({"stage1": nn.Sequential(repvgg)}), "repvgg", 16, "exact"),
        "ConvNeXt stem": (sample.ConvNextStem(), "convnext_ols_stem", 3, "corrected"),
        "LoCon": (sample.LoConConv(32, 8), "locon", 32, "exact"),
    }
    for name, (network, stem, channels, border) in networks.items():
        manifest = SAMPLES / "blocks" / f"{stem}.yaml"
        source, squeezed = folder / f"{stem}.pt", folder / f"{stem}.squeezed.pt"
        torch.save(network.state_dict(), source)
        convsqueeze.merge_file(source, manifest, squeezed, border=border)
        ((_, layer),) = convsqueeze.load_layers(squeezed).items()
        before = network["stage1"] if isinstance(network, nn.ModuleDict) else network
        yield Block(name, before, layer, channels)


def _module(path: Path) -> ModuleType:
    spec = spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(console: Console, options: Namespace) -> list[str]:
    """Time every block; returns the claims that did not hold."""
    torch.set_num_threads(options.threads)
    table = Table(title=f"one image of {options.size}x{options.size}", title_justify="left")
    table.add_column("block")
    for column in ("weights", "fewer", "runtime", "ms before", "ms after", "faster"):
        table.add_column(column, justify="right")
    broken = []
    for block in blocks():
        before, after = block.weights
        for runtime, rounds in _timed(block, options).items():
            faster = rounds.ratio("before", "after")
            table.add_row(
                block.name,
                f"{before:,} -> {after:,}",
                f"{before / after:.1f}",
                runtime,
                f"{rounds.milliseconds('before'):.2f}",
                f"{rounds.milliseconds('after'):.2f}",
                f"{faster:.2f}",
            )
            if before >= FEWER * after and faster < FASTER:
                broken.append(f"{block.name}, {runtime}: {faster:.2f} times faster")
    console.print(table)
    return broken


def _timed(block: Block, options: Namespace) -> Mapping[str, Rounds]:
    x = torch.randn(1, block.channels, options.size, options.size)
    ways = {"before": block.before.eval(), "after": block.after.eval()}
    models = {way: _as_onnx(module, x) for way, module in ways.items()}
    return {
        "onnxruntime": in_turn(
            {way: onnx_run(models[way], x, options.threads) for way in ways}, options.rounds
        ),
        "torch": in_turn({way: torch_run(ways[way], x) for way in ways}, options.rounds),
    }


def _as_onnx(module: nn.Module, x: torch.Tensor) -> onnx.ModelProto:
    if isinstance(module, convsqueeze.SqueezedConv):
        from convsqueeze.export import build_model

        return build_model({"layer": module})
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the newer exporter needs one more package
        torch.onnx.export(module, (x,), buffer, dynamo=False, opset_version=17)
    return onnx.load_from_string(buffer.getvalue())
