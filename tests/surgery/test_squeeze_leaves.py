"""What `squeeze` leaves as it is: the given model, layers that make no merge, what is set then."""

import threading
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import convsqueeze
from convsqueeze.models import inputs_of, verify_whole
from tests.scan.code import image, largest_share, made
from tests.scan.small_models import Two, assert_equal_outputs, chain

X = image(2, 3, 5, 6)
Snapshot = dict[str, Any]


# What is left untouched


class Watched(nn.Module):
    """Layers to merge beside hooks, a norm in training mode, tied and frozen weights, gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.act = chain(), nn.ReLU()
        self.norm = nn.BatchNorm2d(2)
        self.one, self.other = nn.Linear(2, 2), nn.Linear(2, 2)
        self.other.weight = self.one.weight
        self.register_buffer("table", torch.ones(2, 1, 1), persistent=False)
        self.calls: list[str] = []
        self.note = {"seen": 0}

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.norm(self.body(x))) + self.table
        z: Tensor = self.other(self.one(y.mean((2, 3))).relu())
        return z


def watched(heard: list[str]) -> Watched:
    model = made(Watched)
    model.norm.train()
    model.body[2].bias.requires_grad_(False)
    model.act.register_forward_hook(lambda module, given, y: heard.append("act"))
    model.register_forward_pre_hook(lambda module, given: heard.append("model"))
    model.one.register_full_backward_hook(lambda module, given, y: heard.append("backward"))
    model(X).sum().backward()
    return model


def snapshot(model: nn.Module) -> Snapshot:
    """All that a model is: tensors by identity and by value, flags, hooks, attributes."""
    found: Snapshot = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        found[f"{name}, bits"] = tensor.detach().clone().numpy().tobytes()
        found[f"{name}, itself"] = (id(tensor), tensor.data_ptr(), tensor._version)
        found[f"{name}, gradient"] = (tensor.requires_grad, tensor.is_leaf, id(tensor.grad))
        if tensor.grad is not None:
            found[f"{name}, gradient's bits"] = tensor.grad.clone().numpy().tobytes()
    for name, module in model.named_modules():
        found[f"{name}, attributes"] = {key: id(value) for key, value in vars(module).items()}
        found[f"{name}, training"] = module.training
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        found[f"{name}, hooks"] = [list(held.items()) for held in hooks]
        found[f"{name}, children"] = [id(child) for child in module.children()]
    return found


def test_the_given_model_is_untouched() -> None:
    heard: list[str] = []
    model = watched(heard)
    before = snapshot(model)
    result, report = convsqueeze.squeeze(model, X)
    assert snapshot(model) == before
    assert report.merged is not None
    for one in (model, result):
        heard.clear()
        one(X).sum().backward()
        assert heard == ["model", "act", "backward"]


@pytest.mark.stress
@pytest.mark.parametrize("step", ["squeeze_checkpoint", "verify_whole"])
def test_the_given_model_is_untouched_where_squeezing_fails(
    step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, module = watched([]), import_module("convsqueeze.models.squeeze")
    before, work = snapshot(model), getattr(module, step)

    def failing(*given: Any, **named: Any) -> Any:
        work(*given, **named)
        raise OSError("planted")

    with monkeypatch.context() as planted:
        planted.setattr(module, step, failing)
        with torch.device("meta"):
            with pytest.raises(OSError, match="planted"):
                convsqueeze.squeeze(model, X)
            assert torch.empty(()).is_meta
    assert snapshot(model) == before
    done = threading.Thread(target=convsqueeze.squeeze, args=(made(chain), X))
    done.start()
    done.join(60)
    assert not done.is_alive()


def test_a_changed_model_is_seen() -> None:
    """The snapshot sees what it is there for."""
    changes: list[Callable[[Watched], Any]] = [
        lambda model: model.body[0].weight.data.add_(1),
        lambda model: model.norm.num_batches_tracked.add_(1),
        lambda model: model.eval(),
        lambda model: model.act.register_forward_hook(print),
        lambda model: setattr(model, "last", None),
        lambda model: setattr(model.one, "weight", nn.Parameter(model.one.weight.data)),
        lambda model: model.zero_grad(),
        lambda model: model.body[2].requires_grad_(),
    ]
    for change in changes:
        model = watched([])
        before = snapshot(model)
        change(model)
        assert snapshot(model) != before


# What is left alone


def test_in_training_mode_norms_are_left_alone_and_that_is_said() -> None:
    model = made(chain).train()
    before = snapshot(model)
    result, report = convsqueeze.squeeze(model, X)
    assert snapshot(model) == before
    assert report.merged is None
    assert {one.reason.kind for one in report.left} == {"training", "activation"}
    assert "in training mode" in next(one.reason.text for one in report.left)
    assert all(module.training for module in result.modules())
    for name, tensor in model.state_dict().items():
        assert tensor.equal(result.state_dict()[name])


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def parametrized(model: nn.Sequential) -> None:
    nn.utils.parametrize.register_parametrization(model[0], "weight", Doubled())


def pointwise() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 16), nn.Linear(16, 2), nn.ReLU(), nn.Linear(2, 5))


def dynamically_quantized() -> nn.Module:
    kinds, dtype = {"3"}, torch.qint8
    return torch.ao.quantization.quantize_dynamic(made(pointwise), kinds, dtype=dtype)


def quantized() -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still met
        return torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)


def with_buffer(make: Callable[[], Tensor]) -> Callable[[nn.Module], None]:
    return lambda model: model.register_buffer("beside", make())


@pytest.mark.stress
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize(
    ("edit", "weights_after"),
    [
        (parametrized, 68),
        (lambda model: parametrizations.weight_norm(model[0]), 112),
        (lambda model: parametrizations.spectral_norm(model[0]), 68),
        (lambda model: prune.l1_unstructured(model[0], "weight", 0.5), 68),
        (with_buffer(lambda: torch.ones(0)), 112),
        (with_buffer(lambda: torch.ones(3).to(torch.float8_e4m3fn)), 112),
        (with_buffer(quantized), 112),
    ],
)
def test_layers_of_unusual_tensors_are_left_alone_or_merged_right(
    edit: Callable[[nn.Sequential], Any], weights_after: int
) -> None:
    model = made(chain)
    edit(model)
    result, report = convsqueeze.squeeze(model, X)
    assert report.weights_after == weights_after
    assert largest_share(model, result, [X]) < 1e-6
    kinds = [
        {name: buffer.dtype for name, buffer in one.named_buffers() if name == "beside"}
        for one in (model, result)
    ]
    assert kinds[0] == kinds[1]


class Spectral(Two):
    """A complex factor for every frequency, both parts of which count."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.full((4,), 1 + 2j))

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(self.merged(x)) * self.factor, n=6)


