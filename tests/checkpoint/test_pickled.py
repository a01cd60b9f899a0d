"""Pickled checkpoints: everything but the edited tensors comes back out as it went in."""

import hashlib
import os
import re
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from convsqueeze.checkpoint import Edit, open_checkpoint, open_like, write_checkpoint
from convsqueeze.checkpoint.edits import splice
from convsqueeze.errors import CheckpointError, OutputError

RECIPE = '{"version": 1}'
MERGE = Edit(
    at="0.weight",
    remove=frozenset({"0.weight", "0.bias", "1.weight"}),
    insert={"0.weight": torch.full((3, 3, 5, 5), 2.0), "0.bias": torch.arange(3.0)},
)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 3, 3, bias=False), nn.BatchNorm2d(3))


def prefixed(prefix: str) -> "OrderedDict[str, Any]":
    state_dict = network().state_dict()
    result = OrderedDict((prefix + name, value) for name, value in state_dict.items())
    result._metadata = state_dict._metadata  # type: ignore[attr-defined]
    return result


def saved(path: Path, value: object, *, zipped: bool = True) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return path


def reloaded(path: Path) -> Any:
    return torch.load(path, weights_only=True)


def same(a: Any, b: Any) -> bool:
    """Equal in value, type and order, all the way down; tensors in their bytes and strides."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        alike = a.dtype == b.dtype and a.shape == b.shape and a.requires_grad == b.requires_grad
        if a.layout != torch.strided:
            return alike and torch.equal(a.to_dense(), b.to_dense())
        return alike and a.stride() == b.stride() and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize(
    "wrapper",
    [
        "",
        "state_dict",
        "model_state_dict",
        "model",
        "params_ema",
        "params",
        "ema",
        "net",
        "generator",
        "ema.state_dict",
        "anything",
    ],
)
def test_edited_file_keeps_all_the_rest(
    tmp_path: Path, wrapper: str, prefix: str, zipped: bool
) -> None:
    state_dict = prefixed(prefix)
    whole: Any = state_dict
    for key in reversed(wrapper.split(".") if wrapper else []):
        whole = {"epoch": 7, key: whole, "hyper": {"lr": 1e-3, "betas": (0.9, 0.999), "on": True}}
    path = saved(tmp_path / "model.pt", whole, zipped=zipped)

    checkpoint = open_checkpoint(path)
    assert (checkpoint.format, checkpoint.wrapper, checkpoint.prefix) == ("pt", wrapper, prefix)
    assert list(checkpoint.tensors) == list(network().state_dict())
    assert checkpoint.recipe is None
    assert write_checkpoint(checkpoint, tmp_path / "out.pt", [MERGE], RECIPE) == ()

    before, after = reloaded(path), reloaded(tmp_path / "out.pt")
    for key in wrapper.split(".") if wrapper else []:
        assert type(before) is type(after)
        assert list(before) == list(after)
        assert all(same(before[other], after[other]) for other in before if other != key)
        before, after = before[key], after[key]
    kept = [name for name in before if name.removeprefix(prefix) not in MERGE.remove]
    assert list(after) == [prefix + "0.weight", prefix + "0.bias", *kept]
    assert all(same(after[prefix + name], value) for name, value in MERGE.insert.items())
    assert all(same(after[name], before[name]) for name in kept)
    assert after._metadata == {**before._metadata, "convsqueeze": RECIPE}
    again = open_checkpoint(tmp_path / "out.pt")
    assert (again.recipe, again.wrapper, again.prefix) == (RECIPE, wrapper, prefix)
    assert list(again.entries) == list(splice(checkpoint, [MERGE]).entries())


def test_plain_dict_gets_metadata_and_loads_into_a_model(tmp_path: Path) -> None:
    path = saved(tmp_path / "model.pt", dict(network().state_dict()))
    write_checkpoint(open_checkpoint(path), tmp_path / "out.pt", [], RECIPE)
    after = reloaded(tmp_path / "out.pt")
    assert type(after) is OrderedDict
    assert after._metadata == {"convsqueeze": RECIPE}
    model = network()
    nn.init.zeros_(model[0].weight)  # type: ignore[index]
    model.load_state_dict(after)
    assert same(dict(model.state_dict()), reloaded(path))


def test_containers_keep_their_types(tmp_path: Path) -> None:
    whole = OrderedDict(
        counts=Counter(a=2), state_dict=network().state_dict(), size=torch.Size([2])
    )
    path = saved(tmp_path / "model.pt", whole)
    write_checkpoint(open_checkpoint(path), tmp_path / "out.pt", [], RECIPE)
    after = reloaded(tmp_path / "out.pt")
    assert type(after) is OrderedDict
    assert list(after) == ["counts", "state_dict", "size"]
    assert type(after["counts"]) is Counter
    assert after["counts"] == Counter(a=2)
    assert type(after["size"]) is torch.Size


def test_saved_on_another_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:1")
        for zipped in (True, False):
            saved(tmp_path / f"{zipped}.pt", network().state_dict(), zipped=zipped)
    for zipped in (True, False):
        path = tmp_path / f"{zipped}.pt"
        assert b"cuda:1" in path.read_bytes()
        checkpoint = open_checkpoint(path)
        weight = checkpoint.load("0.weight")
        assert weight.device.type == "cpu"
        assert torch.equal(weight, network().state_dict()["0.weight"])


STATE = {"a": torch.ones(2, 2)}
ADAM: dict[str, Any] = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}


@pytest.mark.parametrize(
    ("whole", "wrapper"),
    [
        ({"state_dict": STATE, "best_acc1": torch.tensor(0.7), "optimizer": ADAM}, "state_dict"),
        ({"weights": STATE, "optimizer": ADAM, "best": torch.tensor(0.7)}, "weights"),
        ({"deep": {"weights": STATE}, "optim_state": STATE}, "deep.weights"),
        ({"a": torch.ones(2), "extra": STATE}, ""),
        ({"only": torch.tensor(1.0)}, ""),
        ({"state_dict": {"only": torch.tensor(1.0)}, "step": torch.tensor(3)}, "state_dict"),
        ({"model": {"state_dict": STATE, "note": 1}}, "model.state_dict"),
    ],
)
def test_state_dict_is_found(tmp_path: Path, whole: Any, wrapper: str) -> None:
    assert open_checkpoint(saved(tmp_path / "model.pt", whole)).wrapper == wrapper


def test_key_chooses_between_two(tmp_path: Path) -> None:
    ema = {"a": torch.zeros(2, 2)}
    path = saved(tmp_path / "model.pt", {"params": STATE, "params_ema": ema, "optimizer": ADAM})
    with pytest.raises(CheckpointError, match=r"2 state dicts \(params_ema, params\).*--key"):
        open_checkpoint(path)
    checkpoint = open_checkpoint(path, key="params_ema")
    assert torch.equal(checkpoint.load("a"), ema["a"])
    write_checkpoint(checkpoint, tmp_path / "out.pt", [Edit("a", frozenset("a"), {})], RECIPE)
    after = reloaded(tmp_path / "out.pt")
    assert list(after["params_ema"]) == []
    assert same(after["params"], STATE)


@pytest.mark.parametrize(
    ("raw", "averaged"),
    [
        ("state_dict", "state_dict_ema"),  # timm
        ("state_dict", "ema_state_dict"),
        ("model", "ema.module"),  # RT-DETR, D-FINE
        ("net", "ema_net"),  # super-gradients
        ("model", "model_ema"),
        ("model", "ema"),
        ("params", "params_ema"),  # BasicSR
        ("model", "swa_model"),
        ("model_state_dict", "averaged_model"),
        ("student", "teacher"),
        ("weights", "ema"),
        ("state_dict", "callbacks.EMACallback.ema_state_dict"),
        ("model", "modelEMA.stateDict"),
    ],
)
def test_raw_and_averaged_weights_are_asked_for(tmp_path: Path, raw: str, averaged: str) -> None:
    """Neither is taken without a word: loaders differ in which one they read."""
    whole: Any = {"epoch": 3, raw: dict(STATE), "optimizer": ADAM}
    level, (*outer, last) = whole, averaged.split(".")
    for key in outer:
        level = level.setdefault(key, {"updates": 7})
    level[last] = {"a": torch.zeros(2, 2)}
    path = saved(tmp_path / "model.pt", whole)
    with pytest.raises(CheckpointError, match="holds 2 state dicts") as caught:
        open_checkpoint(path)
    for key in (raw, averaged):
        assert re.search(rf"[(, ]{re.escape(key)}[,)]", str(caught.value))
    assert f"for example --key {averaged}, the average." in str(caught.value)
    assert torch.equal(open_checkpoint(path, key=raw).load("a"), STATE["a"])
    assert torch.equal(open_checkpoint(path, key=averaged).load("a"), torch.zeros(2, 2))


def test_one_state_dict_under_two_keys_is_asked_for(tmp_path: Path) -> None:
    """Only the one that is chosen is merged: a loader may read the other."""
    weights = dict(STATE)
    path = saved(tmp_path / "model.pt", {"params": weights, "params_ema": weights})
    with pytest.raises(CheckpointError, match=r"holds 2 state dicts \(params_ema, params\)"):
        open_checkpoint(path)
    assert torch.equal(open_checkpoint(path, key="params").load("a"), STATE["a"])


@pytest.mark.parametrize("averaged", ["ema", "ema_weights"])
def test_an_average_below_the_weights_is_asked_for(tmp_path: Path, averaged: str) -> None:
    path = saved(tmp_path / "model.pt", {**STATE, averaged: {"a": torch.zeros(2, 2)}})
    says = rf'2 state dicts \({averaged}, "" \(the top level\)\).*--key {averaged}, the average'
    with pytest.raises(CheckpointError, match=says):
        open_checkpoint(path)
    assert torch.equal(open_checkpoint(path, key=averaged).load("a"), torch.zeros(2, 2))
    source = open_checkpoint(path, key="")
    assert torch.equal(source.load("a"), STATE["a"])
    write_checkpoint(source, tmp_path / "out.pt", [], RECIPE)
    assert torch.equal(open_like(source, tmp_path / "out.pt").load("a"), STATE["a"])


@pytest.mark.parametrize(
    ("whole", "wrapper"),
    [
        ({"model_ema": STATE, "epoch": 3, "optimizer": ADAM}, "model_ema"),
        ({"model": STATE, "ema": None, "ema_decay": 0.99}, "model"),
        ({"model": STATE, "ema": {"decay": torch.tensor(0.9), "updates": 3}}, "model"),
        ({"model": STATE, "schema": {"tensor": torch.ones(3)}}, "model"),
        ({"model": STATE, "optimizer_ema": {"a": torch.ones(3)}}, "model"),
    ],
)
def test_one_of_them_alone_is_taken(tmp_path: Path, whole: Any, wrapper: str) -> None:
    assert open_checkpoint(saved(tmp_path / "model.pt", whole)).wrapper == wrapper


def test_key_may_hold_dots_and_need_not_be_known(tmp_path: Path) -> None:
    path = saved(tmp_path / "model.pt", {"a.b": {"c": STATE, "d": STATE}, "optimizer": STATE})
    assert open_checkpoint(path, key="a.b.c").wrapper == "a.b.c"
    assert open_checkpoint(path, key="optimizer").wrapper == "optimizer"


@pytest.mark.parametrize(
    ("whole", "key", "says"),
    [
        ({"params": STATE}, "parms", "no state dict under the key parms. Did you mean params?"),
        ({"params": STATE}, "zzz", "There is params."),
        (STATE, "zzz", r"Leave --key away; the file holds a \(Tensor\)"),
        ({"epoch": 3, "note": "x"}, None, r"holds epoch \(int\), note \(str\), a state dict"),
        ([torch.ones(2)], None, "holds one list, a state dict"),
        ({"one": STATE, "two": {"b": torch.ones(3)}}, None, r"2 state dicts \(one, two\)"),
        ({"optimizer": ADAM}, None, "a state dict"),
        ({}, None, "holds nothing, a state dict"),
    ],
)
def test_no_state_dict(tmp_path: Path, whole: Any, key: str | None, says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        open_checkpoint(saved(tmp_path / "model.pt", whole), key=key)


def test_object_that_contains_itself(tmp_path: Path) -> None:
    whole: dict[str, Any] = {"state_dict": dict(STATE), "inner": {}}
    whole["inner"]["model"] = whole["state_dict"]
    whole["inner"]["top"] = whole
    checkpoint = open_checkpoint(saved(tmp_path / "model.pt", whole))
    assert checkpoint.wrapper == "state_dict"
    write_checkpoint(checkpoint, tmp_path / "out.pt", [Edit("a", frozenset("a"), {})], RECIPE)
    assert list(reloaded(tmp_path / "out.pt")["inner"]["model"]) == ["a"]


def test_prefix_only_where_every_tensor_has_it(tmp_path: Path) -> None:
    mixed = {"module.a": torch.ones(2), "b": torch.ones(2)}
    assert open_checkpoint(saved(tmp_path / "mixed.pt", mixed)).prefix == ""
    extra = {"module.a": torch.ones(2), "_extra_state": {"x": 1}}
    assert open_checkpoint(saved(tmp_path / "extra.pt", extra)).prefix == "module."
    bare = {"module.": torch.ones(2)}
    assert open_checkpoint(saved(tmp_path / "bare.pt", bare)).prefix == ""


def test_ties_strides_parameters_and_entries_that_are_no_tensors(tmp_path: Path) -> None:
    weight = torch.randn(4, 6)
    state_dict = OrderedDict(
        embed=nn.Parameter(weight),
        head=weight,
        turned=torch.randn(3, 5).t(),
        frozen=nn.Parameter(torch.randn(2), requires_grad=False),
        gone=torch.randn(2),
        _extra_state={"scale": torch.ones(1), "note": (1, "x")},
    )
    path = saved(tmp_path / "model.pt", state_dict)
    checkpoint = open_checkpoint(path)
    assert checkpoint.ties() == (("embed", "head"),)
    assert "_extra_state" not in checkpoint.tensors
    edit = Edit("gone", frozenset({"gone"}), {"new": torch.ones(1)})
    write_checkpoint(checkpoint, tmp_path / "out.pt", [edit], RECIPE)
    before, after = reloaded(path), reloaded(tmp_path / "out.pt")
    assert list(after) == ["embed", "head", "turned", "frozen", "new", "_extra_state"]
    assert all(same(before[name], after[name]) for name in after if name != "new")
    assert after["embed"].data_ptr() == after["head"].data_ptr()
    clash = Edit("gone", frozenset(), {"_extra_state": torch.ones(1)})
    with pytest.raises(OutputError, match="_extra_state"):
        write_checkpoint(checkpoint, tmp_path / "bad.pt", [clash], RECIPE)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_values_that_left_are_not_in_the_file(tmp_path: Path, zipped: bool) -> None:
    flat = torch.arange(3000.0) + 0.5
    views = {"a": flat[:1000], "b": flat[1000:2000], "c": flat[1500:2500], "d": flat[2500:]}
    path = saved(tmp_path / "model.pt", views, zipped=zipped)
    edit = Edit("a", frozenset({"a", "d"}), {"new": torch.ones(10)[3:5]})
    write_checkpoint(open_checkpoint(path), tmp_path / "out.pt", [edit], RECIPE)
    data = (tmp_path / "out.pt").read_bytes()
    for gone in (flat[:1000], flat[2500:]):
        assert gone.numpy().tobytes() in path.read_bytes()
        assert gone.numpy()[:8].tobytes() not in data
        assert gone.numpy()[-8:].tobytes() not in data
    after = reloaded(tmp_path / "out.pt")
    assert all(same(after[name], views[name]) for name in "bc")
    assert after["b"][500:].data_ptr() == after["c"].data_ptr()
    assert after["new"].untyped_storage().nbytes() == 8


def test_storage_that_another_entry_needs_stays_whole(tmp_path: Path) -> None:
    flat = torch.arange(100.0)
    whole = {"state_dict": {"a": flat[:50], "b": flat[50:]}, "ema": [{"flat": flat}]}
    checkpoint = open_checkpoint(saved(tmp_path / "model.pt", whole), key="state_dict")
    write_checkpoint(checkpoint, tmp_path / "out.pt", [Edit("a", frozenset("a"), {})], RECIPE)
    after = reloaded(tmp_path / "out.pt")
    assert torch.equal(after["ema"][0]["flat"], flat)
    assert after["state_dict"]["b"].data_ptr() == after["ema"][0]["flat"][50:].data_ptr()


@pytest.mark.filterwarnings("ignore")
def test_unusual_tensors_pass_through(tmp_path: Path) -> None:
    state_dict = {
        "quantized": torch.quantize_per_tensor(torch.randn(4, 4), 0.1, 2, torch.qint8),
        "sparse": torch.eye(3).to_sparse(),
        "meta": torch.empty(2, 3, device="meta"),
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(3),
        "expanded": torch.ones(3, 1).expand(3, 4),
        "conjugate": torch.tensor([1 + 2j]).conj(),
        "nan": torch.tensor([float("nan"), float("inf"), -0.0]),
        "plain": torch.ones(2),
    }
    checkpoint = open_checkpoint(saved(tmp_path / "model.pt", state_dict))
    assert checkpoint.tensors["quantized"].dtype == torch.qint8
    assert checkpoint.tensors["sparse"].layout == torch.sparse_coo
    with pytest.raises(CheckpointError, match="meta lies on the meta device"):
        checkpoint.load("meta")
    edit = Edit("plain", frozenset({"plain"}), {})
    write_checkpoint(checkpoint, tmp_path / "out.pt", [edit], RECIPE)
    after = reloaded(tmp_path / "out.pt")
    assert list(after) == list(state_dict)[:-1]
    assert same(after["quantized"].int_repr(), state_dict["quantized"].int_repr())
    assert after["quantized"].q_zero_point() == 2
    assert after["meta"].shape == (2, 3)
    assert after["meta"].is_meta
    assert after["nan"].view(torch.int32).tolist() == state_dict["nan"].view(torch.int32).tolist()
    for name in ("sparse", "empty", "scalar", "expanded", "conjugate"):
        assert same(after[name], state_dict[name]), name


def test_same_bytes_whatever_the_name(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(saved(tmp_path / "model.pt", network().state_dict()))
    for name in ("one.pt", "zwei.ckpt", "drei.pth.tar"):
        write_checkpoint(checkpoint, tmp_path / name, [MERGE], RECIPE)
    assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "zwei.ckpt").read_bytes()
    assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "drei.pth.tar").read_bytes()


def test_content_decides_not_the_name(tmp_path: Path) -> None:
    path = saved(tmp_path / "größe.weights", network().state_dict())
    assert open_checkpoint(path).format == "pt"
    with pytest.raises(CheckpointError, match=r"named \.safetensors.*Rename"):
        open_checkpoint(saved(tmp_path / "model.safetensors", network().state_dict()))


def test_loading_does_not_change_the_file(tmp_path: Path) -> None:
    path = saved(tmp_path / "model.pt", network().state_dict())
    before = path.read_bytes()
    open_checkpoint(path).load("0.weight").zero_()
    assert path.read_bytes() == before


def test_sha256_is_the_files(tmp_path: Path) -> None:
    path = saved(tmp_path / "model.pt", network().state_dict())
    assert open_checkpoint(path).sha256() == hashlib.sha256(path.read_bytes()).hexdigest()


def test_unknown_name_names_the_nearest(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(saved(tmp_path / "model.pt", network().state_dict()))
    with pytest.raises(CheckpointError, match=r"no tensor 0\.wieght\. Did you mean 0\.weight"):
        checkpoint.load("0.wieght")


def test_a_file_cut_short_while_it_is_read_is_told_of(tmp_path: Path) -> None:
    """Through a map of the file, these reads would end the process by SIGBUS."""
    big = {name: torch.randn(50_000) for name in ("a", "b")}
    path = saved(tmp_path / "in.pt", {"state_dict": big, "optimizer": {"c": torch.ones(50_000)}})
    source = open_checkpoint(path)
    assert torch.equal(source.load("b"), big["b"])
    os.truncate(path, 10_000)
    says = "in.pt: ends within its tensors, and was whole when it was opened"
    with pytest.raises(CheckpointError, match=says):
        source.load("b")
    for name in ("out.pt", "out.safetensors", "out.safetensors.index.json"):
        with pytest.raises(CheckpointError, match=says):
            write_checkpoint(source, tmp_path / name, [], RECIPE)
    assert [found.name for found in tmp_path.iterdir()] == ["in.pt"]


def test_only_maps_of_the_archive_count_as_such(tmp_path: Path) -> None:
    """Another file's map may be gone later, and new values stand at its addresses."""
    other = torch.load(saved(tmp_path / "other.pt", {"x": torch.ones(50_000)}), mmap=True)["x"]
    value = torch.arange(50_000.0)
    source = open_checkpoint(saved(tmp_path / "in.pt", {"a": value}))
    edit = Edit("a", frozenset(), {"b": other})
    write_checkpoint(source, tmp_path / "out.pt", [edit], RECIPE)
    found = reloaded(tmp_path / "out.pt")
    assert torch.equal(found["a"], value)
    assert torch.equal(found["b"], torch.ones(50_000))


