"""Every published network as a model: the regions are those written by hand, to the last number,
and what squeezing makes of the network gives the same output.
"""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

import convsqueeze
from convsqueeze.checkpoint import from_state_dict
from convsqueeze.graph import LayerOp, Region
from convsqueeze.manifest import (
    Document,
    Manifest,
    Request,
    entry_of,
    manifest_from_data,
    parse_manifest,
)
from convsqueeze.plan import Merge, make_plan
from convsqueeze.scan import Scan
from convsqueeze.squeezing import exact_values
from tests.networks.efficientnet import EfficientNetLite0
from tests.scan.blocks import BLOCKS, Block
from tests.scan.code import image, largest_share, made, merged_layers, reasons, scanned

pytestmark = pytest.mark.stress

EXACT = 1e-11
"""Of the largest output, in float64."""

SETTINGS = (
    {"border": "exact"},
    {"border": "corrected", "growth": "allow"},
    {"border": "corrected", "minimize": "macs"},
)

blocks = pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)


def network(block: Block) -> tuple[nn.Module, list[tuple[Tensor, ...]]]:
    """The network in float64 and inputs of all its shapes."""
    images = [
        tuple(image(*shape, seed=i).double() for i, shape in enumerate(shapes))
        for shapes in block.shapes
    ]
    return made(block.build).double(), images


def long_regions(scan: Scan) -> list[Region[LayerOp]]:
    return [region for region in scan.regions if sum(one.has_tensors for one in region.layers) > 1]


def tensors_of(merge: Merge) -> frozenset[str]:
    return frozenset(key for leaf in merge.layers for key in leaf.keys)


def merges(model: nn.Module, manifest: Manifest) -> Mapping[frozenset[str], Merge]:
    """Planned with nothing held against them, by the tensors that go into each."""
    own = from_state_dict(model.state_dict())
    plan = make_plan(manifest, own, border="interior", growth="allow")
    return {tensors_of(merge): merge for merge in plan.merges}


def as_manifest(regions: list[Region[LayerOp]]) -> Manifest:
    document = Document(
        version=1,
        pairs=tuple(entry_of(Request(region)) for region in regions),
    )
    return manifest_from_data(document.model_dump(exclude_unset=True, mode="json"), "regions")


@blocks
def test_the_regions_are_those_written_by_hand(block: Block) -> None:
    model, images = network(block)
    own = from_state_dict(model.state_dict())
    found = merges(model, as_manifest(long_regions(scanned(model, *images[0]))))
    wanted = merges(model, parse_manifest(block.manifest, "pairs.yaml"))
    assert found.keys() == wanted.keys()
    for tensors, merge in wanted.items():
        other = found[tensors]
        assert other.geometry == merge.geometry
        assert other.weights_after == merge.weights_after
        values, others = (exact_values(one, own.load) for one in (merge, other))
        assert values.keys() == others.keys()
        for name, value in values.items():
            torch.testing.assert_close(others[name], value, rtol=1e-12, atol=1e-12)


@blocks
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda one: " ".join(one.values()))
def test_a_squeezed_network_gives_the_same_output(
    block: Block, settings: Mapping[str, str]
) -> None:
    model, images = network(block)
    numbers = sum(p.numel() for p in (*model.parameters(), *model.buffers()))
    squeezed, report = convsqueeze.squeeze(model, images[0], **settings)
    for inputs in images:
        assert largest_share(model, squeezed, inputs) < EXACT
    assert report.weights_after <= report.weights_before
    if report.merged is not None:
        assert report.whole.ok
        assert sum(p.numel() for p in squeezed.parameters()) <= numbers


MERGED_PLAINLY = {
    "SESR collapsible block": 1,
    "SESR residual block": 1,
    "SESR": 4,
    "SPAN": 3,
    "ECBSR": 3,
    "Diverse Branch Block": 1,
    "Diverse Branch Block, depthwise": 1,
    "RepVGG": 4,
    "MobileOne": 5,
    "Stable Diffusion VAE": 1,
    "DeepLab separable with norm": 1,
    "LoCon": 1,
    "LoCon, Tucker": 1,
}
"""How many merges pay where nothing is corrected; in the others none does."""


@blocks
def test_what_pays_is_merged_and_nothing_grows(block: Block) -> None:
    model, images = network(block)
    scan = scanned(model, *images[0])
    assert len(scan.merged) == MERGED_PLAINLY.get(block.name, 0)
    assert all(one.merge.weights_after <= one.merge.weights_before for one in scan.merged)
    if block.name not in MERGED_PLAINLY:
        kinds = {kind for _, kind, _ in reasons(scan)}
        assert kinds & {"border", "no gain", "growth"}


@pytest.mark.parametrize("name", ["ConvNeXt-OLS stem", "two 3x3"])
def test_border_interior_is_the_same_away_from_the_border(name: str) -> None:
    block = next(one for one in BLOCKS if one.name == name)
    model, images = network(block)
    if name == "ConvNeXt-OLS stem":
        model.stem[2] = nn.Identity()  # a norm over the image carries the border inwards
    squeezed, report = convsqueeze.squeeze(model, images[0], border="interior")
    x = image(1, images[0][0].shape[1], 40, 40).double()
    with torch.no_grad():
        wanted, found = model(x), squeezed(x)
    difference = (wanted - found).abs() / wanted.abs().max()
    assert len(report.scan.merged) == 1
    assert difference[..., 2:-2, 2:-2].max() < EXACT
    assert difference.max() > 1e-3
    assert any("border" in note for note in report.whole.notes)


def test_an_efficientnet_merges_its_norms_and_across_blocks() -> None:
    model = made(EfficientNetLite0).double()
    x = image(1, 3, 64, 64).double()
    scan = scanned(model, x)
    found = merged_layers(scan)
    across = ("_blocks.0._project_conv", "_blocks.0._bn2", "_blocks.1._expand_conv")
    assert len(found) == 47  # 49 norms go, two of them with the same convolution as another
    assert sum("_bn" in label for layers in found for label in layers) == 49
    assert all(sum("_conv" in label for label in layers) == 1 for layers in found)
    regions = [tuple(one.layer.label for one in region.layers) for region in long_regions(scan)]
    assert any(region[:3] == across for region in regions)
    eps = {getattr(one.layer, "eps", 1e-3) for region in scan.regions for one in region.layers}
    assert eps == {1e-3}
    fans = [layers for layers, kind, _ in reasons(scan) if kind == "read elsewhere"]
    assert {first for first, _ in fans} == {f"_blocks.{i}._bn2" for i in (1, 3, 5, 8, 11)}
    squeezed, report = convsqueeze.squeeze(model, x)
    assert report.whole is not None
    assert report.whole.ok
    assert largest_share(model, squeezed, [x]) < 1e-5  # its random norms amplify what rounding does
