"""Bad input: one clear message a problem, exit 2, no traceback, nothing written or lost."""

import json
import os
import resource
import struct
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import prune

from tests.bad_manifests import MANIFESTS, MISFITS, PAIRS, Case, entry
from tests.command_line import Outcome, installed_command, plain_environment, run_here


def tensors() -> "OrderedDict[str, Tensor]":
    """Two layers that merge, and others to make mistakes with."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return OrderedDict(
        {
            "body.0.weight": normal(8, 4, 1, 1),
            "body.0.bias": normal(8),
            "body.1.weight": normal(2, 8, 3, 3),
            "norm.weight": normal(8),
            "norm.bias": normal(8),
            "norm.running_mean": normal(8),
            "norm.running_var": normal(8).abs(),
            "wide.weight": normal(6, 9, 1, 1),
            "line.weight": normal(3, 8, 5),
            "head.weight": normal(10, 2),
        }
    )


def written_pickle(path: Path, value: Any = None, **options: Any) -> Path:
    torch.save(tensors() if value is None else value, path, **options)
    return path


def state_of(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Everything that stands in a folder: kind, bytes and time of each file."""
    found: dict[str, tuple[Any, ...]] = {}
    for path in sorted(folder.rglob("*")):
        stat = path.lstat()
        content = path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(folder))] = (stat.st_mode, stat.st_mtime_ns, content)
    return found


def assert_refused(outcome: Outcome, *problems: tuple[str, ...]) -> None:
    """Exit 2 and, for each of `problems`, one line of standard error with all its words."""
    assert outcome.status == 2, outcome
    assert outcome.stdout == ""
    assert "Traceback" not in outcome.stderr
    assert outcome.stderr.splitlines() == [f"error: {error}" for error in outcome.errors]
    assert len(outcome.errors) == len(problems), outcome.errors
    for words in problems:
        assert any(all(word in error for word in words) for error in outcome.errors), (
            words,
            outcome.errors,
        )
    for error in outcome.errors:
        where, _, rest = error.partition(": ")
        assert where, error
        assert rest, error
        assert error.endswith((".", "?", "version: 1")), error


def assert_merge_refused(
    model: Path, pairs: Path, folder: Path, *problems: tuple[str, ...], options: Any = ()
) -> None:
    """Nothing in `folder` is written, changed or touched, whichever way the merge is asked for."""
    before = state_of(folder)
    for more in ([], ["--json"], ["-q"], ["--dry-run"]):
        if "--dry-run" in more and "-o" in options:
            continue
        assert_refused(run_here("merge", model, "--pairs", pairs, *options, *more), *problems)
        assert state_of(folder) == before


# Files that are no checkpoint.


def missing(folder: Path) -> Path:
    written_pickle(folder / "modell.pt")
    return folder / "model.pt"


def empty(folder: Path) -> Path:
    (folder / "model.pt").touch()
    return folder / "model.pt"


def empty_safetensors(folder: Path) -> Path:
    (folder / "model.safetensors").touch()
    return folder / "model.safetensors"


def truncated(path: Path, share: float) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def truncated_zip(folder: Path) -> Path:
    return truncated(written_pickle(folder / "model.pt"), 0.6)


def truncated_zip_by_one_byte(folder: Path) -> Path:
    path = written_pickle(folder / "model.pt")
    path.write_bytes(path.read_bytes()[:-1])
    return path


def truncated_legacy(folder: Path) -> Path:
    path = written_pickle(folder / "model.pth", _use_new_zipfile_serialization=False)
    return truncated(path, 0.5)


def truncated_legacy_data(folder: Path) -> Path:
    path = written_pickle(folder / "model.pth", _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-4])
    return path


def truncated_safetensors(folder: Path) -> Path:
    save_file(tensors(), folder / "model.safetensors")
    return truncated(folder / "model.safetensors", 0.7)