def test_layers_that_were_loaded_do_not_follow_the_file(tmp_path: Path) -> None:
    path = saved(tmp_path / "in.pt", {"a": torch.ones(5)})
    held = open_checkpoint(path).load("a")
    saved(path, {"a": torch.zeros(5)})
    assert torch.equal(held, torch.ones(5))


def test_values_of_another_byte_order_are_read_as_torch_reads_them(tmp_path: Path) -> None:
    value = torch.tensor([1.0, 2.0, -3.5])
    path = saved(tmp_path / "in.pt", {"a": value})
    turned = tmp_path / "turned.pt"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(turned, "w") as new:
        for record in old.infolist():
            data = old.read(record)
            if record.filename.endswith("byteorder"):
                data = b"big"
            elif "/data/" in record.filename:
                data = value.numpy().byteswap().tobytes()
            new.writestr(record.filename, data)
    source = open_checkpoint(turned)
    assert torch.equal(source.load("a"), value)
    write_checkpoint(source, tmp_path / "out.pt", [], RECIPE)
    assert torch.equal(reloaded(tmp_path / "out.pt")["a"], value)


def test_archives_are_aligned_sound_and_the_same_each_time(tmp_path: Path) -> None:
    source = open_checkpoint(saved(tmp_path / "in.pt", network().state_dict()))
    contents = []
    for name in ("one.pt", "two.pt"):
        write_checkpoint(source, tmp_path / name, [MERGE], RECIPE)
        contents.append((tmp_path / name).read_bytes())
    assert contents[0] == contents[1]
    with zipfile.ZipFile(tmp_path / "one.pt") as archive:
        assert archive.testzip() is None  # every record's checksum holds
        names = [record.filename for record in archive.infolist()]
    assert names[0] == "archive/data.pkl"  # as torch has it
    assert len(names) == len(set(names))
    plain = torch.load(tmp_path / "one.pt", weights_only=True)
    mapped = torch.load(tmp_path / "one.pt", weights_only=True, mmap=True)
    assert same(plain, mapped)
    assert all(tensor.data_ptr() % 64 == 0 for tensor in mapped.values())


def test_a_record_beyond_two_gigabytes_has_its_own_form_of_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit lowered: zip64 fields stand where the data of a larger record would begin."""
    value = torch.arange(1000.0)
    source = open_checkpoint(saved(tmp_path / "in.pt", {"a": value, "b": value[:3].clone()}))
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 2000)
    write_checkpoint(source, tmp_path / "out.pt", [], RECIPE)
    monkeypatch.undo()
    mapped = torch.load(tmp_path / "out.pt", weights_only=True, mmap=True)
    assert torch.equal(mapped["a"], value)
    assert torch.equal(mapped["b"], value[:3])
    assert mapped["a"].data_ptr() % 64 == 0
    assert torch.equal(open_checkpoint(tmp_path / "out.pt").load("a"), value)
