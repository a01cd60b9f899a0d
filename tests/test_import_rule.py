"""The house's import rule is checked, and the check can fail."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parent.parent


def lint_imports(directory: Path) -> subprocess.CompletedProcess[str]:
    """Run the import linter on the package in `directory`, with its own pyproject.toml."""
    program = Path(sys.executable).with_name("lint-imports")
    return subprocess.run(
        [program, "--no-cache"],
        cwd=directory,
        env={"PYTHONPATH": str(directory), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A copy of the package that a test may break."""
    shutil.copytree(ROOT / "convsqueeze", tmp_path / "convsqueeze")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_house_keeps_its_rule(house: Path) -> None:
    done = lint_imports(house)
    assert done.returncode == 0, done.stdout
    assert "4 kept, 0 broken" in done.stdout


@pytest.mark.stress
@pytest.mark.parametrize(
    ("module", "line", "told"),
    [
        ("algebra/conv.py", "import convsqueeze.plan.resolve", "Imports point one way"),
        ("kinds/pad.py", "import convsqueeze.plan.resolve", "Imports point one way"),
        ("kinds/conv.py", "import convsqueeze.checkpoint.base", "Imports point one way"),
        ("checkpoint/base.py", "import convsqueeze.manifest.load", "Imports point one way"),
        ("plan/pricing.py", "import convsqueeze.plan.partition", "No circle of imports"),
        ("newcomer.py", "import torch", "Imports point one way"),
        ("plan/planner.py", "import rich", "The terminal lives in cli alone"),
        (
            "algebra/border/mismatches.py",
            "import pydantic",
            "The algebra imports torch and nothing",
        ),
    ],
)
def test_an_import_against_the_rule_is_caught(
    house: Path, module: str, line: str, told: str
) -> None:
    broken = house / "convsqueeze" / module
    text = broken.read_text() if broken.exists() else ""
    broken.write_text(f"{text}\n{line}\n")
    done = lint_imports(house)
    assert done.returncode == 1
    assert any(told in row and "BROKEN" in row for row in done.stdout.splitlines()), done.stdout


def test_every_dependency_is_imported() -> None:
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {re.split(r"[<>=~! ]", text)[0].replace("-", "_") for text in required}
    imported: set[str] = set()
    for file in (ROOT / "convsqueeze").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
    assert {name.partition(".")[0] for name in names} <= imported