def truncated_safetensors_header(folder: Path) -> Path:
    save_file(tensors(), folder / "model.safetensors")
    return truncated(folder / "model.safetensors", 0.1)


def damaged_safetensors_header(folder: Path) -> Path:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 12) + b'{"a": [1, 2 ')
    return folder / "model.safetensors"


@pytest.mark.filterwarnings("ignore")
def torchscript(folder: Path) -> Path:
    torch.jit.save(torch.jit.script(nn.Conv2d(2, 2, 1)), str(folder / "model.pt"))
    return folder / "model.pt"


def whole_module(folder: Path) -> Path:
    return written_pickle(folder / "model.pt", nn.Sequential(nn.Conv2d(2, 2, 1)))


def whole_module_legacy(folder: Path) -> Path:
    module = nn.Sequential(nn.Conv2d(2, 2, 1))
    return written_pickle(folder / "model.pt", module, _use_new_zipfile_serialization=False)


def image(folder: Path) -> Path:
    (folder / "model.pt").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    return folder / "model.pt"


def lfs_pointer(folder: Path) -> Path:
    (folder / "model.safetensors").write_text(
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1284690\n"
    )
    return folder / "model.safetensors"


def directory(folder: Path) -> Path:
    (folder / "model").mkdir()
    written_pickle(folder / "model" / "epoch_3.pt")
    return folder / "model"


def text(folder: Path) -> Path:
    (folder / "model.pt").write_text("not a checkpoint\n")
    return folder / "model.pt"


def no_tensors(folder: Path) -> Path:
    return written_pickle(folder / "model.pt", {"epoch": 3, "note": "done"})


def index_without_its_shards(folder: Path) -> Path:
    index = folder / "model.safetensors.index.json"
    where = dict.fromkeys(tensors(), "model-00001-of-00001.safetensors")
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return index


FILES: dict[Callable[[Path], Path], tuple[str, ...]] = {
    missing: ("no such file", "modell.pt"),
    empty: ("empty", "needed"),
    empty_safetensors: ("empty", "needed"),
    truncated_zip: ("cut off", "needed"),
    truncated_zip_by_one_byte: ("cut off", "needed"),
    truncated_legacy: ("cut off", "needed"),
    truncated_legacy_data: ("cut off", "needed"),
    truncated_safetensors: ("damaged", "needed"),
    truncated_safetensors_header: ("damaged", "needed"),
    damaged_safetensors_header: ("damaged", "needed"),
    torchscript: ("TorchScript", "needed", "state_dict"),
    whole_module: ("Sequential", "needed", "state_dict"),
    whole_module_legacy: ("Sequential", "needed", "state_dict"),
    image: ("PNG", "needed"),
    lfs_pointer: ("git-lfs", "needed", "git lfs pull"),
    directory: ("directory", "needed", "epoch_3.pt"),
    text: ("needed",),
    no_tensors: ("epoch", "state dict", "needed"),
    index_without_its_shards: ("model-00001-of-00001.safetensors",),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("build", FILES, ids=lambda build: build.__name__)
def test_file_that_is_no_checkpoint(tmp_path: Path, build: Callable[[Path], Path]) -> None:
    model = build(tmp_path)
    (tmp_path / "pairs.yaml").write_text(PAIRS)
    told = (model.name, *FILES[build])
    options = ("-o", tmp_path / "out.pt") if not model.suffix else ()
    assert_merge_refused(model, tmp_path / "pairs.yaml", tmp_path, told, options=options)
    before = state_of(tmp_path)
    assert_refused(run_here("inspect", model), told)
    sound = written_pickle(tmp_path / "sound.pt")
    before["sound.pt"] = state_of(tmp_path)["sound.pt"]
    assert_refused(run_here("verify", model, sound), told)
    assert_refused(run_here("verify", sound, model), told)
    assert state_of(tmp_path) == before


# Manifests that cannot be read, or say what no manifest says.


def run_case(folder: Path, case: Case) -> None:
    model = written_pickle(folder / "model.pt")
    pairs = folder / "pairs.yaml"
    pairs.write_text(case.text)
    assert_merge_refused(model, pairs, folder, *case.problems, options=case.options)


@pytest.mark.stress
@pytest.mark.parametrize("case", MANIFESTS, ids=lambda case: case.name)
def test_manifest_that_is_none(tmp_path: Path, case: Case) -> None:
    run_case(tmp_path, case)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, ("pears.yaml", "no such file", "pairs.yaml")),
        (b"\xff\xfe\x00", ("pears.yaml", "text", "needed")),
        (b"\x00\x01\x02", ("pears.yaml",)),
        ("directory", ("pears.yaml", "needed")),
    ],
    ids=["missing", "not text", "control characters", "directory"],
)
def test_manifest_file_that_cannot_be_read(
    tmp_path: Path, content: Any, told: tuple[str, ...]
) -> None:
    model = written_pickle(tmp_path / "model.pt")
    (tmp_path / "pairs.yaml").write_text(PAIRS)
    given = tmp_path / "pears.yaml"
    if content == "directory":
        given.mkdir()
    elif content is not None:
        given.write_bytes(content)
    assert_merge_refused(model, given, tmp_path, told)
    before = state_of(tmp_path)
    assert_refused(run_here("verify", model, model, "--pairs", given), told)
    assert state_of(tmp_path) == before


