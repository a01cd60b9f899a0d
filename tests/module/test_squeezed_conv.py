"""`SqueezedConv` with corrections as a module: gradients, dtypes, copies, graphs, sizes, models."""

import copy
import io
import os
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export

import convsqueeze
from convsqueeze.algebra import Axis, Geometry
from convsqueeze.checkpoint import from_state_dict
from convsqueeze.errors import GeometryError, ModelMismatchError
from convsqueeze.manifest import manifest_from_data
from convsqueeze.module import SqueezedConv, module_of
from convsqueeze.module.border import MOST_KEPT
from convsqueeze.plan import Merge, make_plan
from convsqueeze.recipe import RecipeLayer
from convsqueeze.squeezing import recipe_layer, squeeze_one
from convsqueeze.verify.reference import reference
from tests.border_checkpoint import CORRECTED, border_state_dict, manifest_of

IMAGES = {
    "twice": (2, 2, 7, 6),
    "constant": (2, 2, 5, 6),
    "strided": (2, 1, 10, 6),  # the only class of sizes that needs every tensor
    "dilated": (2, 1, 9, 7),
    "mirrored": (2, 2, 9),
    "around": (2, 2, 7, 5),
    "three": (2, 2, 9),
    "depthwise": (2, 2, 6, 7),
    "branches": (2, 2, 6, 7),
    "line": (2, 2, 9),
    "volume": (1, 1, 4, 5, 3),
    "up": (2, 2, 7),
}
SOME = ("twice", "constant", "strided", "mirrored", "up")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}


@cache
def planned(
    name: str, dtype: torch.dtype, size: tuple[int, ...] | None = None
) -> tuple[Merge, Callable[[str], Tensor]]:
    manifest = manifest_of(name)
    if size is not None:
        manifest["pairs"][0]["input"] = list(size)
    checkpoint = from_state_dict(border_state_dict(dtype, (name,)))
    (merge,) = make_plan(manifest_from_data(manifest), checkpoint, growth="allow").merges
    return merge, checkpoint.load


def squeezed(
    name: str, dtype: torch.dtype = torch.float32, size: tuple[int, ...] | None = None
) -> SqueezedConv:
    merge, load = planned(name, dtype, size)
    return module_of(recipe_layer(merge), squeeze_one(merge, load).tensors())


def original(name: str, dtype: torch.dtype = torch.float32) -> Callable[[Tensor], Tensor]:
    """The layers before merging, in float64, by torch's own operators."""
    merge, load = planned(name, dtype)
    return reference(merge.tree, load)


