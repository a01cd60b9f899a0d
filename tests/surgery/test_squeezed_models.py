"""A squeezed model is a model like any other: copies, files, modes, gradients, tracing."""

import copy
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import convsqueeze
from tests.scan.code import Code, image, largest_share, made
from tests.scan.small_models import (
    EXACT,
    SMALL,
    Small,
    assert_same_bits,
    bits,
    chain,
    layers,
    models,
    run,
    squeezed,
)

# Copies and files


@models
def test_copies_and_pickles_give_the_same_bits(small: Small) -> None:
    found = squeezed(small)
    wanted = run(found.model, found.example)
    for again in (copy.deepcopy(found.model), pickle.loads(pickle.dumps(found.model))):
        assert_same_bits(bits(again), bits(found.model))
        assert run(again, found.example).equal(wanted)
        own = {tensor.data_ptr() for tensor in again.parameters()}
        assert not own & {tensor.data_ptr() for tensor in found.model.parameters()}


LOAD = """
import sys
import torch
sys.path.insert(0, sys.argv[2])
for model, x, wanted in torch.load(sys.argv[1], weights_only=False):
    with torch.no_grad():
        assert model(x).equal(wanted)
    print(type(model).__name__)
"""


@pytest.mark.stress
def test_a_saved_model_is_loaded_by_another_process(tmp_path: Path) -> None:
    every = [squeezed(small) for small in SMALL]
    saved = [(one.model, one.example, run(one.model, one.example)) for one in every]
    torch.save(saved, tmp_path / "models.pt")
    done = subprocess.run(
        [sys.executable, "-c", LOAD, tmp_path / "models.pt", Path(__file__).parent.parent],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.split() == [type(one.model).__name__ for one in every]


@models
def test_a_state_dict_goes_into_another_squeezed_model(small: Small) -> None:
    found, other = squeezed(small), copy.deepcopy(squeezed(small).model)
    for parameter in other.parameters():
        parameter.data.add_(1)
    assert not run(other, found.example).equal(run(found.model, found.example))
    other.load_state_dict(found.model.state_dict(), strict=True)
    assert run(other, found.example).equal(run(found.model, found.example))
    with pytest.raises(RuntimeError, match="Unexpected key"):
        other.load_state_dict(found.original.state_dict(), strict=True)


@models
def test_a_model_goes_to_another_dtype_and_device_and_back(small: Small) -> None:
    found = squeezed(small)
    wide = copy.deepcopy(found.model).to(torch.float64)
    y = run(wide, found.example.double())
    assert y.dtype == torch.float64
    torch.testing.assert_close(y.float(), run(found.model, found.example), rtol=1e-5, atol=1e-4)
    assert_same_bits(bits(wide.to(torch.float32)), bits(found.model))
    empty = copy.deepcopy(found.model).to("meta")
    assert run(empty, found.example.to("meta")).shape == y.shape
    empty.to_empty(device="cpu").load_state_dict(found.model.state_dict())
    assert run(empty, found.example).equal(run(found.model, found.example))


# Modules and modes


@models
def test_modules_keep_their_names_parameters_and_modes(small: Small) -> None:
    found = squeezed(small)
    before = dict(found.original.named_modules())
    for name, module in found.model.named_modules():
        inside = any(name.startswith(f"{layer}.") for layer in small.merged)
        assert name in before or inside
        assert not module.training
    for name, tensor in found.model.state_dict(keep_vars=True).items():
        assert isinstance(tensor, nn.Parameter), name
        assert tensor.is_leaf
        assert tensor.requires_grad
    assert not dict(found.model.named_buffers())
    state = found.original.state_dict(keep_vars=True)
    held = {tensor.data_ptr() for tensor in state.values()}
    assert not held & {tensor.data_ptr() for tensor in found.model.parameters()}


def test_each_module_is_in_the_mode_of_the_one_that_it_replaces() -> None:
    model = made(lambda: nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 3, 1), nn.Dropout()))
    model.train()
    model[0].eval()
    result, _ = convsqueeze.squeeze(model, image(1, 3, 4, 4))
    assert layers(result) == ("0",)
    flags = [module.training for module in model.modules()]
    assert flags == [True, False, True, True] == [one.training for one in result.modules()]


