"""What a pickle holds beside its state dict is compared at every place that it is read from."""

import copy
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from convsqueeze.checkpoint import open_checkpoint
from convsqueeze.checkpoint.compare import differences_around
from convsqueeze.errors import VerificationError
from convsqueeze.pipeline import merge_file, verify_files

Change = Callable[[dict[str, Any]], None]
PAIRS = "version: 1\npairs: [{first: {name: a}, second: {name: b}}]"


def state_dict() -> dict[str, Any]:
    return {"a.weight": torch.ones(2, 2, 1, 1), "b.weight": torch.ones(2, 2, 1, 1)}


def shared() -> dict[str, Any]:
    """One dict of settings, one list and one tensor, each read from several places."""
    settings = {"lr": 0.1, "steps": [1, 2], "mean": torch.zeros(3)}
    base = torch.arange(6.0)
    return {
        "state_dict": {**state_dict(), "_extra_state": settings},
        "cfg": settings,
        "again": {"deep": [settings, settings]},
        "steps": settings["steps"],
        "mean": settings["mean"],
        "base": base,
        "view": base[2:4],
    }


def set_to(*path: Any, value: Any) -> Change:
    """Changes the value at a path, whose containers are copied on the way."""

    def change(whole: dict[str, Any]) -> None:
        at: Any = whole
        for key in path[:-1]:
            at[key] = copy.copy(at[key])
            at = at[key]
        at[path[-1]] = value

    return change


CHANGES: dict[str, Change] = {
    "the first": set_to("cfg", "lr", value=0.2),
    "the second": set_to("again", "deep", 0, "lr", value=0.2),
    "the third": set_to("again", "deep", 1, "lr", value=0.2),
    "in the state dict": set_to("state_dict", "_extra_state", "lr", value=0.2),
    "a list of it": set_to("again", "deep", 1, "steps", value=[1, 3]),
    "the list elsewhere": set_to("steps", value=[2, 2]),
    "a tensor of it": set_to("again", "deep", 1, "mean", value=torch.ones(3)),
    "the tensor elsewhere": set_to("mean", value=torch.ones(3)),
    "a view": set_to("view", value=torch.tensor([2.0, 4.0])),
    "what a view is of": set_to("base", value=torch.zeros(6)),
    "gone": lambda whole: whole["again"]["deep"].pop(),
}


def differences(tmp_path: Path, before: object, after: object) -> list[str]:
    found = []
    for name, saved in (("before.pt", before), ("after.pt", after)):
        torch.save(saved, tmp_path / name)
        found.append(open_checkpoint(tmp_path / name, key="state_dict"))
    return list(differences_around(*found))


@pytest.mark.parametrize("change", [pytest.param(CHANGES[name], id=name) for name in CHANGES])
def test_what_is_shared_is_compared_at_each_place(tmp_path: Path, change: Change) -> None:
    changed = copy.deepcopy(shared())
    change(changed)
    assert len(differences(tmp_path, shared(), changed)) == 1
    assert len(differences(tmp_path, changed, shared())) == 1


def test_one_object_and_equal_copies_are_alike(tmp_path: Path) -> None:
    apart = shared()
    apart["again"] = {"deep": [copy.deepcopy(apart["cfg"]) for _ in range(2)]}
    assert differences(tmp_path, shared(), apart) == []
    assert differences(tmp_path, apart, shared()) == []


def test_a_state_dict_under_a_second_key_is_compared_there(tmp_path: Path) -> None:
    """Only where it was merged have its tensors a comparison of their own."""
    weights = state_dict()
    merged = {"a.weight": torch.full((2, 2, 1, 1), 2.0)}
    for keys in (("state_dict", "raw"), ("raw", "state_dict")):
        before, after = dict.fromkeys(keys, weights), dict.fromkeys(keys, merged)
        assert len(differences(tmp_path, before, after)) == 2
        assert differences(tmp_path, before, {**after, "raw": weights}) == []


def test_what_holds_itself_comes_to_an_end(tmp_path: Path) -> None:
    def held(lr: float) -> dict[str, Any]:
        found: dict[str, Any] = {"state_dict": state_dict(), "lr": lr}
        found["self"] = found
        return found

    assert differences(tmp_path, held(0.1), held(0.1)) == []
    assert len(differences(tmp_path, held(0.1), held(0.2))) == 1