def image(name: str, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(IMAGES[name], generator=generator, dtype=torch.float64).to(dtype)


def assert_close(found: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    assert found.shape == wanted.shape
    error = (found.double() - wanted.double()).abs().max()
    assert error <= tolerance * wanted.double().abs().max(), error


# Values, gradients and dtypes.


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", CORRECTED)
def test_it_gives_what_the_layers_give(name: str, dtype: torch.dtype) -> None:
    x = image(name, dtype)
    found = squeezed(name, dtype)(x)
    assert found.dtype == dtype
    assert_close(found, original(name, dtype)(x.double()), TOLERANCE[dtype])


@pytest.mark.parametrize("name", CORRECTED)
def test_without_corrections_it_would_be_wrong(name: str) -> None:
    """The images show the border."""
    module, x = squeezed(name), image(name)
    bare = module.layer.model_copy(update={"corrections": None})
    plain = SqueezedConv(bare, module.weight.detach(), module.bias)
    assert (plain(x) - module(x)).abs().max() > 0.05


@pytest.mark.parametrize("name", CORRECTED)
def test_gradients(name: str) -> None:
    """Of the input they are the original layers'; every number that is stored has one."""
    module, x = squeezed(name, torch.float64), image(name, torch.float64)[:1]
    names = [key for key, _ in module.named_parameters()]

    def run(given: Tensor, *values: Tensor) -> Tensor:
        found = dict(zip(names, values, strict=True))
        return torch.func.functional_call(module, found, (given,))  # type: ignore[no-any-return]

    inputs = (x.requires_grad_(), *module.parameters())
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
    there = torch.randn_like(module(x))
    (wanted,) = torch.autograd.grad(original(name, torch.float64)(x), x, there)
    found, *others = torch.autograd.grad(module(x), inputs, there)
    assert_close(found, wanted, 1e-12)
    for key, gradient in zip(names, others, strict=True):
        assert (gradient != 0).any(), key


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtype_is_converted_as_a_whole(name: str, dtype: torch.dtype) -> None:
    module = squeezed(name).to(dtype)
    assert {parameter.dtype for parameter in module.parameters()} == {dtype}
    x = image(name, dtype)
    assert_close(module(x), squeezed(name).double()(x.double()), TOLERANCE[dtype])
    assert_close(module.float()(x.float()), squeezed(name)(x.float()), TOLERANCE[dtype])


def test_one_step_of_training_changes_every_tensor() -> None:
    module = squeezed("twice")
    before = copy.deepcopy(module.state_dict())
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    module(image("twice")).square().sum().backward()
    optimizer.step()
    assert all(not torch.equal(before[key], value) for key, value in module.state_dict().items())


# State and copies.


@pytest.mark.parametrize("name", CORRECTED)
def test_state_dict_holds_what_is_stored_and_nothing_else(name: str) -> None:
    merge, load = planned(name, torch.float32)
    stored = squeeze_one(merge, load).tensors()
    module = squeezed(name)
    state = module.state_dict()
    assert {f"{name}.{key}" for key in state} == set(stored)
    assert all(torch.equal(value, stored[f"{name}.{key}"]) for key, value in state.items())
    assert module.border is not None
    other = squeezed(name)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert (other(image(name)) == 0).all()
    other.load_state_dict(state)
    assert torch.equal(other(image(name)), module(image(name)))


def saved_and_loaded(module: nn.Module) -> Any:
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES: dict[str, Callable[[nn.Module], Any]] = {
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "deepcopy": copy.deepcopy,
    "torch.save": saved_and_loaded,
}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("name", SOME)
def test_copies_are_whole(name: str, way: str) -> None:
    module, x = squeezed(name), image(name)
    other = COPIES[way](module)
    assert torch.equal(other(x), module(x))
    with torch.no_grad():
        other.border.get_parameter(next(key for key, _ in other.border.named_parameters())).zero_()
    assert not torch.equal(other(x), module(x))  # and share nothing


@pytest.mark.parametrize("name", CORRECTED)
def test_on_the_meta_device(name: str) -> None:
    module, x = squeezed(name), image(name)
    found = copy.deepcopy(module).to("meta")(x.to("meta"))
    assert (found.device.type, found.shape) == ("meta", module(x).shape)


@pytest.mark.parametrize("name", ["twice", "strided", "three"])
@pytest.mark.parametrize("way", ["to_empty", "assign"])
def test_back_from_the_meta_device(name: str, way: str) -> None:
    module, x = squeezed(name), image(name)
    other = copy.deepcopy(module).to("meta")
    if way == "to_empty":
        other = other.to_empty(device="cpu")
        with torch.no_grad():
            for buffer in other.buffers():
                buffer.zero_()  # what memory holds is chance
    other.load_state_dict(module.state_dict(), assign=way == "assign")
    assert torch.equal(other(x), module(x))


# Inputs.


@pytest.mark.parametrize("name", CORRECTED)
def test_no_images_and_one_image_without_a_batch(name: str) -> None:
    """As torch's own convolutions take them."""
    module, x = squeezed(name), image(name)
    y = module(x)
    assert module(x[:0]).shape == (0, *y.shape[1:])
    assert_close(module(x[0]), y[0], 1e-6)


@pytest.mark.parametrize("name", ["twice", "strided", "depthwise", "around", "branches"])
def test_channels_last(name: str) -> None:
    module, x = squeezed(name), image(name)
    turned = module(x.to(memory_format=torch.channels_last))
    assert_close(turned, module(x), 1e-6)
    assert turned.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", CORRECTED)
def test_input_is_left_as_it_was(name: str) -> None:
    x = image(name)
    squeezed(name)(x)
    assert torch.equal(x, image(name))


@pytest.mark.parametrize(
    ("name", "size", "others"),
    [
        ("strided", (8, 9), [(7, 9), (8, 8), (9, 8)]),
        ("strided", (1, 1), [(2, 1), (1, 3)]),
        ("mirrored", None, [(1,)]),
    ],
)
def test_sizes_that_are_not_corrected(name: str, size: Any, others: list[tuple[int, ...]]) -> None:
    module = squeezed(name, size=size)
    for other in others:
        x = torch.randn(1, module.geometry.in_channels, *other)
        with pytest.raises(GeometryError, match=r"corrected for inputs of \d+ .*, not for \d"):
            module(x)


def test_sizes_like_the_fixed_one() -> None:
    """What meets the border as the fixed size does is right as well."""
    module = squeezed("strided", size=(8, 9))
    for size in ((8, 9), (12, 5), (4, 1), (64, 101)):
        x = torch.randn(1, 1, *size)
        assert_close(module(x), original("strided")(x.double()))


@pytest.mark.parametrize(("name", "size"), [("dilated", (1, 1)), ("twice", (0, 4))])
def test_sizes_that_no_layer_takes(name: str, size: tuple[int, ...]) -> None:
    """Below a kernel without padding torch refuses before the corrections are asked."""
    with pytest.raises((GeometryError, RuntimeError), match=r"[Kk]ernel size|corrected for"):
        squeezed(name)(torch.randn(1, IMAGES[name][1], *size))


def test_one_sample_has_nothing_to_reflect() -> None:
    layers = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1, padding_mode="reflect"), nn.Conv2d(8, 2, 1)
    )
    module, _ = convsqueeze.squeeze(layers, torch.randn(1, 2, 5, 5))
    assert_close(module(x := torch.randn(1, 2, 2, 5)), layers(x))
    with pytest.raises(GeometryError, match="needs 2 samples on an axis, not 1"):
        module(torch.randn(1, 2, 1, 5))