def test_a_merged_layer_is_trained_if_one_of_its_layers_is() -> None:
    for frozen, trained in ((("0.weight", "1"), True), (("0", "1", "2"), False)):
        model = made(chain)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.startswith(frozen))
        result, _ = convsqueeze.squeeze(model, image(1, 3, 5, 5))
        flags = {name: parameter.requires_grad for name, parameter in result.named_parameters()}
        assert flags == {
            **dict.fromkeys(("0.weight", "0.bias"), trained),
            **dict.fromkeys(("4.weight", "4.bias"), True),
        }


def test_buffers_stay_as_persistent_as_they_were() -> None:
    def build() -> nn.Module:
        return Code(
            lambda self, x: self.norm(torch.relu(self.b(self.a(x)))) + self.table + self.shift,
            **{"a": nn.Conv2d(3, 16, 1), "b": nn.Conv2d(16, 3, 1), "norm": nn.BatchNorm2d(3)},
        )

    model = made(build)
    model.register_buffer("table", torch.ones(3, 1, 1))
    model.register_buffer("shift", torch.ones(3, 1, 1), persistent=False)
    model.norm.num_batches_tracked.fill_(7)
    result, _ = convsqueeze.squeeze(model, image(1, 3, 4, 4))
    assert layers(result) == ("a",)
    assert list(dict(result.named_buffers())) == list(dict(model.named_buffers()))
    assert "shift" not in result.state_dict()
    assert result.norm.num_batches_tracked == 7


@models
def test_train_and_eval_give_the_same_as_merged_norms_are_constant(small: Small) -> None:
    """None of these has dropout or a norm that was not merged."""
    found = squeezed(small)
    model, state = copy.deepcopy(found.model), bits(found.model)
    wanted = run(found.model, found.example)
    assert run(model.train(), found.example).equal(wanted)
    assert all(module.training for module in model.modules())
    assert run(model.eval(), found.example).equal(wanted)
    assert_same_bits(bits(model), state)


def test_dropout_between_merged_layers_drops_their_result_in_training_mode() -> None:
    model = made(lambda: nn.Sequential(nn.Conv2d(3, 16, 1), nn.Dropout(0.5), nn.Conv2d(16, 3, 1)))
    x = image(2, 3, 8, 8)
    result, _ = convsqueeze.squeeze(model, x)
    y = run(result, x)
    assert largest_share(model, result, [x]) < 1e-6
    dropped = run(result.train(), x)
    kept = dropped != 0
    assert 0.3 < kept.float().mean() < 0.7
    torch.testing.assert_close(dropped[kept], 2 * y[kept])
    assert run(result.eval(), x).equal(y)


# Gradients


@models
def test_gradients_to_the_input_are_those_of_the_original(small: Small) -> None:
    found = squeezed(small, torch.float64)
    gradients = []
    for model in (found.original, copy.deepcopy(found.model)):
        x = found.example.clone().requires_grad_()
        y = model(x)
        wanted = image(*y.shape, seed=5).double()
        gradients.append(torch.autograd.grad(y, x, wanted)[0])
    largest = gradients[0].abs().max()
    assert largest > 0
    assert (gradients[0] - gradients[1]).abs().max() <= EXACT * largest


@models
def test_an_optimizer_trains_every_parameter(small: Small) -> None:
    model, x = copy.deepcopy(squeezed(small).model), squeezed(small).example
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    model.train()(x).square().mean().backward()
    before = bits(model)
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
    optimizer.step()
    assert all(not tensor.equal(before[name]) for name, tensor in model.state_dict().items())
    model.requires_grad_(False)
    assert not model(x).requires_grad


# Tracing


def jit(model: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it tells of every size that it makes a constant
        return torch.jit.trace(model, x)


def exported(model: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    return torch.export.export(model, (x,)).module()


@models
@pytest.mark.parametrize("trace", [jit, exported])
def test_a_squeezed_model_is_traced(
    small: Small, trace: Callable[[nn.Module, Tensor], Callable[[Tensor], Tensor]]
) -> None:
    found = squeezed(small)
    wanted = run(found.model, found.example)
    made_of_it = trace(copy.deepcopy(found.model), found.example)
    with torch.no_grad():
        assert made_of_it(found.example).equal(wanted)