def test_metadata_is_compared(tmp_path: Path) -> None:
    """That of safetensors, and the layers' versions, by which torch loads a state dict."""
    weights: Any = nn.Sequential(nn.BatchNorm2d(2)).state_dict()
    older = copy.deepcopy(weights)
    older._metadata["0"]["version"] = 1
    assert differences(tmp_path, {"state_dict": weights}, {"state_dict": weights}) == []
    (told,) = differences(tmp_path, {"state_dict": weights}, {"state_dict": older})
    assert told.endswith("after.pt: metadata.0 is not what the original holds there.")
    names = [tmp_path / f"{name}.safetensors" for name in ("before", "same", "after")]
    for name, licence in zip(names, ("MIT", "MIT", "none"), strict=True):
        save_file(state_dict(), name, metadata={"licence": licence})
    before, same, after = map(open_checkpoint, names)
    assert list(differences_around(before, same)) == []
    (told,) = differences_around(before, after)
    assert "metadata.licence is not what the original holds there" in told


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([1, 2], (1, 2)),
        (1, 1.0),
        (1, True),
        (0.0, -0.0),
        ({1: "a"}, {1.0: "a"}),
        ({1: "a"}, {True: "a"}),
        ({1, 2}, {1, 2.0}),
        (OrderedDict(a=1), {"a": 1}),
        (Counter(a=1), {"a": 1}),
        ("1", b"1"),
        (None, False),
        (torch.Size([1]), (1,)),
        ([], {}),
        (torch.zeros(1), 0.0),
        (torch.zeros(2), torch.zeros(2, device="meta")),
    ],
)
def test_equal_values_of_other_types_are_not_the_same(
    tmp_path: Path, one: object, other: object
) -> None:
    for a, b in ((one, other), (other, one)):
        found = [{"state_dict": state_dict(), "kept": [kept]} for kept in (a, a, b)]
        assert differences(tmp_path, found[0], found[1]) == []
        assert len(differences(tmp_path, found[0], found[2])) in (1, 2)


def test_not_a_number_is_the_same_as_itself(tmp_path: Path) -> None:
    kept = [{"state_dict": state_dict(), "loss": [float("nan")]} for _ in range(2)]
    assert differences(tmp_path, *kept) == []


def test_a_tensor_without_values_is_verified_as_it_is_merged(tmp_path: Path) -> None:
    original, squeezed = tmp_path / "model.pt", tmp_path / "squeezed.pt"
    torch.save({**state_dict(), "kept": torch.empty(3, device="meta")}, original)
    (tmp_path / "pairs.yaml").write_text(PAIRS)
    merge_file(original, tmp_path / "pairs.yaml", squeezed)
    verify_files(original, squeezed).raise_if_failed()
    found = torch.load(squeezed, weights_only=True)
    found["kept"] = torch.zeros(3)
    torch.save(found, squeezed)
    with pytest.raises(VerificationError, match="kept: was not merged, but has no values, or"):
        verify_files(original, squeezed).raise_if_failed()


@pytest.mark.parametrize("kind", ["sparse_csr", "sparse_csc", "sparse_bsr", "sparse_bsc", "sparse"])
def test_sparse_tensors_of_every_layout_are_compared(kind: str, tmp_path: Path) -> None:
    original, squeezed = tmp_path / "model.pt", tmp_path / "squeezed.pt"
    blocks = {"blocksize": (2, 2)} if kind.startswith("sparse_bs") else {}
    kept = getattr(torch.eye(4), f"to_{kind}")(**blocks)
    torch.save({**state_dict(), "kept": kept}, original)
    (tmp_path / "pairs.yaml").write_text(PAIRS)
    merge_file(original, tmp_path / "pairs.yaml", squeezed)
    verify_files(original, squeezed).raise_if_failed()
    found = torch.load(squeezed, weights_only=True)
    found["kept"] = kept * 2
    torch.save(found, squeezed)
    with pytest.raises(VerificationError, match="kept: was not merged, but differs from"):
        verify_files(original, squeezed).raise_if_failed()


def test_verify_finds_a_second_copy_that_was_changed(tmp_path: Path) -> None:
    original, squeezed = tmp_path / "model.pt", tmp_path / "squeezed.pt"
    settings = {"lr": 0.1}
    torch.save({"state_dict": state_dict(), "cfg": settings, "again": settings}, original)
    (tmp_path / "pairs.yaml").write_text(PAIRS)
    merge_file(original, tmp_path / "pairs.yaml", squeezed)
    verify_files(original, squeezed).raise_if_failed()
    found = torch.load(squeezed, weights_only=True)
    found["again"] = {"lr": 0.2}
    torch.save(found, squeezed)
    with pytest.raises(VerificationError, match=r"again\.lr is not what the original holds there"):
        verify_files(original, squeezed).raise_if_failed()
