"""How layers are stored: weight norm, ties, mixed dtypes, norms without weights, overflow."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, weight_norm

import convsqueeze
from convsqueeze.errors import ModelMismatchError, PlanError, TensorDataError

PAIR = {"version": 1, "pairs": [{"first": {"name": "0", "padding": 2}, "second": {"name": "1"}}]}


def pair(bias: bool = False) -> nn.Sequential:
    """A 3x3 convolution with full padding, 6 to 40 channels, then a 1x1 to 4."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(6, 40, 3, padding=2, bias=bias), nn.Conv2d(40, 4, 1))


def squeezed_output(merged: dict[str, Tensor], x: Tensor) -> Tensor:
    """The merged pair as torch's own convolution, in float64."""
    weight, bias = merged["0.weight"].double(), merged["0.bias"].double()
    return nn.functional.conv2d(x, weight, bias, padding=2)


def weight_normed_0(network: nn.Sequential) -> nn.Sequential:
    network[0] = weight_norm(network[0])
    return network


def weight_normed_1(network: nn.Sequential) -> nn.Sequential:
    network[0] = weight_norm(network[0], dim=1)
    network[1] = weight_norm(network[1], dim=None)
    return network


def parametrized(network: nn.Sequential) -> nn.Sequential:
    network[0] = parametrizations.weight_norm(network[0])
    network[1] = parametrizations.weight_norm(network[1], dim=1)
    return network


@pytest.mark.parametrize("wrap", [weight_normed_0, weight_normed_1, parametrized])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weight_norm_is_resolved(wrap: Callable[[nn.Sequential], nn.Sequential]) -> None:
    network = wrap(pair())
    for name, parameter in network.named_parameters():
        if name.endswith(("weight_g", "original0")):
            with torch.no_grad():
                parameter.mul_(torch.linspace(0.3, 2, parameter.numel()).view(parameter.shape))
    before = network.state_dict()
    merged, report = convsqueeze.merge_state_dict(before, PAIR)
    assert list(merged) == ["0.weight", "0.bias"]
    assert report.weights_before == sum(tensor.numel() for tensor in before.values())
    x = torch.randn(2, 6, 9, 8, dtype=torch.float64)
    expected = network.double()(x)
    error = (squeezed_output(merged, x) - expected).abs().max()
    assert error <= 1e-6 * expected.abs().max()


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_apply_replaces_weight_normed_layers(tmp_path: Path) -> None:
    network = parametrized(pair())
    merged, _ = convsqueeze.merge_state_dict(network.state_dict(), PAIR)
    torch.save(merged, tmp_path / "squeezed.pt")
    applied = convsqueeze.apply(network, tmp_path / "squeezed.pt")
    x = torch.randn(1, 6, 7, 7)
    assert torch.allclose(applied(x), network(x), atol=1e-5)
    assert isinstance(applied[1], nn.Identity)


def test_a_tied_tensor_stays_where_it_is_still_used() -> None:
    state = dict(pair().state_dict())
    state["elsewhere.weight"] = state["0.weight"]
    merged, report = convsqueeze.merge_state_dict(state, PAIR)
    assert torch.equal(merged["elsewhere.weight"], state["0.weight"])
    assert any("0.weight" in note and "elsewhere.weight" in note for note in report.notes)


def test_a_norm_in_float32_does_not_widen_half_convolutions() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(4, 8, 3, bias=False), nn.BatchNorm2d(8)).eval()
    network[0].half()
    manifest = {
        "version": 1,
        "pairs": [{"chain": [{"name": "0"}, {"name": "1", "type": "batch_norm", "eps": 1e-5}]}],
    }
    merged, report = convsqueeze.merge_state_dict(network.state_dict(), manifest, growth="allow")
    assert merged["0.weight"].dtype == merged["0.bias"].dtype == torch.float16
    assert report.verification is not None
    assert report.verification.ok