def test_both_parts_of_complex_numbers_are_compared() -> None:
    model = Spectral().eval()
    result, report = convsqueeze.squeeze(model, X)
    assert report.weights_after == 12
    assert result.factor.dtype == torch.complex64
    assert_equal_outputs(model, result, X)
    result.factor.data.imag += 1e-3
    assert not verify_whole(model, result, inputs_of(X)).ok


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
def test_a_quantized_layer_stays_as_it_is() -> None:
    model, x = dynamically_quantized(), image(2, 3)
    result, report = convsqueeze.squeeze(model, x)
    assert report.weights_after == 8
    assert type(result[3]) is type(model[3])
    assert largest_share(model, result, [x]) < 1e-5


@pytest.mark.parametrize(
    ("build", "shape", "words"),
    [
        (lambda: pointwise().to(torch.complex64), (2, 3), "stored as torch.complex64"),
        (lambda: pointwise().to(torch.float8_e4m3fn), (2, 3), "stored as float8_e4m3fn"),
        (lambda: nn.Sequential(nn.Linear(6, 0), nn.Linear(0, 5)), (2, 6), "has no channels"),
        (lambda: nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 0)), (2, 6), "has no channels"),
        (lambda: nn.Sequential(nn.Linear(0, 8), nn.Linear(8, 3)), (2, 0), "has no channels"),
    ],
)
@pytest.mark.filterwarnings(
    "ignore:Initializing zero-element tensors", "ignore:Complex modules are a new feature"
)
def test_layers_whose_tensors_make_no_merge_are_left_alone(
    build: Callable[[], nn.Module], shape: tuple[int, ...], words: str
) -> None:
    model = build().eval()
    result, report = convsqueeze.squeeze(model, image(*shape))
    assert report.merged is None
    assert any(words in one.reason.text for one in report.left)
    assert list(result.state_dict()) == list(model.state_dict())


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyConv2d(8, 1), nn.Conv2d(8, 2, 1))


def partly_meta() -> nn.Module:
    model = chain()
    model[4].to("meta")
    return model


def not_finite(value: float) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model = chain()
        model[2].weight.data[1, 2] = value
        return model

    return build


def with_lock() -> nn.Module:
    model = chain()
    model.lock = threading.Lock()
    return model


@pytest.mark.stress
@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lazy, "0.weight has no shape yet"),
        (lambda: chain().to("meta"), "0.weight lies on the meta device"),
        (partly_meta, "4.weight lies on the meta device"),
        (not_finite(torch.nan), r"2.weight: holds nan at \[1, 2, 0, 0\]"),
        (not_finite(torch.inf), r"2.weight: holds inf at \[1, 2, 0, 0\]"),
        (with_lock, "Sequential: cannot be copied .TypeError: cannot pickle '_thread.lock'"),
    ],
)
def test_a_model_without_usable_values_is_refused(
    build: Callable[[], nn.Module], words: str
) -> None:
    with pytest.raises(convsqueeze.ConvsqueezeError, match=words):
        convsqueeze.squeeze(build().eval(), X)


@pytest.mark.parametrize(
    "layers", [(nn.ReLU(),), (nn.AvgPool2d(2), nn.AvgPool2d(2)), (nn.ZeroPad2d(1), nn.Identity())]
)
def test_a_model_without_tensors_is_copied(layers: tuple[nn.Module, ...]) -> None:
    model = nn.Sequential(*layers)
    squeezed, report = convsqueeze.squeeze(model, image(2, 3, 8, 8))
    assert report.merged is None
    assert squeezed is not model
    assert repr(squeezed) == repr(model)
    assert torch.equal(squeezed(image(2, 3, 8, 8)), model(image(2, 3, 8, 8)))


def test_values_that_are_not_finite_beside_a_merge_stay() -> None:
    model = made(chain)
    model[4].weight.data[0, 0] = torch.nan
    result, report = convsqueeze.squeeze(model, X)
    assert report.weights_after == 112
    with torch.no_grad():
        wanted, found = model(X), result(X)
    torch.testing.assert_close(found, wanted, equal_nan=True)
    assert found[:, 0].isnan().all()
    assert found[:, 1].isfinite().all()


# Where it is called


CONTEXTS = (torch.inference_mode, torch.no_grad, lambda: torch.device("meta"))


@pytest.mark.stress
def test_what_is_set_around_it_does_not_matter() -> None:
    model = made(chain)
    wanted, _ = convsqueeze.squeeze(model, X)
    for context in CONTEXTS:
        with context():
            result, _ = convsqueeze.squeeze(model, X)
        for name, tensor in wanted.named_parameters():
            found = result.get_parameter(name)
            assert found.equal(tensor)
            assert found.requires_grad
        y = result(X)
        assert y.requires_grad
        assert y.equal(wanted(X))
