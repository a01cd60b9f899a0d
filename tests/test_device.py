"""Merging and verifying on another device, which here is pretended: see `pretended_cuda`."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from convsqueeze import merge_file, merge_state_dict
from convsqueeze.algebra import conv
from convsqueeze.algebra.groups import cells, joined
from convsqueeze.device import CPU, computing_on, device_named, summing_directly
from convsqueeze.errors import DeviceError, VerificationError
from convsqueeze.manifest import manifest_from_data
from convsqueeze.pipeline import verify_files
from convsqueeze.verify import Settings, comparison
from tests import border_checkpoint, mixed_checkpoint
from tests.command_line import BLOCKS, SESR, SESR_PAIRS, run_here
from tests.device_cases import FILES, LARGE, SMALL, Tensors, large_case, small
from tests.fault_tables import index_of
from tests.mixed_checkpoint import MERGED
from tests.planted import DTYPES, NARROW, saved
from tests.pretended_cuda import (
    CUDA,
    FORGOTTEN,
    MULTIPLIES,
    SITES,
    MixedDevices,
    OnCuda,
    moved,
    pretended_cuda,
)
from tests.squeezed_files import moved_by_ulps, put_together, taken_apart

Case = tuple[Tensors, dict[str, Any]]


def merged(case: Case, **options: Any) -> tuple[Any, Any]:
    return merge_state_dict(case[0], case[1], growth="allow", **options)


def assert_same_bits(found: Any, wanted: Any) -> None:
    assert list(found) == list(wanted)
    for name, tensor in found.items():
        assert type(tensor) is Tensor, name
        assert tensor.dtype == wanted[name].dtype
        assert torch.equal(_bytes(tensor), _bytes(wanted[name])), name


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)


# The pretended device itself


aten = torch.ops.aten
MIXES: dict[str, tuple[Callable[..., Any], bool]] = {
    "sum": (lambda here, there: there + here, False),
    "sum with a number": (lambda here, there: there + here.sum(), True),
    "product": (lambda here, there: there @ here, False),
    "product alone": (lambda here, there: there @ there, True),
    "chosen": (lambda here, there: torch.where(here > 0, there, 0.0), False),
    "chosen by a number": (lambda here, there: torch.where(there > 0, there, here.sum()), True),
    "indexed": (lambda here, there: aten.index(there, [None, places(here)]), True),
    "put": (lambda here, there: aten.index_put(there, [places(here)], there), True),
    "put from afar": (lambda here, there: aten.index_put(there, [places(there)], here), False),
    "index_select": (lambda here, there: there.index_select(0, places(here)), False),
    "index_add": (lambda here, there: there.index_add(0, places(here), there), False),
    "side by side": (lambda here, there: torch.cat([here, there]), False),
    "copied": (lambda here, there: aten.copy_(there.clone(), here), True),
}
REFUSED_TOO: dict[str, Callable[..., Any]] = {
    "number in place": lambda here, there: here.sum().add_(there.sum()),
    "indexed from afar": lambda here, there: here[:, places(there)],
    "indexed from afar by an operator": lambda here, there: aten.index(here, [places(there)]),
    "convolved": lambda here, there: torch.conv1d(there[None], here[..., None]),
    "stacked": lambda here, there: torch.stack([here.sum(), there.sum()]),
}
"""By a real device, of which `FakeTensorMode` says something else or nothing."""


def places(tensor: Tensor) -> Tensor:
    return (aten.select(tensor, 0, 0) > 9).long()


@pytest.mark.parametrize("name", MIXES)
def test_the_pretended_device_refuses_what_torch_refuses(name: str) -> None:
    """By torch's own account: `FakeTensorMode` knows devices, and computes nothing."""
    run, allowed = MIXES[name]
    with FakeTensorMode(), torch.no_grad():
        here = torch.ones(4, 4, dtype=torch.float64)
        there = torch.ones(4, 4, dtype=torch.float64, device="cuda:0")
        assert succeeds(lambda: run(here, there)) == allowed
    with pretended_cuda():
        assert succeeds(lambda: run(torch.eye(4).double(), moved(torch.eye(4).double()))) == allowed