def test_a_norm_without_weights_is_a_norm() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(8, affine=False)
    network = nn.Sequential(nn.Conv2d(4, 8, 3, bias=False), norm).eval()
    nn.init.uniform_(norm.running_var, 0.1, 2)
    nn.init.normal_(norm.running_mean)
    manifest = {
        "version": 1,
        "pairs": [{"chain": [{"name": "0"}, {"name": "1", "type": "batch_norm", "eps": 1e-3}]}],
    }
    merged, _ = convsqueeze.merge_state_dict(network.state_dict(), manifest)
    assert list(merged) == ["0.weight", "0.bias"]
    x = torch.randn(1, 4, 6, 6)
    norm.eps = 1e-3
    found = nn.functional.conv2d(x, merged["0.weight"], merged["0.bias"])
    assert torch.allclose(found, network(x), atol=1e-5)


def test_overflow_on_the_way_to_half_precision_is_refused_with_layer_and_value() -> None:
    network = pair().half()
    with torch.no_grad():
        network[0].weight.fill_(300.0)
        network[1].weight.fill_(300.0)
    with pytest.raises(TensorDataError, match=r"0\.weight would hold 3\.6e\+06 at \[0, 0, 0, 0\]"):
        convsqueeze.merge_state_dict(network.state_dict(), PAIR)


def test_the_given_state_dict_is_left_as_it_was() -> None:
    before = pair().state_dict()
    copied = {name: tensor.clone() for name, tensor in before.items()}
    convsqueeze.merge_state_dict(before, PAIR)
    assert list(before) == list(copied)
    assert all(torch.equal(before[name], copied[name]) for name in copied)


def test_a_manifest_may_be_a_path_or_data_and_policies_may_be_given(tmp_path: Path) -> None:
    path = tmp_path / "pairs.yaml"
    path.write_text("version: 1\npairs:\n- first: {name: '0', padding: 2}\n  second: {name: '1'}\n")
    state = pair(bias=True).state_dict()
    by_path, _ = convsqueeze.merge_state_dict(state, path)
    by_text, _ = convsqueeze.merge_state_dict(state, str(path))
    by_data, _ = convsqueeze.merge_state_dict(state, PAIR)
    loaded, _ = convsqueeze.merge_state_dict(state, convsqueeze.load_manifest(path))
    for other in (by_text, by_data, loaded):
        assert torch.equal(by_path["0.weight"], other["0.weight"])
    padded = {
        "version": 1,
        "pairs": [{"first": {"name": "0", "padding": 2}, "second": {"name": "1", "padding": 1}}],
    }
    with pytest.raises(PlanError, match="border: interior"):
        convsqueeze.merge_state_dict(state, padded)
    _, report = convsqueeze.merge_state_dict(state, padded, border="interior")
    assert report.plan.merges[0].border == "interior"


def test_apply_refuses_a_model_of_other_geometry(tmp_path: Path) -> None:
    network = pair()
    merged, _ = convsqueeze.merge_state_dict(network.state_dict(), PAIR)
    torch.save(merged, tmp_path / "squeezed.pt")
    other = nn.Sequential(nn.Conv2d(6, 40, 3, padding=1, bias=False), nn.Conv2d(40, 4, 1))
    with pytest.raises(ModelMismatchError, match=r"0: is Conv2d\(6, 40.*padding 2"):
        convsqueeze.apply(other, tmp_path / "squeezed.pt")


def test_a_named_weight_does_not_lose_the_layer_its_bias() -> None:
    state = pair().state_dict()
    manifest = {
        "version": 1,
        "pairs": [
            {
                "first": {"name": "0", "padding": 2},
                "second": {"name": "1", "weight": "1.weight"},
            }
        ],
    }
    merged, _ = convsqueeze.merge_state_dict(state, manifest)
    assert torch.equal(merged["0.bias"], state["1.bias"])


def test_weight_norm_over_everything_where_one_channel_leaves_nothing_else() -> None:
    torch.manual_seed(0)
    normed = parametrizations.weight_norm(nn.Conv2d(1, 4, 3, bias=False), dim=1)
    network = nn.Sequential(normed, nn.Conv2d(4, 2, 1))
    manifest = {"version": 1, "pairs": [{"first": {"name": "0"}, "second": {"name": "1"}}]}
    merged, report = convsqueeze.merge_state_dict(network.state_dict(), manifest)
    assert report.verification is not None
    assert report.verification.ok
    x = torch.randn(1, 1, 8, 8)
    found = nn.functional.conv2d(x, merged["0.weight"], merged["0.bias"])
    assert torch.allclose(found, network(x), atol=1e-5)


