"""Published networks: what may be merged is merged exactly, what may not is refused and told why.

The network's own modules, run in float64, are the oracle throughout.
"""

import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convsqueeze import apply
from convsqueeze.errors import ModelMismatchError, PlanError
from convsqueeze.module import SqueezedConv
from tests.networks import manifests
from tests.networks.branches import DiverseBranchBlock, MobileOne, RepVgg, RepVggBlock
from tests.networks.pairs import DepthHead, OverlappingStem
from tests.networks.pipeline import difference, image, in_double, merged, planned, squeezed_file
from tests.networks.refused import REFUSED
from tests.networks.rows import Row, differences_of, merged_of, network_of, spoiled_pixels
from tests.networks.super_resolution import Conv3XC, Ecbsr, Sesr, Span
from tests.networks.table import EXACT, lines
from tests.networks.values import filled

EVERY = (*EXACT, *REFUSED)
GROWING = [row for row in EVERY if row.times]
FLOAT64_LOSS = 1e-12
"""Of a whole network's largest output, between the float64 network and its float64 merge."""


def rows(which: tuple[Row, ...] | list[Row]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", which, ids=lambda row: row.network)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# Figures and refusals, from names and shapes.


@rows(EVERY)
def test_weights_before_and_after(row: Row) -> None:
    plan = merged_of(row).plan
    assert (plan.weights_before, plan.weights_after) == (row.before, row.after)


@rows(GROWING)
def test_growth_is_refused_with_the_figures(row: Row) -> None:
    with pytest.raises(PlanError) as refused:
        planned(network_of(row), row.manifest, border=row.border)
    assert f"from {row.before:,} to {row.after:,} weights ({row.times} times)" in str(refused.value)
    assert "--growth allow" in str(refused.value)


@rows([row for row in EVERY if not row.times])
def test_what_shrinks_needs_no_leave(row: Row) -> None:
    assert planned(network_of(row), row.manifest, border=row.border).merges


@rows(REFUSED)
def test_a_plain_merge_is_refused_with_layer_reason_and_rows(row: Row) -> None:
    assert row.refusal is not None
    with pytest.raises(PlanError) as refused:
        planned(network_of(row), row.manifest, growth="allow")
    (problem,) = refused.value.problems
    for phrase in (*row.refusal.told, f"pairs[0]{row.refusal.blamed}"):
        assert phrase in problem
    assert re.search(row.refusal.rows, problem)
    assert re.search(rf"border: corrected \(exact, .*{row.corrected:,} weights", problem)
    assert re.search(rf"border: interior to accept that \(.*{row.after:,} weights", problem)


def test_what_is_wrong_at_every_size_but_one_sample_is_told_as_wrong() -> None:
    """VAN without biases: only where the image is a single sample does no window meet the ring."""
    row = next(row for row in REFUSED if row.network == "VAN without its biases")
    with pytest.raises(PlanError) as refused:
        planned(network_of(row), row.manifest, growth="allow")
    assert "sizes such as 1 are exact" not in str(refused.value)
    assert "for some input sizes" not in str(refused.value)


def test_depth_anything_is_refused_at_full_size_from_shapes_alone() -> None:
    with torch.device("meta"):
        network = DepthHead()
    with pytest.raises(PlanError, match=r"projects\.2 \(1x1, bias\) is not zero outside"):
        planned(network, manifests.DEPTH_HEAD)
    plan = planned(network, manifests.DEPTH_HEAD, border="interior")
    assert (plan.weights_before, plan.weights_after) == (3_408_896, 2_359_552)


def test_a_fixed_input_size_leaves_the_stem_two_sides() -> None:
    manifest = manifests.OVERLAPPING_STEM + "    input: [64, 64]\n"
    with pytest.raises(PlanError, match="1 row at the top, 1 column at the left would differ"):
        planned(filled(OverlappingStem()), manifest)


def test_the_stale_copy_of_span_is_not_overwritten_unasked() -> None:
    kept = "\n".join(line for line in manifests.SPAN.split("\n") if "drop:" not in line)
    with pytest.raises(
        PlanError, match=r"eval_conv\.weight is in the checkpoint and is not merged"
    ):
        planned(Span(4), kept)


def test_the_padding_of_ecbsr_is_not_that_of_its_second_layer() -> None:
    """Zeros around the 1x1's output are not the bias that ECBSR pads with: another network."""
    manifest = manifests.ecbsr(0, 2).replace("{type: pad, padding: 1}", "{type: pad, padding: 0}")
    manifest = manifest.replace("conv1x1_3x3.b1}", "conv1x1_3x3.b1, padding: 1}")
    manifest = manifest.replace(".mask, ", ".mask, padding: 1, ")
    with pytest.raises(PlanError, match=r"k0 \(1x1, bias\) is not zero outside the image"):
        planned(Ecbsr(0, 2), manifest, growth="allow")


def test_a_block_without_identity_is_left_alone_and_told() -> None:
    notes = merged_of(next(row for row in EXACT if row.network.startswith("RepVGG"))).plan.notes
    assert any("stage1.0.rbr_dense.conv matches in part" in note for note in notes)


# Exact merges, against the network itself.


@pytest.mark.stress
@rows(EXACT)
def test_squeezed_layers_are_the_network_within_rounding(row: Row) -> None:
    for size, found in differences_of(row).items():
        for merge, one in zip(merged_of(row).plan.merges, found, strict=True):
            assert float(one.share.max()) <= 1.0, (merge.into, size)
            assert float(one.expected.abs().max()) > 1e-3


@rows(EXACT)
def test_the_package_verifies_it(row: Row) -> None:
    whole = merged_of(row)
    assert all(not merge.mismatches for merge in whole.plan.merges)
    reports = whole.verified(exhaustive=False, first=row.verify)
    assert len(reports) == (row.verify or len(whole.plan.merges))
    assert [report.problem for report in reports if not report.ok] == []
    assert all(report.policy == "exact" for report in reports)


@pytest.mark.stress
@rows([row for row in EXACT if row.small])
def test_with_few_channels_it_is_proven_exhaustively(row: Row) -> None:
    assert row.small is not None
    build, manifest = row.small
    whole = merged(filled(build(), seed=1), manifest, growth="allow")
    reports = whole.verified(exhaustive=True)
    assert len(reports) == len(whole.plan.merges)
    assert [report.problem for report in reports if not report.ok] == []


@rows(EXACT)
def test_one_wrong_weight_or_a_lost_bias_is_seen(row: Row) -> None:
    whole, network = merged_of(row), in_double(network_of(row))
    merge = whole.plan.merges[-1]
    linear, layer = row.part(network, merge.into), whole.layer(merge.into)
    x = image(merge.geometry.in_channels, row.sizes[0])
    largest = int(layer.weight.abs().argmax())
    weight = layer.weight.detach().clone()
    weight.view(-1)[largest] *= 1 + 2.0**-10
    faults = [SqueezedConv(layer.layer, weight, layer.bias)]
    if layer.bias is not None:
        faults.append(SqueezedConv(layer.layer, layer.weight, None))
    for fault in faults:
        assert difference(linear, fault, x).wrong.any()


WRONG_CLAIMS = {
    "eps": ("Diverse Branch Block", "eps: 1.0e-3", "eps: 1.0e-5"),
    "no identity": ("Diverse Branch Block", "idconv1}, {type: identity}]", "idconv1}]"),
    "alpha": ("LoCon", "factor: 0.25", "factor: 1.0"),
    "no alpha": ("LoCon, Tucker", "weight: lora.alpha, factor: 0.25", "factor: 0.25"),
    "dilation": ("Xception separable", "padding: 2, dilation: 2", "padding: 1, dilation: 1"),
}


@pytest.mark.parametrize("claim", WRONG_CLAIMS)
def test_a_wrong_claim_gives_another_network(claim: str) -> None:
    """What the manifest says decides: each of these merges, and is not the network."""
    name, right, wrong = WRONG_CLAIMS[claim]
    row = next(row for row in EXACT if row.network == name)
    manifest = row.manifest.replace(right, wrong)
    assert manifest != row.manifest
    whole = merged(network_of(row), manifest, growth="allow")
    network = in_double(network_of(row))
    merge = whole.plan.merges[0]
    x = image(merge.geometry.in_channels, row.sizes[0])
    assert difference(row.part(network, merge.into), whole.layer(merge.into), x).wrong.any()


def test_the_stale_copy_of_span_is_another_network() -> None:
    block = in_double(filled(Conv3XC(6)))
    x = image(6, (9, 9))
    assert not torch.allclose(block(x), block.get_submodule("eval_conv")(x), rtol=0.1)


# Plain merges of what is not exact: wrong where the plan says, and nowhere else.


@pytest.mark.stress
@rows(REFUSED)
def test_interior_differs_exactly_where_told(row: Row) -> None:
    assert row.refusal is not None
    for size, (one,) in differences_of(row).items():
        expected = spoiled_pixels(row.refusal, size, tuple(one.error.shape[2:]))
        assert torch.equal(one.wrong, expected), size
        if size == row.refusal.at:
            assert float(one.wrong.double().mean()) == pytest.approx(row.refusal.pixels)


@rows(REFUSED)
def test_interior_is_verified_away_from_the_border(row: Row) -> None:
    (report,) = merged_of(row).verified(exhaustive=False)
    assert report.problem is None
    assert report.policy == "interior"
    assert report.border_error > 0.01 * report.border_range > 0


@pytest.mark.stress
def test_the_table_holds_every_row() -> None:
    table = "\n".join(lines())
    for row in EVERY:
        assert f"| {row.network} |" in table
        assert f"{row.before:,} -> {row.after:,}" in table


# Squeezed layers in the user's own model.


def rep_vgg_into(name: str) -> str:
    return manifests.REP_VGG.replace(".rbr_reparam", name)


SPAN_BLOCKS = manifests.SPAN.replace(
    'into: "block_{i}.{conv}.eval_conv"', 'into: "block_{i}.{conv}"'
)

PLAIN_PAIR = manifests.pair("{name: '0', padding: 1}", "{name: '1', groups: 2}")


def _plain_pair() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 2, 1, groups=2), nn.ReLU(), nn.Conv2d(2, 3, 3)
    )


