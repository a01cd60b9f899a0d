"""One number a channel may be stored with axes of size one: (C, 1, 1), (1, C, 1, 1), (1, 1, C).

LayerScale of many networks is stored so. What is merged, and what verification runs, is the layer
with the same numbers as a vector.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from convsqueeze import merge_state_dict
from convsqueeze.checkpoint import from_state_dict
from convsqueeze.errors import PlanError
from convsqueeze.manifest import manifest_from_data
from convsqueeze.plan import make_plan
from convsqueeze.verify.reference import reference

pytestmark = pytest.mark.quick

SHAPES = {
    "vector": (-1,),
    "map": (-1, 1, 1),
    "batch of maps": (1, -1, 1, 1),
    "map of a volume": (-1, 1, 1, 1),
    "channels last": (1, 1, -1),
}
SIZES = {"small": (6, 4), "large": (448, 112)}
SECONDS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "scale": ({"type": "scale"}, ("weight", "bias")),
    "batch_norm": (
        {"type": "batch_norm", "eps": 1e-3},
        ("weight", "bias", "running_mean", "running_var"),
    ),
    "conv": ({}, ("bias",)),
    "conv_transpose": ({"type": "conv_transpose"}, ("bias",)),
    "linear": ({"type": "linear"}, ("bias",)),
}


def tensors(kind: str, size: tuple[int, int], shape: tuple[int, ...]) -> dict[str, Tensor]:
    """A 1x1 convolution with a bias, and a layer whose numbers a channel have this shape."""
    generator = torch.Generator().manual_seed(1)
    given, channels = size

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    weights = {"conv": (1, 1), "conv_transpose": (1, 1), "linear": ()}
    found = {"a.weight": drawn(channels, given, 1, 1), "a.bias": drawn(channels).reshape(shape)}
    if kind in weights:
        found["b.weight"] = drawn(channels, channels, *weights[kind])
    for role in SECONDS[kind][1]:
        values = drawn(channels)
        found[f"b.{role}"] = (values.abs() if role == "running_var" else values).reshape(shape)
    return found


def manifest(kind: str) -> dict[str, Any]:
    return {
        "version": 1,
        "pairs": [{"first": {"name": "a"}, "second": {"name": "b", **SECONDS[kind][0]}}],
    }


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("kind", SECONDS)
def test_merged_as_from_vectors(kind: str, shape: tuple[int, ...], size: tuple[int, int]) -> None:
    expected, _ = merge_state_dict(tensors(kind, size, (-1,)), manifest(kind), verify=False)
    merged, _ = merge_state_dict(tensors(kind, size, shape), manifest(kind))
    assert merged.keys() == expected.keys() == {"a.weight", "a.bias"}
    for name in expected:
        assert torch.equal(merged[name], expected[name])


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("kind", ["scale", "batch_norm"])
def test_beside_so_many_groups_that_some_are_run(kind: str, shape: tuple[int, ...]) -> None:
    channels, words = 1024, {"groups": 1024, "padding": 3}

    def depthwise(shape: tuple[int, ...]) -> dict[str, Tensor]:
        found = tensors(kind, (1, channels), shape)
        return found | {"a.weight": torch.ones(channels, 1, 7, 7)}

    entry = manifest(kind)
    entry["pairs"][0]["first"] |= words
    expected, _ = merge_state_dict(depthwise((-1,)), entry, verify=False)
    merged, _ = merge_state_dict(depthwise(shape), entry)
    assert all(torch.equal(merged[name], expected[name]) for name in expected)


@pytest.mark.parametrize("magnitude", [False, True])
@pytest.mark.parametrize("part", ["affine", "linear"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("kind", SECONDS)
def test_the_oracle_takes_them(
    kind: str, shape: tuple[int, ...], part: Any, magnitude: bool
) -> None:
    def run(stored: dict[str, Tensor]) -> Tensor:
        plan = make_plan(manifest_from_data(manifest(kind)), from_state_dict(stored))
        tree = plan.merges[0].tree
        return reference(tree, stored.__getitem__, part, magnitude=magnitude)(x)

    x = torch.randn(2, 6, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    size = SIZES["small"]
    assert torch.equal(run(tensors(kind, size, shape)), run(tensors(kind, size, (-1,))))


@pytest.mark.parametrize(
    ("kind", "role"), [(k, role) for k, (_, roles) in SECONDS.items() for role in roles]
)
def test_a_map_of_numbers_is_no_vector(kind: str, role: str) -> None:
    """Four numbers in two rows of two are not one for each of four channels."""
    stored = tensors(kind, SIZES["small"], (-1,))
    stored[f"b.{role}"] = stored[f"b.{role}"].reshape(2, 2)
    with pytest.raises(PlanError, match=r"b: .*\(2, 2\)"):
        merge_state_dict(stored, manifest(kind))


def test_a_norm_with_another_count_of_weights_is_refused() -> None:
    stored = tensors("batch_norm", SIZES["small"], (-1,))
    stored["b.weight"] = stored["b.weight"][:3]
    with pytest.raises(PlanError, match=r"b: weight of shape \(3,\)"):
        merge_state_dict(stored, manifest("batch_norm"))
