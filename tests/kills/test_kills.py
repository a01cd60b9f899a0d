"""A short run of `python -m tests.kills`, and that it would see a loss."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command_line import plain_environment, run_here
from tests.kills.__main__ import Case, Expected, outcome
from tests.kills.scene import FORMATS, Scene, built

pytestmark = pytest.mark.stress

ROOT = Path(__file__).parents[2]


def test_killed_runs_lose_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.kills", "--runs", "18", "--kept", "4", "--seed", "1"],
        cwd=ROOT,
        env=plain_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "18 runs killed; every input is bit for bit what it was" in done.stdout


def merged(folder: Path, form: str, seed: int) -> Scene:
    scene = built(folder, form, seed, kept_tensors=3)
    assert run_here(*scene.arguments(overwrite=False)).status == 0
    return scene


@pytest.mark.parametrize("form", FORMATS)
def test_every_loss_is_seen(tmp_path: Path, form: str) -> None:
    old, new = merged(tmp_path / "old", form, 1), merged(tmp_path / "new", form, 2)
    expected = Expected(new, old.files(of_output=True), new.files(of_output=True), {}, 0.0)
    case = Case(form, True, signal.SIGKILL, 0.0, False, False)
    fresh = Case(form, False, signal.SIGKILL, 0.0, False, False)

    def scene_with(output: Scene | None) -> Scene:
        scene = new.copy_to(tmp_path / "run", with_output=False)
        for place in output.places(of_output=True) if output else []:
            (scene.folder / place.name).write_bytes(place.read_bytes())
        return scene

    assert outcome(case, expected, scene_with(new)) == "new"
    assert outcome(case, expected, scene_with(old)) == "old"
    assert outcome(fresh, expected, scene_with(None)) == "absent"
    for one, found in ((fresh, old), (case, None)):
        with pytest.raises(ValueError, match="neither old nor new nor absent"):
            outcome(one, expected, scene_with(found))

    scene = scene_with(new)
    whole = scene.places(of_output=True)[-1]
    whole.write_bytes(whole.read_bytes()[:-1])
    with pytest.raises(ValueError, match="neither old nor new nor absent"):
        outcome(case, expected, scene)
    scene = scene_with(new)
    scene.model.write_bytes(scene.model.read_bytes() + b" ")
    with pytest.raises(ValueError, match="the input has changed"):
        outcome(case, expected, scene)
    if form == "shards":
        scene = scene_with(new)
        shard = old.places(of_output=True)[1]
        (scene.folder / shard.name).write_bytes(shard.read_bytes())
        with pytest.raises(ValueError, match="neither old nor new nor absent"):
            outcome(case, expected, scene)


def test_other_files_are_leftovers(tmp_path: Path) -> None:
    scene = merged(tmp_path / "one", "shards", 1)
    assert scene.leftovers() == []
    (scene.folder / ".convsqueeze-0123456789abcdef.tmp").touch()
    (scene.folder / "out-00009-of-00009.safetensors").touch()
    assert len(scene.leftovers()) == 2