# What it is made of.


def without(name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


WRONG_TENSORS: dict[str, tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], str]] = {
    "none": (lambda tensors: {}, r"twice\.border\.0\.bias is missing, shape \(2, 2, 1\)"),
    "one missing": (without("01.bias"), r"twice\.border\.01\.bias is missing"),
    "one too many": (
        lambda tensors: {**tensors, "2.weight": tensors["0.weight"]},
        r"twice\.border\.2\.weight is none of the tensors",
    ),
    "exchanged": (
        lambda tensors: {**tensors, "0.weight": tensors["1.weight"]},
        r"twice\.border\.0\.weight has shape \(2, 2, 5, 2\), \(2, 2, 2, 5\)",
    ),
}


@pytest.mark.parametrize("wrong", WRONG_TENSORS)
def test_wrong_correction_tensors(wrong: str) -> None:
    module = squeezed("twice")
    change, told = WRONG_TENSORS[wrong]
    with pytest.raises(GeometryError, match=told):
        SqueezedConv(module.layer, module.weight, module.bias, change(module.border_tensors()))


def test_correction_biases_need_a_bias() -> None:
    module = squeezed("twice")
    tensors = module.border_tensors()
    with pytest.raises(GeometryError, match=r"0\.bias is none of the tensors"):
        SqueezedConv(module.layer, module.weight, None, tensors)
    weights = {key: value for key, value in tensors.items() if key.endswith("weight")}
    linear = SqueezedConv(module.layer, module.weight, None, weights)
    x = image("twice")
    assert_close(linear(x), module(x) - module(torch.zeros_like(x)))


def test_correction_tensors_of_a_layer_that_has_no_corrections() -> None:
    merge, load = planned("plain", torch.float32)
    stored = squeeze_one(merge, load).stored
    with pytest.raises(GeometryError, match="plain has no corrections"):
        SqueezedConv.of(recipe_layer(merge), {**stored, "border.0.bias": torch.zeros(2, 2)})


# Graphs and transforms.


@pytest.mark.stress
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", ["twice", "strided", "volume"])
def test_export_of_one_size(name: str, strict: bool) -> None:
    module, x = squeezed(name).eval(), image(name)
    program = export(module, (x,), strict=strict).module()
    assert_close(program(x), module(x), 1e-6)


def any_size(least: int, axes: int) -> dict[int, Any]:
    return {2 + axis: Dim(f"n{axis}", min=least) for axis in range(axes)}