APPLIED = {
    "SESR": (lambda: Sesr(), manifests.SESR, 1),
    "SPAN": (lambda: Span(6, blocks=2), SPAN_BLOCKS, 6),
    "RepVGG, into the 3x3": (lambda: RepVgg(6), rep_vgg_into(".rbr_dense.conv"), 3),
    "RepVGG, into the norm": (lambda: RepVgg(6), rep_vgg_into(".rbr_dense.bn"), 3),
    "RepVGG, into the 1x1": (lambda: RepVgg(6), rep_vgg_into(".rbr_1x1.conv"), 3),
    "Diverse Branch Block": (
        lambda: nn.Sequential(DiverseBranchBlock(6, eps=1e-3), nn.ReLU()),
        manifests.DIVERSE_BRANCH_BLOCK,
        6,
    ),
    "a plain pair": (_plain_pair, PLAIN_PAIR, 3),
}


def _files(network: nn.Module, manifest: str, folder: Path) -> Path:
    """The squeezed file of a network."""
    torch.save(network.state_dict(), folder / "model.pt")
    squeezed_file(folder / "model.pt", manifest, folder / "squeezed.pt")
    return folder / "squeezed.pt"


def _outputs(network: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        result: Tensor = network(x)
    return result


@pytest.mark.parametrize("case", APPLIED)
def test_a_model_gives_the_same_with_its_layers_squeezed(case: str, tmp_path: Path) -> None:
    build, manifest, channels = APPLIED[case]
    network = filled(build()).double()
    squeezed = apply(network, _files(network, manifest, tmp_path))
    assert any(isinstance(module, SqueezedConv) for module in squeezed.modules())
    for size in ((16, 16), (9, 14), (7, 5)):
        x = image(channels, size)
        before, after = _outputs(network, x), _outputs(squeezed, x)
        assert float((after - before).abs().max()) <= FLOAT64_LOSS * float(before.abs().max())
    numbers = [sum(p.numel() for p in one.state_dict().values()) for one in (network, squeezed)]
    assert numbers[1] < numbers[0]


def test_the_given_model_stays_as_it_is(tmp_path: Path) -> None:
    network = filled(Sesr())
    before, kept = copy.deepcopy(network.state_dict()), str(network)
    apply(network, _files(network, manifests.SESR, tmp_path))
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert str(network) == kept


def test_a_float64_model_takes_a_float32_file(tmp_path: Path) -> None:
    network = filled(Sesr())
    path = _files(network, manifests.SESR, tmp_path)
    double = in_double(network)
    squeezed, x = apply(double, path), image(1, (12, 17))
    before, after = _outputs(double, x), _outputs(squeezed, x)
    error = float((after - before).abs().max())
    assert 0 < error <= 1e-5 * float(before.abs().max())


def _set(name: str, attribute: str, value: object) -> Callable[[nn.Module], None]:
    def change(network: nn.Module) -> None:
        setattr(network.get_submodule(name), attribute, value)

    return change


DENSE = "stage1.0.rbr_dense.conv"
OTHER_MODELS: dict[str, tuple[Callable[[nn.Module], None], str]] = {
    "stride": (_set(DENSE, "stride", (1, 1)), rf"{DENSE}: .*stride=\(1, 1\)"),
    "padding": (_set(DENSE, "padding", (0, 0)), rf"{DENSE}: .* padding 1"),
    "dilation": (_set(DENSE, "dilation", (2, 2)), rf"{DENSE}: .*dilation=\(2, 2\)"),
    "padding mode": (_set(DENSE, "padding_mode", "circular"), rf"{DENSE}: .*circular"),
    "eps": (
        _set("stage1.1.rbr_identity", "eps", 1e-3),
        r"stage1\.1\.rbr_identity: has eps 0\.001 in the model, 1e-05 in the recipe",
    ),
}


@pytest.mark.parametrize("what", OTHER_MODELS)
def test_a_model_with_another_geometry_is_refused(what: str, tmp_path: Path) -> None:
    network = filled(RepVgg(4))
    path = _files(network, rep_vgg_into(".rbr_dense.conv"), tmp_path)
    assert apply(network, path)
    change, message = OTHER_MODELS[what]
    change(network)
    with pytest.raises(ModelMismatchError, match=message):
        apply(network, path)


def test_a_model_with_other_channels_is_refused(tmp_path: Path) -> None:
    path = _files(filled(RepVgg(4)), rep_vgg_into(".rbr_dense.conv"), tmp_path)
    with pytest.raises(ModelMismatchError):
        apply(filled(RepVgg(6)), path)


REFUSED_PLACES = {
    "no such module": (
        lambda: RepVgg(4),
        manifests.REP_VGG,
        r"stage1\.1\.rbr_reparam: the model has no module of this name",
    ),
    "an activation inside": (
        lambda: RepVgg(4),
        rep_vgg_into(""),
        r"stage1\.1: computes something else .* It holds stage1\.1\.nonlinearity \(ReLU\)",
    ),
    "padding in the model's code": (
        lambda: Span(4),
        manifests.SPAN,
        r"block_1\.c1_r\.eval_conv: the model's own code does the pad",
    ),
    "an addition in the model's code": (
        lambda: Sesr(),
        manifests.SESR.replace('into: "body.{i}"', 'into: "body.{i}.conv_expand"'),
        r"body\.0\.conv_expand: the model's own code does the identity",
    ),
}


@pytest.mark.parametrize("case", REFUSED_PLACES)
def test_a_place_that_would_change_the_model_is_refused(case: str, tmp_path: Path) -> None:
    build, manifest, message = REFUSED_PLACES[case]
    network = filled(build())
    path = _files(network, manifest, tmp_path)
    with pytest.raises(ModelMismatchError, match=message):
        apply(network, path)


def test_a_module_with_an_activation_in_its_code_is_not_replaced(tmp_path: Path) -> None:
    """MobileOne's blocks call `F.relu`: no module stands for it, and replacing one loses it."""
    network = filled(MobileOne(((4, 2),), first=3))
    manifest = manifests.mobile_one(((4, 2),), first=3).replace(".reparam_conv", "")
    path = _files(network, manifest, tmp_path)
    with pytest.raises(ModelMismatchError):
        apply(network, path)


class _SelfPadding(nn.Conv2d):
    """As EfficientNet's for PyTorch: a convolution that pads in its own forward."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (1, 1, 1, 1)))


def test_a_convolution_with_a_forward_of_its_own_is_not_taken_for_a_plain_one(
    tmp_path: Path,
) -> None:
    network = filled(nn.Sequential(_SelfPadding(3, 4, 3), nn.BatchNorm2d(4)))
    manifest = manifests.pair("{name: '0'}", "{name: '1', type: batch_norm, eps: 1.0e-5}")
    path = _files(network, manifest, tmp_path)
    with pytest.raises(ModelMismatchError):
        apply(network, path)


def test_modules_that_pass_their_input_on_may_be_inside(tmp_path: Path) -> None:
    """RepVGG blocks hold `nn.Identity` where others hold an activation or an attention."""
    network = filled(RepVgg(4)).double()
    for block in network.modules():
        if isinstance(block, RepVggBlock):
            block.nonlinearity = nn.Identity()
    squeezed = apply(network, _files(network, rep_vgg_into(""), tmp_path))
    x = image(3, (16, 16))
    before, after = _outputs(network, x), _outputs(squeezed, x)
    assert float((after - before).abs().max()) <= FLOAT64_LOSS * float(before.abs().max())
