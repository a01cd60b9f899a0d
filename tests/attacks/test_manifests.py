"""Small manifests that ask for much are done or refused in words, in bounded time and memory."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from safetensors.torch import save_file

from tests.attacks.manifests import LARGE, Large

pytestmark = pytest.mark.stress

POLICIES = ("exact", "interior", "corrected")
MOST_CPU_S, MOST_BYTES = 60.0, 2_000_000_000


def run(large: Large, policy: str) -> tuple[int, str, float, int]:
    """Exit status, standard error, processor time and peak memory of a merge in its own process."""
    with tempfile.TemporaryDirectory() as name:
        model, pairs, errors = (Path(name) / one for one in ("m.safetensors", "p.yaml", "errors"))
        save_file(large.tensors(), model)
        pairs.write_text(json.dumps(large.manifest))
        command = [sys.executable, "-m", "convsqueeze", "merge", str(model), "--pairs", str(pairs)]
        with errors.open("w") as stream:
            process = subprocess.Popen(
                [*command, "--border", policy, "--growth", "allow", "-q"],
                stderr=stream,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            _, status, usage = os.wait4(process.pid, 0)
        taken = usage.ru_utime + usage.ru_stime
        code = os.waitstatus_to_exitcode(status)
        return code, errors.read_text(), taken, usage.ru_maxrss * 1024


@pytest.mark.parametrize("name", LARGE)
def test_a_manifest_that_asks_for_much_is_bounded(name: str) -> None:
    """Each under one of the policies, by turns."""
    policy = POLICIES[list(LARGE).index(name) % len(POLICIES)]
    status, told, seconds, peak = run(LARGE[name], policy)
    assert status in (0, 2), told
    assert (status == 2) == bool(told)
    assert "memory: there is not enough of it" not in told
    assert seconds < MOST_CPU_S
    assert peak < MOST_BYTES