# Manifests that do not fit the checkpoint.


@pytest.mark.stress
@pytest.mark.parametrize("case", MISFITS, ids=lambda case: case.name)
def test_manifest_that_does_not_fit(tmp_path: Path, case: Case) -> None:
    run_case(tmp_path, case)


def test_all_problems_of_a_manifest_are_told_in_one_run(tmp_path: Path) -> None:
    """What it says wrongly in itself and what does not fit the checkpoint, entry by entry."""
    words = Case(
        "words",
        "version: 1\n"
        "boarder: exact\n"
        "pairs:\n"
        "  - {first: {name: body.0, stride: two, paddin: 1}, second: {name: body.1}}\n"
        "  - {chain: [{name: norm, type: batch_norm}, {type: poool}]}\n"
        "  - {first: {name: body.0}, second: {}}\n",
        (
            ("pairs.yaml:2 boarder",),
            ("pairs.yaml:4 pairs[0].first.stride",),
            ("pairs.yaml:4 pairs[0].first.paddin",),
            ("pairs.yaml:5 pairs[1].chain[0]", "eps"),
            ("pairs.yaml:5 pairs[1].chain[1].type", "poool"),
            ("pairs.yaml:6 pairs[2].second", "name"),
        ),
    )
    run_case(tmp_path, words)
    fit = Case(
        "fit",
        "version: 1\n"
        "pairs:\n"
        "  - {first: {name: bodi.0}, second: {name: bodi.1}}\n"
        "  - {first: {name: body.0}, second: {name: wide}}\n"
        "  - {first: {name: body.0, groups: 3}, second: {name: body.1}}\n"
        "  - {first: {name: 'x.{i}'}, second: {name: body.1}}\n"
        "  - {first: {name: body.0}, second: {name: body.1, padding: 1}}\n"
        "  - {chain: [{name: head, type: linear}], into: norm}\n",
        (
            ("pairs.yaml:3 pairs[0].first", "bodi.0.weight"),
            ("pairs.yaml:3 pairs[0].second", "bodi.1.weight"),
            ("pairs.yaml:4 pairs[1].second", "wide"),
            ("pairs.yaml:5 pairs[2].first", "groups"),
            ("pairs.yaml:6 pairs[3]", "x.{i}"),
            ("pairs.yaml:7 pairs[4].second", "border: interior"),
            ("pairs.yaml:8 pairs[5]", "norm.weight", "overwrite"),
            ("pairs.yaml:8 pairs[5]", "norm.bias", "overwrite"),
        ),
    )
    run_case(tmp_path, fit)