STEPS = {2: 4 * Dim("h", min=2, max=64), 3: 4 * Dim("w", min=2, max=64)}
DYNAMIC: dict[str, tuple[dict[int, Any], tuple[int, ...], list[tuple[int, ...]]]] = {
    "twice": ({0: Dim("n"), **any_size(2, 2)}, (2, 2, 7, 6), [(5, 2, 2, 3), (1, 2, 9, 40)]),
    "constant": (any_size(2, 2), (2, 2, 7, 6), [(2, 2, 2, 3), (2, 2, 9, 40)]),
    "mirrored": (any_size(4, 1), (2, 2, 9), [(2, 2, 4), (2, 2, 40)]),
    "up": (any_size(2, 1), (2, 2, 9), [(2, 2, 2), (2, 2, 40)]),
    "strided": (STEPS, (1, 1, 12, 8), [(1, 1, 8, 8), (1, 1, 64, 16)]),
}


@pytest.mark.stress
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", DYNAMIC)
def test_export_of_any_size(name: str, strict: bool) -> None:
    """Of a class: with strides the sizes of one rest."""
    dims, given, others = DYNAMIC[name]
    module = squeezed(name).eval()
    exported = export(module, (torch.randn(given),), dynamic_shapes=(dims,), strict=strict)
    program = exported.module()
    for shape in (given, *others):
        x = torch.randn(shape)
        assert_close(program(x), module(x), 1e-6)
        assert_close(program(x), original(name)(x.double()))


BACKENDS = ["aot_eager", *(["inductor"] if os.environ.get("CONVSQUEEZE_INDUCTOR") else [])]
"""Inductor takes minutes, so that it runs where it is asked for."""


@pytest.mark.stress
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["twice", "strided", "up"])
def test_compiled_as_one_graph(name: str, backend: str) -> None:
    torch._dynamo.reset()
    module, x = squeezed(name), image(name)
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    assert_close(compiled(x), module(x), 1e-5)
    compiled(x).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


@pytest.mark.parametrize("name", CORRECTED)
def test_vmap_over_images_and_over_batches(name: str) -> None:
    module, x = squeezed(name), image(name)
    assert_close(torch.func.vmap(module)(x), module(x), 1e-6)
    both = torch.func.vmap(module)(torch.stack([x, 2 * x]))
    assert_close(both[1], module(2 * x), 1e-6)


def test_vmap_over_weights() -> None:
    """An ensemble: every parameter stacked, one input."""
    module, x = squeezed("twice"), image("twice")
    stacked = {key: torch.stack([p, 2 * p]) for key, p in module.named_parameters()}
    run = torch.func.vmap(lambda weights: torch.func.functional_call(module, weights, (x,)))
    assert_close(run(stacked)[1], 2 * module(x), 1e-6)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", SOME)
def test_trace(name: str) -> None:
    """For the size that it was traced with."""
    module, x = squeezed(name).eval(), image(name)
    assert_close(torch.jit.trace(module, x)(2 * x), module(2 * x), 1e-6)


# In a model.

PAIRS: dict[str, Any] = {
    "version": 1,
    "border": "corrected",
    "pairs": [
        {"first": {"name": "0", "padding": 1}, "second": {"name": "1", "padding": 1}},
        {"first": {"name": "3"}, "second": {"name": "4", "padding": 1}},
    ],
}


def network(dtype: torch.dtype) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1),
        nn.Conv2d(3, 2, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(2, 4, 1),
        nn.Conv2d(4, 2, 3, padding=1),
    ).to(dtype)