@pytest.mark.parametrize("shape", [(4,), (4, 3, 1, 1)])
def test_a_length_that_is_no_weight_norms_is_refused(shape: tuple[int, ...]) -> None:
    state = {
        "a.weight_g": torch.ones(shape),
        "a.weight_v": torch.randn(4, 3, 3, 3),
        "b.weight": torch.randn(2, 4, 1, 1),
    }
    manifest = {"version": 1, "pairs": [{"first": {"name": "a"}, "second": {"name": "b"}}]}
    with pytest.raises(PlanError, match=r"a\.weight_g of shape .* is no weight norm's length"):
        convsqueeze.merge_state_dict(state, manifest)


def test_underflow_on_the_way_to_half_precision_is_refused() -> None:
    network = pair().half()
    with torch.no_grad():
        network[0].weight.fill_(1e-5)
        network[1].weight.fill_(1e-4)
    with pytest.raises(TensorDataError, match=r"0\.weight would lose \d+% of output channel 0"):
        convsqueeze.merge_state_dict(network.state_dict(), PAIR)


def test_interior_with_a_small_fixed_input_still_sees_every_weight(tmp_path: Path) -> None:
    state = pair(bias=True).state_dict()
    entry = {"first": {"name": "0", "padding": 1}, "second": {"name": "1", "padding": 1}}
    manifest = {"version": 1, "pairs": [{**entry, "border": "interior", "input": [2, 2]}]}
    _, report = convsqueeze.merge_state_dict(state, manifest)
    assert report.verification is not None
    assert report.verification.layers[0].interior.place
    torch.save(state, tmp_path / "original.pt")
    source = tmp_path / "original.pt"
    (tmp_path / "pairs.yaml").write_text(
        "version: 1\npairs:\n- first: {name: '0', padding: 1}\n"
        "  second: {name: '1', padding: 1}\n  border: interior\n  input: [2, 2]\n"
    )
    done = convsqueeze.merge_file(source, tmp_path / "pairs.yaml")
    assert done.output is not None
    broken = torch.load(done.output, weights_only=True)
    broken["0.weight"].view(-1)[7] += 1e-3
    torch.save(broken, tmp_path / "broken.pt")
    assert convsqueeze.verify_files(source, done.output).ok
    assert not convsqueeze.verify_files(source, tmp_path / "broken.pt").ok