@pytest.mark.parametrize("name", REFUSED_TOO)
def test_the_pretended_device_refuses_what_a_real_one_does(name: str) -> None:
    with pretended_cuda(), pytest.raises(MixedDevices, match="device"):
        REFUSED_TOO[name](torch.eye(4).double(), moved(torch.eye(4).double()))


def succeeds(call: Callable[[], Any]) -> bool:
    try:
        call()
    except RuntimeError as error:
        if not re.search("same device|two devices|Mismatching .* device", str(error)):
            raise
        return False
    return True


def test_the_pretended_device_keeps_its_values_to_itself() -> None:
    given = torch.arange(6.0).view(2, 3)
    with pretended_cuda():
        there = given.to("cuda")
        assert there.device == CUDA
        there[0].add_(1)
        assert there.tolist() == [[1, 2, 3], [3, 4, 5]]
        assert there.cpu().numpy().tolist() == there.tolist()
        for call in (there.numpy, there.data_ptr, there.untyped_storage):
            with pytest.raises(TypeError, match=r"use Tensor\.cpu|Use Tensor\.cpu"):
                call()
        with pytest.raises(MixedDevices, match="TF32"):
            there @ there.T
        assert isinstance(torch.zeros(2, device="cuda"), OnCuda)
    assert given.tolist() == [[0, 1, 2], [3, 4, 5]]


# The same results


QUICK = [("float32", name) for name in SMALL if name != "corrected"]
REST = [(dtype, name) for dtype in DTYPES for name in SMALL if (dtype, name) not in QUICK]


@pytest.mark.parametrize(
    ("dtype", "name"), [*QUICK, *(pytest.param(*one, marks=pytest.mark.stress) for one in REST)]
)
def test_same_bits_and_same_report(dtype: str, name: str) -> None:
    case = small(name, DTYPES[dtype])
    wanted, known = merged(case)
    with pretended_cuda() as ran:
        found, report = merged(case, device="cuda")
    assert_same_bits(found, wanted)
    assert found._metadata == wanted._metadata
    assert (report.device, report.verification.device) == ("cuda:0", "cuda:0")
    assert report.verification.layers == known.verification.layers
    assert report.widened == known.widened
    assert report.notes == known.notes
    assert ran["cuda", "convolution"] > 0
    assert not [name for device, name in ran if device == "cpu" and name in MULTIPLIES]


@pytest.mark.stress
@pytest.mark.parametrize("name", LARGE)
def test_same_bits_of_large_layers(name: str) -> None:
    case = large_case(name, torch.float32)
    wanted, known = merged(case)
    with pretended_cuda() as ran:
        found, report = merged(case, device="cuda:0")
    assert_same_bits(found, wanted)
    assert report.verification.layers == known.verification.layers
    assert not [name for device, name in ran if device == "cpu" and name in MULTIPLIES]


@pytest.mark.stress
@pytest.mark.parametrize("name", LARGE)
def test_large_layers_are_verified_across_devices(name: str, tmp_path: Path) -> None:
    """Computed anew on another device than they were merged on, by other sums of the products."""
    tensors, manifest = large_case(name, torch.bfloat16)
    path = tmp_path / "model.pt"
    torch.save(tensors, path)
    outputs = [tmp_path / "here.pt", tmp_path / "there.pt"]
    read = manifest_from_data(manifest)
    with pretended_cuda(backwards=True):
        merge_file(path, read, outputs[1], growth="allow", device="cuda")
    merge_file(path, read, outputs[0], growth="allow")
    assert verify_files(path, outputs[1]).failures == ()
    with pretended_cuda():
        for output in outputs:
            report = verify_files(path, output, device="cuda")
            assert report.failures == ()
            assert report.device == "cuda:0"