def squeezed_network(model: nn.Module, path: Path) -> Path:
    merged, _ = convsqueeze.merge_state_dict(model.state_dict(), PAIRS, growth="allow")
    torch.save(merged, path)
    return path


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_apply(tmp_path: Path, dtype: torch.dtype, training: bool) -> None:
    model = network(dtype).train(training)
    path = squeezed_network(model, tmp_path / "squeezed.pt")
    applied = convsqueeze.apply(model, path)
    x = torch.randn(2, 2, 5, 6, dtype=dtype)
    assert_close(applied(x), model(x), TOLERANCE[dtype])
    assert [type(layer).__name__ for layer in applied] == [  # type: ignore[attr-defined]
        "SqueezedConv", "Identity", "ReLU", "SqueezedConv", "Identity",
    ]  # fmt: skip
    for layer in applied.modules():
        assert layer.training == training or isinstance(layer, nn.Identity)
    assert {parameter.dtype for parameter in applied.parameters()} == {dtype}
    assert set(applied.state_dict()) == set(torch.load(path, weights_only=True))


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
    ],
)
def test_apply_with_an_example(tmp_path: Path, dtype: torch.dtype) -> None:
    model = network(dtype)
    path = squeezed_network(model, tmp_path / "squeezed.pt")
    example = torch.randn(1, 2, 5, 6, generator=torch.Generator().manual_seed(0))
    convsqueeze.apply(model, path, example=example)


def test_apply_to_a_layer_with_a_forward_of_its_own(tmp_path: Path) -> None:
    model = network(torch.float32)
    path = squeezed_network(model, tmp_path / "squeezed.pt")
    layer = model[3]
    layer.forward = lambda x: nn.functional.relu(type(layer).forward(layer, x))
    with pytest.raises(ModelMismatchError, match="3: is a Conv2d in the model, whose forward"):
        convsqueeze.apply(model, path)


def test_load_layers(tmp_path: Path) -> None:
    model = network(torch.float16)
    path = squeezed_network(model, tmp_path / "squeezed.pt")
    stored = convsqueeze.load_layers(path)
    assert {p.dtype for layer in stored.values() for p in layer.parameters()} == {torch.float16}
    layers = convsqueeze.load_layers(path, dtype=torch.float32)
    assert list(layers) == ["0", "3"]
    x = torch.randn(1, 2, 5, 6)
    found = layers["3"](layers["0"](x).relu())
    assert_close(found, model.float()(x), TOLERANCE[torch.float16])


def test_a_tap_taken_twice_at_a_place() -> None:
    """Such a place is no choice of a stored number; the kernel is the same as by the long way."""
    module, x = squeezed("line"), image("line")
    axis = module.layer.corrections.axes[0]
    twice = [
        replace(one, weights=tuple((*entry[:3], 2 * entry[3]) for entry in one.weights))
        for one in axis.classes
    ]
    corrections = replace(module.layer.corrections, axes=(replace(axis, classes=tuple(twice)),))
    layer = module.layer.model_copy(update={"corrections": corrections})
    doubled = SqueezedConv(
        layer, module.weight, None, {"0.weight": module.border_tensors()["0.weight"]}
    )
    bare = module.layer.model_copy(update={"corrections": None})
    plain = SqueezedConv(bare, module.weight, None)(x)
    once = SqueezedConv(
        module.layer, module.weight, None, {"0.weight": module.border_tensors()["0.weight"]}
    )
    assert_close(doubled(x) - plain, 2 * (once(x) - plain))
    assert (once(x) - plain).abs().max() > 0.01


# Shapes of a layer's own tensors


def bare_layer(kind: Geometry) -> RecipeLayer:
    return RecipeLayer.of("layer", kind, sources=(), border="exact", weights_before=0)


def geometry_of(channels: tuple[int, int], groups: int, *, upsample: int = 1) -> Geometry:
    axes = (Axis(3, before=1, after=1, upsample=upsample), Axis(2))
    return Geometry(*channels, axes, groups)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("upsample", [1, 2])