class Plain(nn.Module):
    """Two layers with something between them that only a run of the model can show."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=2, bias=False), nn.Conv2d(8, 8, 1)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.between(self.a(x)))
        return y


def squeezed_pair(network: nn.Module, path: Path) -> Path:
    pairs = [{"first": {"name": "a", "padding": 2}, "second": {"name": "b"}}]
    merged, _ = convsqueeze.merge_state_dict(network.state_dict(), {"version": 1, "pairs": pairs})
    torch.save(merged, path)
    return path


def test_an_example_shows_an_activation_between_the_layers(tmp_path: Path) -> None:
    example = torch.randn(1, 8, 9, 9)
    honest = Plain(torch.clone)
    path = squeezed_pair(honest, tmp_path / "squeezed.pt")
    assert isinstance(convsqueeze.apply(honest, path, example=example), Plain)
    with pytest.raises(ModelMismatchError, match=r"differs by .* on the example"):
        convsqueeze.apply(Plain(torch.relu), path, example=example)


def test_a_hook_on_a_merged_layer_is_not_lost_in_silence(tmp_path: Path) -> None:
    network = Plain(torch.clone)
    path = squeezed_pair(network, tmp_path / "squeezed.pt")
    network.a.register_forward_hook(lambda module, given, made: made.relu())
    with pytest.raises(ModelMismatchError, match="a: has a hook"):
        convsqueeze.apply(network, path)


@pytest.mark.parametrize(
    ("order", "told"),
    [
        (lambda a, b: [("a", a), ("between", nn.ReLU()), ("b", b)], "ReLU stands between"),
        (lambda a, b: [("b", b), ("a", a)], "in another order"),
    ],
)
def test_a_sequential_tells_order_and_what_stands_between(
    tmp_path: Path, order: Callable[[nn.Module, nn.Module], list[tuple[str, nn.Module]]], told: str
) -> None:
    plain = Plain(torch.clone)
    path = squeezed_pair(plain, tmp_path / "squeezed.pt")
    other = nn.Sequential()
    for name, module in order(plain.a, plain.b):
        other.add_module(name, module)
    with pytest.raises(ModelMismatchError, match=told):
        convsqueeze.apply(other, path)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_apply_copies_a_model_with_the_older_weight_norm(tmp_path: Path) -> None:
    network = weight_normed_0(pair())
    merged, _ = convsqueeze.merge_state_dict(network.state_dict(), PAIR)
    torch.save(merged, tmp_path / "squeezed.pt")
    network.eval()
    network[0].requires_grad_(False)
    network[1].requires_grad_(False)
    applied = convsqueeze.apply(network, tmp_path / "squeezed.pt")
    assert not applied[0].training
    assert not any(parameter.requires_grad for parameter in applied.parameters())


def test_a_placeholder_ends_where_the_layers_name_ends() -> None:
    state = {
        "body.0.weight": torch.randn(8, 4, 3, 3),
        "body.0.scale.weight": torch.rand(8),
        "body.1.conv.weight": torch.randn(8, 8, 3, 3),
        "body.1.scale.weight": torch.rand(8),
    }
    first, second = {"name": "body.{i}"}, {"name": "body.{i}.scale", "type": "scale"}
    manifest = {"version": 1, "pairs": [{"first": first, "second": second}]}
    merged, report = convsqueeze.merge_state_dict(state, manifest)
    assert list(merged) == ["body.0.weight", "body.1.conv.weight", "body.1.scale.weight"]
    assert any("body.1.scale matches in part" in note for note in report.notes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_channel_of_zeros_loses_nothing(dtype: torch.dtype) -> None:
    network = pair(bias=True).to(dtype)
    with torch.no_grad():
        network[1].weight[2] = 0.0
        network[1].bias[2] = 0.0
    merged, report = convsqueeze.merge_state_dict(network.state_dict(), PAIR)
    assert not merged["0.weight"][2].any()
    assert merged["0.weight"][1].any()
    assert merged["0.bias"][2] == 0
    assert report.verification is not None
    assert report.verification.ok


def test_what_a_file_stores_is_contiguous() -> None:
    torch.manual_seed(0)
    up = nn.Sequential(
        nn.ConvTranspose2d(6, 4, 3, stride=2, bias=False), nn.Conv2d(4, 2, 1, bias=False)
    )
    first = {"name": "0", "type": "conv_transpose", "stride": 2}
    manifest = {"version": 1, "pairs": [{"first": first, "second": {"name": "1"}}]}
    for network, told in ((up, manifest), (pair(bias=True), PAIR)):
        merged, _ = convsqueeze.merge_state_dict(network.state_dict(), told)
        assert all(tensor.is_contiguous() for tensor in merged.values())


def test_one_value_of_many_that_overflows_is_refused_with_its_place() -> None:
    network = pair().half()
    with torch.no_grad():
        network[0].weight.fill_(0.001)
        network[1].weight.fill_(0.001)
        network[0].weight[:, 5, 1, 2] = 300.0
        network[1].weight[3] = 300.0
    with pytest.raises(TensorDataError, match=r"0\.weight would hold 3\.6e\+06 at \[3, 5, 1, 2\]"):
        convsqueeze.merge_state_dict(network.state_dict(), PAIR)


@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "under model"])
def test_what_was_merged_in_memory_is_verified_in_files(tmp_path: Path, wrapped: bool) -> None:
    """The original's file holds the very tensors, which is all that a state dict has to be known
    by; another original is told.
    """
    state = pair().state_dict()
    merged, _ = convsqueeze.merge_state_dict(state, PAIR, growth="allow")
    for name, whole in (("a.pt", state), ("b.pt", merged)):
        torch.save({"model": whole} if wrapped else whole, tmp_path / name)
    assert convsqueeze.verify_files(tmp_path / "a.pt", tmp_path / "b.pt").ok
    renamed = dict(reversed(state.items()))
    torch.save({"model": renamed} if wrapped else renamed, tmp_path / "a.pt")
    report = convsqueeze.verify_files(tmp_path / "a.pt", tmp_path / "b.pt")
    assert "a.pt: is not the file that was squeezed (<state dict>, sha256" in report.problems[0]
