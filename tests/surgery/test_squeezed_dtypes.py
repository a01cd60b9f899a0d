"""A squeezed model gives what its original gives: in every dtype, of every size, however it lies in
memory.
"""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import convsqueeze
from convsqueeze.models import inputs_of, verify_whole
from tests.scan.code import image, largest_share, made
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

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
ROUNDINGS = 3.0
"""So many times the original's own rounding error, at most: it was seen to be 0.5 to 1.7 times."""


# Dtypes


@pytest.mark.stress
@models
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_dtype_stays_and_so_does_the_size_of_rounding_errors(
    small: Small, dtype: torch.dtype
) -> None:
    """Against the original in float64: no further from it than the original in its own dtype."""
    found = squeezed(small, dtype)
    assert layers(found.model) == small.merged
    assert {tensor.dtype for tensor in found.model.state_dict().values()} == {dtype}
    exact = run(copy.deepcopy(found.original).double(), found.example.double())
    y = run(found.model, found.example)
    assert y.dtype == dtype
    error = float((y.double() - exact).abs().max())
    own = float((run(found.original, found.example).double() - exact).abs().max())
    assert error <= ROUNDINGS * own + EXACT * float(exact.abs().max())


@models
def test_under_autocast_it_gives_the_dtype_of_the_original(small: Small) -> None:
    found = squeezed(small)
    with torch.autocast("cpu", torch.bfloat16):
        y, wanted = run(found.model, found.example), run(found.original, found.example)
    assert y.dtype == wanted.dtype
    assert torch.allclose(y.float(), wanted.float(), atol=0.05 * float(wanted.abs().max()))


class HalfBody(nn.Module):
    """A factor in float32, stored first, and layers in float16 before layers in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(3, 1, 1))
        self.a, self.b = nn.Conv2d(3, 16, 1).half(), nn.Conv2d(16, 3, 1).half()
        self.c, self.d = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.d(self.c(torch.relu(self.b(self.a(x))).float() * self.factor))
        return y


class HalfHead(nn.Module):
    """Layers in float32, then layers in float16: runs in no other dtypes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 3, 1)
        self.c, self.d = nn.Conv2d(3, 8, 1).half(), nn.Conv2d(8, 2, 1).half()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.d(self.c(torch.relu(self.b(self.a(x))).half()))
        return y


def half_with_wide_norm() -> nn.Module:
    model = chain().half()
    model[1].float()
    return model


@pytest.mark.parametrize(
    ("build", "dtype", "merged"),
    [
        (HalfBody, torch.float16, ("a", "c")),
        (HalfHead, torch.float32, ("a", "c")),
        (half_with_wide_norm, torch.float16, ("0",)),
    ],
)
def test_in_a_model_of_several_dtypes_each_layer_keeps_its_own(
    build: Callable[[], nn.Module], dtype: torch.dtype, merged: tuple[str, ...]
) -> None:
    model, x = made(build), image(2, 3, 6, 7).to(dtype)
    before = {name: parameter.dtype for name, parameter in model.named_parameters()}
    result, report = convsqueeze.squeeze(model, x)
    assert report.whole is not None
    assert report.scan.notes == ()
    assert layers(result) == merged
    for name, parameter in result.named_parameters():
        assert parameter.dtype == before[name]
    assert largest_share(model, result, [x]) < 4e-3


def test_models_that_differ_are_seen_in_their_own_dtypes_too() -> None:
    model = made(HalfHead)
    other, inputs = copy.deepcopy(model), inputs_of(image(2, 3, 6, 7))
    report = verify_whole(model, other, inputs)
    assert report.ok
    assert report.dtype == "float16"
    other.c.weight.data.neg_()
    assert not verify_whole(model, other, inputs).ok


def test_a_merged_value_too_large_for_its_dtype_is_refused_or_kept_wider() -> None:
    model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.Linear(8, 2, bias=False)).half().eval()
    for parameter in model.parameters():
        parameter.data.fill_(128.0)
    x = torch.full((2, 4), 2.0**-12, dtype=torch.float16)
    with pytest.raises(convsqueeze.ConvsqueezeError, match="no finite float16 number"):
        convsqueeze.squeeze(model, x)
    result, _ = convsqueeze.squeeze(model, x, widen=True)
    assert [p.dtype for p in result.parameters()] == [torch.float32]
    assert run(result, x).equal(run(model, x))


# Sizes and memory


@models
def test_other_sizes_and_batches_than_the_example_give_the_same(small: Small) -> None:
    found = squeezed(small, torch.float64)
    for seed, shape in enumerate(small.others):
        x = image(*shape, seed=seed).double()
        assert largest_share(found.original, found.model, [x]) < EXACT


@pytest.mark.parametrize("small", SMALL[2:], ids=lambda small: small.name)
def test_the_smallest_example_will_do(small: Small) -> None:
    original = small.original(torch.float64)
    result, _ = convsqueeze.squeeze(original, image(*small.others[0]).double(), **small.settings)
    assert_same_bits(bits(result), bits(squeezed(small, torch.float64).model))


@pytest.mark.parametrize("small", SMALL[:4], ids=lambda small: small.name)
def test_channels_last_inputs_give_the_same(small: Small) -> None:
    found = squeezed(small, torch.float64)
    x = found.example.to(memory_format=torch.channels_last)
    assert not x.is_contiguous()
    assert largest_share(found.original, found.model, [x]) < EXACT
    every_second = image(*small.shape[:3], 2 * small.shape[3]).double()[..., ::2]
    assert largest_share(found.original, found.model, [every_second]) < EXACT


@pytest.mark.parametrize("small", SMALL[2:], ids=lambda small: small.name)
def test_how_weights_lie_in_memory_does_not_matter(small: Small) -> None:
    """Each weight is stored transposed, and has other numbers between its own."""
    model = small.original()
    for weight in (p for p in model.parameters() if p.ndim > 1):
        stored = weight.data.transpose(0, 1).contiguous().transpose(0, 1)
        weight.data = torch.stack([stored, -stored], dim=-1)[..., 0]
        assert not weight.is_contiguous()
    result, _ = convsqueeze.squeeze(model, small.example(), **small.settings)
    assert_same_bits(bits(result), bits(squeezed(small).model))