@pytest.mark.stress
@pytest.mark.parametrize(
    ("make", "name"), [*((small, name) for name in SMALL), *((large_case, name) for name in LARGE)]
)
def test_sums_in_another_order_are_within_the_bound(
    make: Callable[..., Case], name: str, tmp_path: Path
) -> None:
    """As a GPU adds up. In float64 nothing but the noise of such sums is allowed for."""
    tensors, manifest = make(name, torch.float64)
    path = tmp_path / "model.pt"
    torch.save(tensors, path)
    read, outputs = manifest_from_data(manifest), [tmp_path / "here.pt", tmp_path / "there.pt"]
    with pretended_cuda(backwards=True):
        merge_file(path, read, outputs[1], growth="allow", device="cuda")
    merge_file(path, read, outputs[0], growth="allow")
    with pretended_cuda(backwards=True):
        for output in outputs:
            assert verify_files(path, output, device="cuda").failures == ()
    assert verify_files(path, outputs[1]).failures == ()
    here, there = (taken_apart(output).tensors for output in outputs)
    different = [key for key in here if not torch.equal(here[key], there[key])]
    assert different or name in ADDS_UP_LITTLE


ADDS_UP_LITTLE = ("constants beside a layer", "many groups")
"""Cases without a product of matrices that has an order."""


@pytest.mark.stress
@pytest.mark.parametrize(("model", "pairs"), FILES)
@pytest.mark.parametrize("border", ["corrected", "interior"])
def test_the_samples_give_the_same_files(
    model: Path, pairs: Path, border: Any, tmp_path: Path
) -> None:
    here, there = (tmp_path / f"{name}{model.suffix}" for name in ("here", "there"))
    merge_file(model, pairs, here, border=border)
    with pretended_cuda():
        done = merge_file(model, pairs, there, border=border, device="cuda")
    assert here.read_bytes() == there.read_bytes()
    assert done.device == "cuda:0"


def test_widened_tensors_are_the_same() -> None:
    shapes = {"a.weight": (6, 3, 3), "b.weight": (2, 6, 1)}
    tensors = {name: torch.full(shape, 250.0).half() for name, shape in shapes.items()}
    pairs = [{"first": {"name": "a"}, "second": {"name": "b"}}]
    case = tensors, {"version": 1, "pairs": pairs}
    wanted, known = merged(case, widen=True)
    with pretended_cuda():
        found, report = merged(case, widen=True, device="cuda")
    assert_same_bits(found, wanted)
    assert report.widened == known.widened != {}


@pytest.mark.stress
@pytest.mark.parametrize(("settings"), [Settings(exhaustive=True), Settings(maps=True)])
def test_every_way_of_looking_sees_the_same(settings: Settings, tmp_path: Path) -> None:
    tensors, manifest = small("interior", torch.float32)
    path = saved(tensors, tmp_path / "model.pt")  # type: ignore[arg-type]
    output = merge_file(path, manifest_from_data(manifest), growth="allow").output
    assert output is not None
    known = verify_files(path, output, settings=settings)
    with pretended_cuda():
        found = verify_files(path, output, settings=settings, device="cuda")
    assert found.layers == known.layers
    assert len(found.maps) == len(known.maps) == (len(known.layers) if settings.maps else 0)
    for one, other in zip(found.maps, known.maps, strict=True):
        assert type(one.difference) is Tensor
        assert torch.equal(one.difference, other.difference)
        assert torch.equal(one.differs, other.differs)


