"""`convsqueeze.layers` is there at once, as the README has it."""

import subprocess
import sys


def test_in_a_process_that_has_imported_nothing_else() -> None:
    code = "import convsqueeze; print(*convsqueeze.layers.__all__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {"convolution", "transposed", "linear", "batch_norm", "scale"} < {*done.stdout.split()}