def test_problems_of_words_and_of_fit_are_told_together(tmp_path: Path) -> None:
    """A key that is misspelt in one entry hides no missing layer of another."""
    run_case(
        tmp_path,
        Case(
            "both",
            "version: 1\n"
            "pairs:\n"
            "  - {first: {name: body.0, paddin: 1}, second: {name: body.1}}\n"
            "  - {first: {name: bodi.0}, second: {name: wide}}\n",
            (
                ("pairs.yaml:3 pairs[0].first.paddin", "unknown key"),
                ("pairs.yaml:4 pairs[1].first", "bodi.0.weight"),
            ),
        ),
    )


def test_every_misfit_of_one_entry_is_told(tmp_path: Path) -> None:
    run_case(
        tmp_path,
        Case(
            "one entry",
            entry("{first: {name: body.0, groups: 3}, second: {name: body.1, groups: 3}}"),
            (("pairs[0].first", "groups"), ("pairs[0].second", "groups")),
        ),
    )


def test_growth_and_refusals_are_told_together(tmp_path: Path) -> None:
    grown = OrderedDict(tensors())
    grown["thin.0.weight"] = torch.randn(1, 4, 5, 5)
    grown["thin.1.weight"] = torch.randn(64, 1, 5, 5)
    written_pickle(tmp_path / "model.pt", grown)
    (tmp_path / "pairs.yaml").write_text(
        "version: 1\npairs:\n"
        "  - {first: {name: thin.0}, second: {name: thin.1}}\n"
        "  - {first: {name: body.0}, second: {name: body.1, padding: 1}}\n"
    )
    assert_merge_refused(
        tmp_path / "model.pt",
        tmp_path / "pairs.yaml",
        tmp_path,
        ("pairs.yaml:3 pairs[0]", "1,700", "20,736", "--growth"),
        ("pairs.yaml:4 pairs[1].second", "border: interior"),
    )


# Values that no merge can be made of.


def with_value(name: str, value: float) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        changed = tensors()
        changed[name].view(-1)[5] = value
        return written_pickle(folder / "model.pt", changed)

    return build


