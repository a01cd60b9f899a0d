"""What a user reads of the public names: which errors a call raises, and the shapes of tensors."""

import inspect
import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convsqueeze
from convsqueeze import Axis, Conv, layers
from convsqueeze.errors import (
    CheckpointError,
    ConvsqueezeError,
    DeviceError,
    GeometryError,
    ManifestError,
    ModelInputError,
    ModelMismatchError,
    OutputError,
    PlanError,
    TensorDataError,
    TracingError,
    VerificationError,
)

pytestmark = pytest.mark.quick

OPERATORS = ("__call__", "__matmul__", "__add__", "__mul__")
SHAPE = re.compile(r"\((batch|channels|out|in|out_channels)\b[^()]*\)")
"""`(out, in / groups, *kernel_size)`, `(channels,)` and the like."""


def own_members(name: str, owner: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties that a class defines itself, and its operators."""
    for key, value in vars(owner).items():
        if not key.startswith("_") or key in OPERATORS:
            plain = value.__func__ if isinstance(value, classmethod | staticmethod) else value
            if inspect.isfunction(plain) or isinstance(plain, property):
                yield f"{name}.{key}", plain


def public_names() -> Iterator[tuple[str, Any]]:
    for name in convsqueeze.__all__:
        found = getattr(convsqueeze, name)
        if inspect.ismodule(found):
            for key in found.__all__:
                if inspect.isfunction(getattr(found, key)):
                    yield f"{name}.{key}", getattr(found, key)
        else:
            yield name, found
            if inspect.isclass(found):
                yield from own_members(name, found)


PUBLIC = dict(public_names())
CALLS = {
    name: found
    for name, found in PUBLIC.items()
    if not isinstance(found, property) and not inspect.isclass(found)
}
SILENT = {
    "Axis.output_size",
    "Axis.accepts",
    "Conv.__call__",
    "Conv.__mul__",
    "Conv.to",
    "Conv.on",
    "Manifest.where",
    "Manifest.to_data",
    "SqueezedConv.border_tensors",
    "SqueezedConv.stored_as",
    "SqueezedConv.extra_repr",
}
"""Calls that raise no error of this package, whatever they are given."""


def doc_of(name: str) -> str:
    """The docstring of its own, in one line; none that a base class has."""
    return " ".join((PUBLIC[name].__doc__ or "").split())


def takes_or_gives_tensors(call: Callable[..., Any]) -> bool:
    signature = inspect.signature(call)
    annotations = [p.annotation for p in signature.parameters.values()]
    return any("Tensor" in str(one) for one in (*annotations, signature.return_annotation))


def test_there_are_public_names() -> None:
    assert {"Conv.__matmul__", "layers.convolution", "SqueezedConv.forward", "squeeze"} <= set(
        CALLS
    )
    assert "Axis.is_pointwise" in PUBLIC
    assert len(CALLS) > 30


def test_every_public_name_has_words_of_its_own() -> None:
    assert [name for name in PUBLIC if not doc_of(name)] == []


def test_every_call_says_what_it_raises() -> None:
    """All but those that raise nothing, and the classes whose values are checked."""
    checked = {"Axis", "Conv", "SqueezedConv"}
    assert {name for name in CALLS if "aises" not in doc_of(name)} == SILENT
    assert {name for name in checked if "aises" not in doc_of(name)} == set()


@pytest.mark.parametrize(
    "name", [name for name, call in CALLS.items() if takes_or_gives_tensors(call)]
)
def test_tensors_have_shapes(name: str) -> None:
    state_dicts = {"merge_state_dict", "squeeze", "apply"}  # of every shape
    assert SHAPE.search(doc_of(name)) or name in state_dicts


def test_shapes_are_found_and_missed() -> None:
    assert SHAPE.search("`weight` (out, in / groups, *kernel_size).")
    assert SHAPE.search("All tensors (channels,).")
    assert not SHAPE.search("A guess (or not), out of two.")


def test_merge_file_names_every_error_of_a_merge() -> None:
    kinds = (CheckpointError, ManifestError, PlanError, TensorDataError)
    for kind in (*kinds, OutputError, DeviceError, VerificationError):
        assert kind.__name__ in doc_of("merge_file")


# What is raised is what the docstring names.


ONE = torch.ones(2, 2, 1, 1)
PAIR = {"version": 1, "pairs": [{"first": {"name": "a"}, "second": {"name": "b"}}]}
STATE = {"a.weight": ONE, "b.weight": ONE}
WIDE = layers.convolution(torch.ones(3, 2, 1, 1))
NO_FILE = Path("no-such-folder/model.pt")
Refusal = tuple[str, Callable[[], object], type[ConvsqueezeError]]


class Branching(nn.Module):
    """Code that looks at values, which cannot be followed."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if x.sum() > 0 else x


REFUSALS: list[Refusal] = [
    ("Axis", lambda: Axis(kernel_size=0), GeometryError),
    ("Conv", lambda: Conv(ONE, torch.ones(3), (Axis(), Axis())), GeometryError),
    ("Conv.__matmul__", lambda: WIDE @ WIDE, GeometryError),
    ("Conv.__add__", lambda: WIDE + layers.identity(2, rank=2), GeometryError),
    ("layers.per_axis", lambda: layers.per_axis([1, 2], 3, "stride"), GeometryError),
    ("layers.padding_pairs", lambda: layers.padding_pairs("same", 2), GeometryError),
    ("layers.convolution", lambda: layers.convolution(torch.ones(2, 2)), GeometryError),
    ("layers.transposed", lambda: layers.transposed(ONE, padding=[1]), GeometryError),
    ("layers.linear", lambda: layers.linear(ONE), GeometryError),
    (
        "layers.diagonal",
        lambda: layers.diagonal(torch.ones(2), torch.ones(3), rank=1),
        GeometryError,
    ),
    (
        "layers.batch_norm",
        lambda: layers.batch_norm(torch.ones(2), torch.ones(3), eps=0.0, rank=2),
        GeometryError,
    ),
    ("layers.scale", lambda: layers.scale(torch.ones(3), channels=2, rank=2), GeometryError),
    (
        "layers.average_pool",
        lambda: layers.average_pool(2, kernel_size=[2, 2], padding=2),
        GeometryError,
    ),
    ("layers.pad", lambda: layers.pad(2, padding=[1], rank=2), GeometryError),
    ("layers.identity", lambda: layers.identity(0, rank=2), GeometryError),
    ("load_manifest", lambda: convsqueeze.load_manifest(Path("none.yaml")), ManifestError),
    ("load_layers", lambda: convsqueeze.load_layers(NO_FILE), CheckpointError),
    ("merge_file", lambda: convsqueeze.merge_file(NO_FILE, Path("none.yaml")), CheckpointError),
    ("verify_files", lambda: convsqueeze.verify_files(NO_FILE, NO_FILE), CheckpointError),
    ("merge_state_dict", lambda: convsqueeze.merge_state_dict(STATE, {}), ManifestError),
    ("merge_state_dict", lambda: convsqueeze.merge_state_dict({"c": ONE}, PAIR), PlanError),
    ("merge_state_dict", lambda: convsqueeze.merge_state_dict({}, PAIR), CheckpointError),
    (
        "merge_state_dict",
        lambda: convsqueeze.merge_state_dict({**STATE, "b.weight": ONE * torch.nan}, PAIR),
        TensorDataError,
    ),
    (
        "merge_state_dict",
        lambda: convsqueeze.merge_state_dict(STATE, PAIR, device="cuda:99"),
        DeviceError,
    ),
    ("apply", lambda: convsqueeze.apply(nn.Conv2d(2, 2, 1), NO_FILE), CheckpointError),
    ("squeeze", lambda: convsqueeze.squeeze(Branching(), torch.ones(1, 2, 4, 4)), TracingError),
    ("squeeze", lambda: convsqueeze.squeeze(nn.Conv2d(2, 2, 1), torch.ones(1, 3)), ModelInputError),
    ("squeeze", partial(convsqueeze.squeeze, Branching(), border="none"), PlanError),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(
    ("name", "call", "error"), REFUSALS, ids=[f"{name}, {e.__name__}" for name, _, e in REFUSALS]
)
def test_what_is_raised_is_what_the_docstring_names(
    name: str, call: Callable[[], object], error: type[ConvsqueezeError]
) -> None:
    with pytest.raises(ConvsqueezeError) as caught:
        call()
    assert type(caught.value) is error
    assert error.__name__ in doc_of(name)


def test_a_squeezed_layer_names_the_error_of_a_size_that_it_is_not_for(tmp_path: Path) -> None:
    first, second = ({"name": name, "padding": 1, "padding_mode": "reflect"} for name in "ab")
    entry = {"first": first, "second": second, "border": "corrected"}
    state = {f"{name}.weight": torch.ones(1, 1, 3, 3) for name in "ab"}
    torch.save(state, tmp_path / "model.pt")
    (tmp_path / "pairs.yaml").write_text(json.dumps({"version": 1, "pairs": [entry]}))
    merged = tmp_path / "out.pt"
    convsqueeze.merge_file(tmp_path / "model.pt", tmp_path / "pairs.yaml", merged, growth="allow")
    (layer,) = convsqueeze.load_layers(merged).values()
    assert layer(torch.ones(1, 1, 8, 8)).shape == (1, 1, 8, 8)
    with pytest.raises(GeometryError):
        layer(torch.ones(1, 1, 1, 8))
    with pytest.raises(GeometryError):
        layer.converted(lambda values: values.int(), None)
    for name in ("SqueezedConv", "SqueezedConv.forward", "SqueezedConv.converted"):
        assert GeometryError.__name__ in doc_of(name)
    with pytest.raises(ModelMismatchError):
        convsqueeze.apply(nn.Conv2d(1, 1, 3), merged)
    assert ModelMismatchError.__name__ in doc_of("apply")
