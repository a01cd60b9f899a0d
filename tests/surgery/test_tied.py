"""Stored tensors that share memory are left alone; parts of one storage that do not, are merged."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import convsqueeze
from convsqueeze.tracing.stored import tied
from tests.scan.code import Code, image, made, merged_layers, reasons, scanned

X = image(2, 3, 8, 8)


class Pairs(nn.Module):
    """Two pairs of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 1)
        self.other, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.two(self.one(x)).tanh() + self.last(self.other(x)).tanh()
        return y


def _one_storage(model: Pairs) -> None:
    model.other.weight.data = model.one.weight.data


def _a_view(model: Pairs) -> None:
    model.other.weight = nn.Parameter(model.one.weight.detach().view(8, 3, 1, 1))


def _a_part(model: Pairs) -> None:
    model.other.bias = nn.Parameter(model.one.weight.detach().flatten()[16:])


def _an_attribute(model: Pairs) -> None:
    model.halves = model.one.weight.detach()[:4]


def _a_buffer(model: Pairs) -> None:
    model.register_buffer("halves", model.one.weight.detach()[:4], persistent=False)


@pytest.mark.stress
@pytest.mark.parametrize("tie", [_one_storage, _a_view, _a_part, _an_attribute, _a_buffer])
def test_a_layer_whose_tensor_shares_memory_stays(tie: Callable[[Pairs], None]) -> None:
    model = made(Pairs)
    assert len(merged_layers(scanned(model, X))) == 2
    tie(model)
    found = scanned(model, X)
    assert ("one", "two") not in merged_layers(found)
    texts = [text for layers, kind, text in reasons(found) if (layers, kind) == (("one",), "tied")]
    assert len(texts) == 1
    assert "one.weight" in texts[0]
    assert "share memory" in texts[0]
    squeezed, _ = convsqueeze.squeeze(model, X)
    assert torch.equal(squeezed.one.weight, model.one.weight)


def test_parts_of_one_storage_are_merged() -> None:
    """As a flattened optimiser and a checkpoint that is mapped into memory have them."""
    model = made(Pairs)
    slab = torch.cat([p.detach().flatten() for p in model.parameters()])
    parts = slab.split([p.numel() for p in model.parameters()])
    for p, part in zip(model.parameters(), parts, strict=True):
        p.data = part.view(p.shape)
    assert len({p.untyped_storage().data_ptr() for p in model.parameters()}) == 1
    assert tied(model) == {}
    assert merged_layers(scanned(model, X)) == [("one", "two"), ("other", "last")]


def holding(**tensors: Tensor) -> nn.Module:
    parameters = {name: nn.Parameter(tensor) for name, tensor in tensors.items()}
    return Code(lambda self: None, **parameters)


MEMORIES = [torch.empty(8, 4), torch.empty(8, 4, device="meta")]


def _fake() -> Tensor:
    with FakeTensorMode():
        return torch.empty(8, 4)


@pytest.mark.parametrize("whole", [*MEMORIES, _fake()], ids=["real", "meta", "fake"])
def test_what_overlaps(whole: Tensor) -> None:
    both = {"a": "a", "b": "a"}
    assert tied(holding(a=whole, b=whole)) == both
    assert tied(holding(a=whole, b=whole[2:4])) == both
    assert tied(holding(a=whole[:3], b=whole[2:])) == both
    assert tied(holding(a=whole[:, 1:3], b=whole[:, :2])) == both
    assert tied(holding(a=whole[:4], b=whole[4:])) == {}
    assert tied(holding(a=whole[:, :2], b=whole[:, 2:])) == {}
    assert tied(holding(a=whole[::2], b=whole[1::2])) == {}
    assert tied(holding(a=whole, b=torch.empty_like(whole))) == {}


def test_three_that_overlap_in_a_row_are_one_group() -> None:
    whole = torch.empty(9)
    found = tied(holding(a=whole[:4], b=whole[6:], c=torch.empty(3), d=whole[3:7]))
    assert found == {"a": "a", "b": "a", "d": "a"}


def test_memory_of_another_owner_is_shared_too() -> None:
    owner = np.zeros(8, dtype=np.float32)
    halves = torch.from_numpy(owner[:4]), torch.from_numpy(owner[4:])
    assert tied(holding(a=torch.from_numpy(owner), b=halves[1])) == {"a": "a", "b": "a"}
    assert tied(holding(a=halves[0], b=halves[1])) == {}


@pytest.mark.parametrize(
    "tensor", [torch.empty(0), torch.eye(3).to_sparse()], ids=["empty", "sparse"]
)
def test_a_tensor_without_addresses_is_tied_to_itself_alone(tensor: Tensor) -> None:
    one = nn.Parameter(tensor)
    assert tied(holding(a=tensor, b=tensor.clone())) == {}
    assert tied(Code(lambda self: None, a=one, b=one)) == {"a": "a", "b": "a"}