@pytest.mark.parametrize(
    ("name", "value", "place"),
    [
        ("body.0.weight", float("nan"), "[1, 1, 0, 0]"),
        ("body.1.weight", float("inf"), "[0, 0, 1, 2]"),
        ("body.0.bias", float("-inf"), "[5]"),
        ("norm.running_mean", float("nan"), "[5]"),
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_values_that_are_not_finite(
    tmp_path: Path, name: str, value: float, place: str, suffix: str
) -> None:
    changed = tensors()
    changed[name].view(-1)[5] = value
    model = tmp_path / f"model{suffix}"
    if suffix == ".pt":
        written_pickle(model, changed)
    else:
        save_file(changed, model)
    (tmp_path / "pairs.yaml").write_text(
        entry(
            "{chain: [{name: body.0}, {name: norm, type: batch_norm, eps: 1.0e-5}, {name: body.1}]}"
        )
    )
    before = state_of(tmp_path)
    for options in ([], ["--json"]):
        outcome = run_here("merge", model, "--pairs", tmp_path / "pairs.yaml", *options)
        assert_refused(outcome, (name, str(value), place, "finite", "needed"))
        assert state_of(tmp_path) == before


def test_sum_beyond_the_dtype(tmp_path: Path) -> None:
    changed = OrderedDict((name, tensor.half()) for name, tensor in tensors().items())
    changed["body.0.weight"] *= 1000
    changed["body.1.weight"] *= 1000
    written_pickle(tmp_path / "model.pt", changed)
    (tmp_path / "pairs.yaml").write_text(PAIRS)
    before = state_of(tmp_path)
    outcome = run_here("merge", tmp_path / "model.pt", "--pairs", tmp_path / "pairs.yaml")
    assert_refused(outcome, ("pairs.yaml:3 pairs[0]", "body.0.weight", "float16", "wider dtype"))
    assert state_of(tmp_path) == before


def test_value_that_is_not_finite_in_a_tensor_that_stays_is_no_ones_business(
    tmp_path: Path,
) -> None:
    written = with_value("head.weight", float("nan"))(tmp_path)
    (tmp_path / "pairs.yaml").write_text(PAIRS)
    assert run_here("merge", written, "--pairs", tmp_path / "pairs.yaml").status == 0
    assert run_here("verify", written, tmp_path / "model.squeezed.pt").status == 0


# Dtypes and parametrizations that are not merged.


def integer() -> dict[str, Any]:
    return {**tensors(), "body.1.weight": torch.ones(2, 8, 3, 3, dtype=torch.int8)}


def float8() -> dict[str, Any]:
    return {**tensors(), "body.1.weight": torch.ones(2, 8, 3, 3).to(torch.float8_e4m3fn)}


def quantized() -> dict[str, Any]:
    weight = torch.quantize_per_tensor(torch.ones(2, 8, 3, 3), 0.1, 0, torch.qint8)
    return {**tensors(), "body.1.weight": weight}


def complex_() -> dict[str, Any]:
    return {**tensors(), "body.1.weight": torch.ones(2, 8, 3, 3, dtype=torch.complex64)}


def sparse() -> dict[str, Any]:
    return {**tensors(), "body.1.weight": torch.ones(2, 8, 3, 3).to_sparse()}


def integer_bias() -> dict[str, Any]:
    return {**tensors(), "body.1.bias": torch.ones(2, dtype=torch.int32)}


def spectral_norm() -> dict[str, Any]:
    conv = torch.nn.utils.parametrizations.spectral_norm(nn.Conv2d(8, 2, 3))
    return {**without("body.1.weight"), **prefixed("body.1.", conv.state_dict())}


def old_spectral_norm() -> dict[str, Any]:
    conv = torch.nn.utils.spectral_norm(nn.Conv2d(8, 2, 3))
    return {**without("body.1.weight"), **prefixed("body.1.", conv.state_dict())}


def pruned() -> dict[str, Any]:
    conv = nn.Conv2d(8, 2, 3)
    prune.l1_unstructured(conv, "weight", 0.5)
    return {**without("body.1.weight"), **prefixed("body.1.", conv.state_dict())}


def without(name: str) -> dict[str, Any]:
    return {key: tensor for key, tensor in tensors().items() if key != name}


def prefixed(prefix: str, state_dict: Any) -> dict[str, Any]:
    return {prefix + name: tensor.detach() for name, tensor in state_dict.items()}


STORED: dict[Callable[[], dict[str, Any]], tuple[str, ...]] = {
    integer: ("body.1.weight", "int8", "needed"),
    float8: ("body.1.weight", "float8_e4m3fn", "needed"),
    quantized: ("body.1.weight", "qint8", "needed", "Dequantize"),
    complex_: ("body.1.weight", "complex64", "needed"),
    sparse: ("body.1.weight", "sparse", "needed"),
    integer_bias: ("body.1.bias", "int32", "needed"),
    spectral_norm: ("body.1.weight", "spectral norm", "needed"),
    old_spectral_norm: ("body.1.weight", "spectral norm", "needed"),
    pruned: ("body.1.weight", "pruning", "needed"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("stored", STORED, ids=lambda stored: stored.__name__.strip("_"))
def test_weights_in_a_form_that_is_not_merged(tmp_path: Path, stored: Any) -> None:
    model = written_pickle(tmp_path / "model.pt", stored())
    (tmp_path / "pairs.yaml").write_text(PAIRS)
    told = ("pairs.yaml:3 pairs[0].second", *STORED[stored])
    assert_merge_refused(model, tmp_path / "pairs.yaml", tmp_path, told)


def test_same_forms_beside_the_merged_layers_are_kept(tmp_path: Path) -> None:
    beside = {
        **tensors(),
        "scale": torch.ones(3, dtype=torch.int8),
        "eight": float8()["body.1.weight"],
    }
    written_pickle(tmp_path / "model.pt", beside)
    (tmp_path / "pairs.yaml").write_text(PAIRS)
    outcome = run_here("merge", tmp_path / "model.pt", "--pairs", tmp_path / "pairs.yaml")
    assert outcome.status == 0, outcome
    after = torch.load(tmp_path / "model.squeezed.pt", weights_only=True)
    assert after["eight"].dtype == torch.float8_e4m3fn


# Outputs that cannot be, or must not be written.


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    """A checkpoint that merges, with its manifest beside it."""
    (tmp_path / "pairs.yaml").write_text(PAIRS)
    return written_pickle(tmp_path / "model.pt")


def assert_output_refused(sound: Path, output: Path, *words: str, options: Any = ()) -> None:
    given = ("-o", output, *options)
    assert_merge_refused(
        sound, sound.with_name("pairs.yaml"), sound.parent, (str(output), *words), options=given
    )


def test_output_is_the_input(sound: Path) -> None:
    for options in ([], ["--overwrite"]):
        assert_output_refused(sound, sound, "is an input", options=options)


def test_output_is_the_input_by_another_path(sound: Path, monkeypatch: Any) -> None:
    (sound.parent / "sub").mkdir()
    roundabout = sound.parent / "sub" / ".." / "model.pt"
    assert_output_refused(sound, roundabout, "is an input", options=["--overwrite"])
    monkeypatch.chdir(sound.parent)
    outcome = run_here("merge", sound, "--pairs", "pairs.yaml", "-o", "model.pt", "--overwrite")
    assert_refused(outcome, ("model.pt", "is an input"))


@pytest.mark.parametrize("link", [os.symlink, os.link], ids=["symbolic", "hard"])
def test_output_is_a_link_to_the_input(sound: Path, link: Callable[[Path, Path], None]) -> None:
    link(sound, sound.with_name("link.pt"))
    output = sound.with_name("link.pt")
    for options in ([], ["--overwrite"]):
        assert_output_refused(sound, output, "is an input", options=options)


def test_input_is_a_link_to_the_output(sound: Path) -> None:
    real = sound.rename(sound.with_name("real.pt"))
    sound.symlink_to(real)
    assert_output_refused(sound, real, "is an input", options=["--overwrite"])


def test_output_is_the_manifest(sound: Path) -> None:
    output = sound.with_name("pairs.yaml")
    assert_output_refused(sound, output, "is an input", options=["--overwrite"])


def test_output_exists(sound: Path) -> None:
    output = sound.with_name("out.pt")
    output.write_bytes(b"precious")
    assert_output_refused(sound, output, "exists already", "--overwrite")


def test_an_output_that_exists_hides_no_problem_of_the_manifest(sound: Path) -> None:
    pairs, output = sound.with_name("pairs.yaml"), sound.with_name("out.pt")
    pairs.write_text(pairs.read_text().replace("body", "bodi"))
    output.write_bytes(b"precious")
    done = run_here("merge", sound, "--pairs", pairs, "-o", output)
    assert done.status == 2
    assert done.errors[0].startswith(f"{output}: exists already")
    assert all("bodi" in error for error in done.errors[1:])
    assert len(done.errors) > 1
    assert output.read_bytes() == b"precious"


def test_output_directory_is_missing(sound: Path) -> None:
    output = sound.parent / "no" / "such" / "out.pt"
    assert_output_refused(sound, output, "directory", "does not exist")


def test_output_directory_is_a_file(sound: Path) -> None:
    (sound.parent / "file").write_text("x")
    output = sound.parent / "file" / "out.pt"
    assert_output_refused(sound, output, "is not a directory")


def test_output_is_a_directory(sound: Path) -> None:
    (sound.parent / "out.pt").mkdir()
    assert_output_refused(sound, sound.parent / "out.pt", "a directory", options=["--overwrite"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_output_directory_cannot_be_written(sound: Path) -> None:
    closed = sound.parent / "closed"
    closed.mkdir(mode=0o555)
    assert_output_refused(sound, closed / "out.pt", "cannot be written", "permissions")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no /proc here")
def test_output_directory_takes_no_files_from_anyone(sound: Path) -> None:
    """Not even from root: what the permissions seem to allow fails when it is done."""
    before = state_of(sound.parent)
    output = Path("/proc/self/out.pt")
    outcome = run_here("merge", sound, "--pairs", sound.with_name("pairs.yaml"), "-o", output)
    assert_refused(outcome, ("/proc/self", "cannot be"))
    assert state_of(sound.parent) == before


@pytest.mark.parametrize("name", ["out", "out.onnx", "out.txt", ".pt"])
def test_output_of_no_known_format(sound: Path, name: str) -> None:
    output = sound.with_name(name)
    assert_output_refused(sound, output, "suffix", ".safetensors")


def test_output_name_too_long(sound: Path) -> None:
    output = sound.with_name("x" * 300 + ".pt")
    before = state_of(sound.parent)
    outcome = run_here("merge", sound, "--pairs", sound.with_name("pairs.yaml"), "-o", output)
    assert_refused(outcome, ("xxx.pt", "too long"))
    assert state_of(sound.parent) == before


@pytest.mark.stress
def test_disk_that_fills_up(sound: Path) -> None:
    """A limit on the size of files stands for a full disk: the write fails in its midst."""
    large = {**tensors(), "embed.weight": torch.ones(1000, 1000)}
    written_pickle(sound, large)
    standing = sound.with_name("standing.pt")
    standing.write_bytes(b"an earlier result")
    before = state_of(sound.parent)
    done = subprocess.run(
        [
            installed_command(),
            "merge",
            sound,
            "--pairs",
            sound.with_name("pairs.yaml"),
            "-o",
            standing,
            "--overwrite",
        ],
        capture_output=True,
        text=True,
        check=False,
        env=plain_environment(),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)),
    )
    outcome = Outcome(done.returncode, done.stdout, done.stderr)
    assert_refused(outcome, ("standing.pt", "cannot be written"))
    assert state_of(sound.parent) == before


@pytest.mark.skipif(sys.platform == "win32", reason="no such pipes there")
def test_input_that_is_a_pipe_is_not_waited_for(sound: Path) -> None:
    pipe = sound.with_name("pipe.pt")
    os.mkfifo(pipe)
    outcome = run_here("merge", pipe, "--pairs", sound.with_name("pairs.yaml"))
    assert_refused(outcome, ("pipe.pt", "needed"))
    outcome = run_here(
        "merge", sound, "--pairs", sound.with_name("pairs.yaml"), "-o", pipe, "--overwrite"
    )
    assert_refused(outcome, ("pipe.pt", "needed"))


@pytest.mark.parametrize("options", [["--key", "x"], ["--key", ""]])
def test_key_for_a_file_that_has_none(sound: Path, options: list[str]) -> None:
    save_file(tensors(), sound.with_name("flat.safetensors"))
    outcome = run_here(
        "merge", sound.with_name("flat.safetensors"), "--pairs", sound.with_name("pairs.yaml"),
        *options,
    )  # fmt: skip
    assert_refused(outcome, ("flat.safetensors", "--key"))


def test_unknown_key_names_the_nearest(sound: Path) -> None:
    written_pickle(sound, {"params_ema": tensors(), "params": tensors()})
    pairs = sound.with_name("pairs.yaml")
    told = ("model.pt", "parms", "Did you mean params")
    assert_merge_refused(sound, pairs, sound.parent, told, options=("--key", "parms"))
    told = ("model.pt", "params_ema", "params", "--key")
    assert_merge_refused(sound, pairs, sound.parent, told)