def test_cells_are_summed_in_the_same_order() -> None:
    """On a GPU `index_add_` has none."""
    generator = torch.Generator().manual_seed(0)
    outer = torch.randn(35, 36 // 7 * 7, generator=generator, dtype=torch.float64)[:, :12]
    first, second = cells(outer[:28], 7, torch.randn(84, 2, generator=generator).double(), 6)
    parts = second @ first
    wanted = joined(parts, 7, 6)
    with pretended_cuda() as ran:
        found = joined(moved(parts), 7, 6).cpu()
    assert torch.equal(found, wanted)
    assert not ran["cuda", "index_add_"]


# A move that is forgotten, and faults in what is stored


JOBS = {
    **{name: (small, name, torch.float32, CUDA) for name in ("mixed", "corrected", "interior")},
    "constants": (small, "constants beside a layer", torch.float32, CUDA),
    "plain": (large_case, "plain", torch.float32, CUDA),
    # merged by other sums of the products, so that rounding has to be allowed for
    **{name: (large_case, name, torch.float64, CPU) for name in ("corrected ", "branches")},
}
"""Cases, and where they are merged: all are verified on the pretended device."""
NOTICED = (MixedDevices, VerificationError)
"""What the squeezed layer raises while it is run is told as a fault of that layer."""
HARMLESS = "_try_out"
TWICE = "Border."
"""Tables follow a module's tensors, and its input where they have not."""


def done(name: str, folder: Path) -> None:
    make, case, dtype, where = JOBS[name]
    tensors, manifest = make(case.strip(), dtype)
    torch.save(tensors, folder / "model.pt")
    read, settings = manifest_from_data(manifest), Settings(maps=where is CUDA)
    merging = {"growth": "allow", "overwrite": True, "device": where}
    output = merge_file(folder / "model.pt", read, **merging).output
    assert output is not None
    verify_files(folder / "model.pt", output, settings=settings, device="cuda").raise_if_failed()


@pytest.mark.stress
def test_every_move_that_is_forgotten_is_noticed(tmp_path: Path) -> None:
    jobs: dict[str, list[str]] = {}
    for name in JOBS:
        SITES.clear()
        with pretended_cuda():
            done(name, tmp_path)
        for site in SITES:
            jobs.setdefault(site, []).append(name)
    for file in (
        "conv",
        "values",
        "border",
        "files",
        "outcome",
        "comparison",
    ):
        assert any(f"{file}.py:" in site for site in jobs), file
    twice = {site for site in jobs if TWICE in site}
    for site, names in jobs.items():
        if HARMLESS not in site:
            forgotten = twice if site in twice else {site}
            assert any(is_noticed(forgotten, name, tmp_path) for name in names), site


def is_noticed(forgotten: set[str], name: str, folder: Path) -> bool:
    FORGOTTEN.update(forgotten)
    SITES.clear()
    try:
        with pretended_cuda():
            done(name, folder)
    except NOTICED as error:
        return "device" in str(error)
    finally:
        FORGOTTEN.clear()
    instead = {site for site in SITES if TWICE in site} - forgotten
    return bool(instead) and is_noticed(forgotten | instead, name, folder)


FAULTY = [
    *((name, dtype) for name in MERGED for dtype in NARROW),
    *((name, "float32") for name in border_checkpoint.CORRECTED if name != "volume"),
]


@pytest.mark.stress
@pytest.mark.parametrize(("name", "dtype"), FAULTY)
def test_any_tensor_changed_by_four_ulps(name: str, dtype: str, tmp_path: Path) -> None:
    """What the CPU finds is found, in the same words; of a border tensor that may be nothing, where
    it is added to larger numbers.
    """
    if name in MERGED:
        tensors: Any = mixed_checkpoint.mixed_state_dict(DTYPES[dtype])
        manifest = mixed_checkpoint.manifest_of(name)
    else:
        tensors = border_checkpoint.border_state_dict(DTYPES[dtype], (name,))
        manifest = border_checkpoint.manifest_of(name)
    original, squeezed = saved(tensors, tmp_path / "model.pt"), tmp_path / "out.pt"
    with pretended_cuda():
        read = manifest_from_data(manifest)
        merge_file(original, read, squeezed, growth="allow", device="cuda")
    own = [key for key in taken_apart(squeezed).tensors if key.startswith(f"{name}.")]
    for key in own:
        parts = taken_apart(squeezed)
        tensor = parts.tensors[key]
        place = index_of(int(tensor.double().abs().argmax()), tensor)
        parts.tensors[key] = moved_by_ulps(tensor, place, 4)
        faulty = put_together(parts, tmp_path / "faulty.pt")
        with pretended_cuda():
            found = verify_files(original, faulty, device="cuda").failures
        assert found == verify_files(original, faulty).failures
        if ".border." not in key:
            assert any(f"{name}: differs by" in one for one in found), (key, found)


@pytest.mark.stress
@pytest.mark.parametrize("name", LARGE)
def test_any_number_of_a_large_layer_changed_by_four_ulps(name: str, tmp_path: Path) -> None:
    tensors, manifest = large_case(name, torch.float32)
    torch.save(tensors, tmp_path / "model.pt")
    output = merge_file(tmp_path / "model.pt", manifest_from_data(manifest), growth="allow").output
    assert output is not None
    for key in [key for key in taken_apart(output).tensors if key.startswith("c.")]:
        parts = taken_apart(output)
        tensor = parts.tensors[key]
        parts.tensors[key] = moved_by_ulps(tensor, index_of(tensor.numel() // 2, tensor), -4)
        faulty = put_together(parts, tmp_path / "faulty.pt")
        with pretended_cuda():
            found = verify_files(tmp_path / "model.pt", faulty, device="cuda")
        assert any("c: differs by" in one for one in found.failures), (key, found.failures)


def test_a_merge_that_goes_wrong_on_the_device_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU that computes one product wrongly, by a unit of float32."""
    right = conv.summed_products

    def wrong(*operands: Tensor) -> Tensor:
        sums = right(*operands)
        if isinstance(sums, OnCuda):
            sums.inner.view(-1)[7] *= 1 + 2**-23
        return sums

    monkeypatch.setattr(conv, "summed_products", wrong)
    output = tmp_path / "out.pt"
    merge_file(SESR, SESR_PAIRS, tmp_path / "right.pt")
    with pretended_cuda(), pytest.raises(VerificationError, match="differs by"):
        merge_file(SESR, SESR_PAIRS, output, device="cuda")
    assert not output.exists()


# Devices that are not there, are full, or would sum otherwise


@pytest.mark.parametrize(
    "name", ["mps", "gpu", "cuda:-1", "cuda:x", "cuda:1234", "CUDA", "meta", "xpu:0", "cpu:0", ""]
)
def test_other_devices_are_refused(name: str) -> None:
    with pytest.raises(DeviceError, match=f"^--device {name}: cpu, cuda or cuda:N was needed"):
        device_named(name)


@pytest.mark.parametrize(
    ("built_with", "told"),
    [
        (None, r"this torch \(.+\) has no CUDA\. Leave --device out, or install a torch build"),
        ("12.8", r"this torch \(.+\) finds no GPU\. Leave --device out, or check its driver"),
    ],
)
def test_cuda_that_is_not_there(
    built_with: str | None, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", built_with)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match=told):
        device_named("cuda")


def test_a_gpu_by_number() -> None:
    with pretended_cuda():
        assert device_named("cuda") == device_named("cuda:0") == device_named(CUDA) == CUDA
        with pytest.raises(DeviceError, match=r"cuda:2: this machine has cuda:0\. .*name one"):
            device_named("cuda:2")
    with pretended_cuda(count=2), pytest.raises(DeviceError, match="has cuda:0 to cuda:1"):
        device_named("cuda:2")
    assert device_named("cpu") == device_named(CPU) == CPU


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            RuntimeError("CUDA error: no kernel image\nmore"),
            r"there \(CUDA error: no kernel image\)",
        ),
        (torch.OutOfMemoryError("CUDA out of memory."), "its memory is full"),
    ],
)
def test_a_gpu_that_does_not_compute(error: Exception, told: str) -> None:
    broken = mock.patch("convsqueeze.device._try_out", side_effect=error)
    with pretended_cuda(), broken, pytest.raises(DeviceError, match=told):
        device_named("cuda")


@pytest.mark.stress
@pytest.mark.parametrize("stage", ["merging", "verifying", "moving", "drawing"])
def test_memory_that_is_full(stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No failed verification, no mistake of the program: exit 2, and what to do."""
    said = "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has 1 GiB. If reserved, ..."
    full = mock.Mock(side_effect=torch.OutOfMemoryError(said))
    squeezed = tmp_path / "out.pt"
    original = BLOCKS / "convnext_ols_stem.safetensors"
    pairs = original.with_suffix(".yaml")
    merging = ("merge", original, "--pairs", pairs, "-o", squeezed, "--border", "interior")
    verifying = ("verify", original, squeezed)
    place, run = {
        "merging": ("convsqueeze.algebra.conv.summed_products", merging),
        "verifying": ("convsqueeze.module.layer.apply_operator", merging),
        "moving": ("convsqueeze.verify.files.module_of", verifying),
        "drawing": (
            "convsqueeze.verify.files.difference_map",
            (*verifying, "--plot", tmp_path / "a.png"),
        ),
    }[stage]
    if run is not merging:
        assert run_here(*merging, "-q").status == 0
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(place, full)
    with pretended_cuda():
        outcome = run_here(*run, "--device", "cuda")
    assert full.called
    assert outcome.status == 2, outcome
    assert outcome.errors == [
        "--device cuda:0: its memory is full (CUDA out of memory. Tried to allocate 20.00 GiB. "
        "GPU 0 has 1 GiB). Leave --device out, or free some of it, or use a larger GPU."
    ]
    assert sorted(tmp_path.iterdir()) == before


def test_memory_that_is_full_is_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the squeezed layer raises is else its own fault."""
    for error, expected in (
        (torch.OutOfMemoryError("CUDA out of memory"), DeviceError),
        (RuntimeError("another"), VerificationError),
    ):
        failing = mock.Mock(side_effect=error)
        monkeypatch.setattr(comparison, "run_of", lambda module, failing=failing: failing)
        with pretended_cuda(), pytest.raises(expected):
            merged(small("mixed", torch.float32), device="cuda")


@pytest.mark.parametrize("before", [True, False])
def test_cudnn_is_left_out_and_put_back(before: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its algorithms may go through a transform, which no bound of a sum of products covers."""
    seen: list[bool] = []
    convolve = torch.conv2d

    def watched(*arguments: Any, **options: Any) -> Tensor:
        seen.append(torch.backends.cudnn.enabled)
        return convolve(*arguments, **options)

    monkeypatch.setattr(torch.backends.cudnn, "enabled", before)
    case = small("constants beside a layer", torch.float32)
    with (
        mock.patch.dict("convsqueeze.algebra.apply._CONVOLVE", {2: watched}),
        mock.patch.dict("convsqueeze.kinds.conv._CONV", {2: watched}),
    ):
        merged(case)
        assert set(seen) == {before}
        seen.clear()
        with pretended_cuda():
            merged(case, device="cuda")
        assert set(seen) == {False}
    assert torch.backends.cudnn.enabled is before
    with pytest.raises(KeyError), computing_on(CUDA):
        raise KeyError
    assert torch.backends.cudnn.enabled is before
    with summing_directly(CPU):
        assert torch.backends.cudnn.enabled is before


# What a user sees


def test_the_command_line_computes_and_says_where(tmp_path: Path) -> None:
    output = tmp_path / "out.pt"
    run = ("merge", SESR, "--pairs", SESR_PAIRS, "-o", output)
    with pretended_cuda():
        outcome = run_here(*run, "--device", "cuda", "--json")
        checked = run_here("verify", SESR, output, "--device", "cuda:0")
    assert outcome.status == checked.status == 0
    assert outcome.data["device"] == outcome.data["verification"]["device"] == "cuda:0"
    assert "computed on cuda:0)" in " ".join(checked.stdout.split())
    plain = run_here("verify", SESR, output, "--json")
    assert plain.data["device"] == "cpu"
    assert "computed on" not in run_here("verify", SESR, output).stdout


@pytest.mark.parametrize("command", ["merge", "dry run", "verify"])
def test_a_device_that_is_not_there_ends_before_anything_is_read(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    missing = tmp_path / "missing.pt"
    arguments: dict[str, tuple[object, ...]] = {
        "merge": ("merge", missing, "--pairs", missing),
        "dry run": ("merge", missing, "--pairs", missing, "--dry-run"),
        "verify": ("verify", missing, missing),
    }
    outcome = run_here(*arguments[command], "--device", "cuda")
    assert outcome.status == 2
    assert len(outcome.errors) == 1
    assert outcome.errors[0].startswith("--device cuda: this torch")
    assert list(tmp_path.iterdir()) == []