def test_its_geometry_is_the_recipes(upsample: int, groups: int, bias: bool) -> None:
    kind = replace(geometry_of((4, 6), groups, upsample=upsample), bias=bias)
    shape = (4, 6 // groups, 3, 2) if upsample > 1 else (6, 4 // groups, 3, 2)
    module = SqueezedConv(bare_layer(kind), torch.ones(shape), torch.ones(6) if bias else None)
    assert module.geometry == kind
    assert module(torch.ones(1, 4, 5, 5)).shape[1:] == (6, *kind.output_size((5, 5)))


@pytest.mark.parametrize(
    ("upsample", "weight", "bias", "told"),
    [
        (1, (6, 2, 3, 3), (6,), "recipe says kernel_size"),
        (1, (6,), (6,), "recipe says kernel_size"),
        (1, (5, 2, 3, 2), (5,), "5 channels do not divide into groups = 2"),
        (1, (6, 2, 3, 2), (4,), "(6,) was needed"),
        (1, (6, 2, 3, 2), (6, 1), "(6,) was needed"),
        (2, (5, 3, 3, 2), (6,), "5 channels do not divide into groups = 2"),
        (2, (4, 3, 3, 2), (4,), "(6,) was needed"),
        (2, (4, 3, 3, 2), (3,), "(6,) was needed"),
    ],
)
def test_wrong_shapes_of_its_own_tensors(
    upsample: int, weight: tuple[int, ...], bias: tuple[int, ...], told: str
) -> None:
    layer = bare_layer(geometry_of((4, 6), 2, upsample=upsample))
    with pytest.raises(GeometryError, match=re.escape(told)):
        SqueezedConv(layer, torch.ones(weight), torch.ones(bias))


def test_groups_below_one_in_a_recipe() -> None:
    layer = bare_layer(geometry_of((4, 6), 2)).model_copy(update={"groups": 0})
    with pytest.raises(GeometryError, match="groups = 0"):
        SqueezedConv(layer, torch.ones(6, 2, 3, 2))


def test_a_layer_without_axes_needs_a_matrix() -> None:
    layer = bare_layer(Geometry(2, 3, ()))
    assert SqueezedConv(layer, torch.ones(3, 2))(torch.ones(5, 2)).shape == (5, 3)
    with pytest.raises(GeometryError, match="kernel_size"):
        SqueezedConv(layer, torch.ones(3))


# What is kept between images


def test_what_is_kept_for_sizes_is_bounded() -> None:
    """Each pair of small sizes is a kind of its own; 64 kinds are kept and no more."""
    module, plain = squeezed("three"), squeezed("three")
    kinds = len(module.layer.corrections.axes[0].classes)
    border = module.border
    first = [one.size for one in module.layer.corrections.axes[0].classes]
    seen = set()
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        module.to(dtype)
        for size in first:
            module(torch.ones(1, 2, size, dtype=dtype))
            seen.add((size, dtype))
            assert len(border._kept) == len(seen) <= MOST_KEPT
    assert len(seen) == 4 * kinds
    x = torch.ones(1, 2, first[0])
    assert_close(plain(x), original("three")(x.double()).float())
    border._kept = {(index,): None for index in range(MOST_KEPT)}
    module = module.to(torch.float64)
    module(torch.ones(1, 2, first[0], dtype=torch.float64))
    assert len(border._kept) == 1


def test_biases_that_no_branch_has_in_a_corner_are_not_stored() -> None:
    """One branch pads on both axes, the other on one, and wider: its bias is in no corner."""
    generator = torch.Generator().manual_seed(2)
    shapes = {"a": (3, 2, 1, 1), "b": (2, 3, 3, 3), "c": (3, 2, 1, 1), "d": (2, 3, 5, 1)}
    tensors = {}
    for name, shape in shapes.items():
        tensors[f"{name}.weight"] = torch.randn(shape, generator=generator)
        tensors[f"{name}.bias"] = torch.randn(shape[0], generator=generator)
    ways = [
        {"chain": [{"name": "a"}, {"name": "b", "padding": 1}]},
        {"chain": [{"name": "c"}, {"name": "d", "padding": [2, 0]}]},
    ]
    pair = {"into": "sum", "border": "corrected", "sum": ways}
    checkpoint = from_state_dict(tensors)
    manifest = manifest_from_data({"version": 1, "pairs": [pair]})
    (merge,) = make_plan(manifest, checkpoint, growth="allow").merges
    assert merge.corrections is not None
    assert dict(merge.corrections.absent_biases)[(0, 1)]
    module = module_of(recipe_layer(merge), squeeze_one(merge, checkpoint.load).tensors())
    stored = module.border_tensors()["01.bias"]
    assert stored.shape[1] < torch.Size(merge.corrections.bias_grid((0, 1))).numel()
    run = reference(merge.tree, checkpoint.load)
    for size in ((5, 5), (1, 1), (2, 7)):
        x = torch.randn(2, 2, *size, generator=generator)
        assert_close(module(x), run(x.double()).float())
        assert_close(module.double()(x.double()), run(x.double()), 1e-5)
        module.float()
