"""A short run of the fuzzer, and that it sees what it is there to see."""

import ctypes
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from convsqueeze import errors
from convsqueeze.checkpoint import pickled, safetensors_file, sharded
from convsqueeze.checkpoint import state_dict as state_dict_module
from convsqueeze.errors import CheckpointError
from convsqueeze.manifest import yaml_text
from tests.fuzz import search as search_module
from tests.fuzz.choices import Choices
from tests.fuzz.isolation import Case, Isolated, Verdict
from tests.fuzz.samples import squeezed
from tests.fuzz.search import Finding, Search, Shorter, Target
from tests.fuzz.targets import TARGETS

pytestmark = pytest.mark.stress

EXAMPLES = {
    "safetensors": 40,
    "zip": 50,
    "legacy": 40,
    "index": 30,
    "manifest": 30,
    "recipe": 20,
    "onnx": 25,
}


@pytest.fixture(autouse=True, scope="module")
def _what_torch_does_once() -> None:
    """Seconds of imports at the first merge, which each forked process would repeat."""
    squeezed(".safetensors")


@pytest.mark.parametrize("name", list(TARGETS))
def test_every_file_is_answered(name: str) -> None:
    """The same examples every time; `python -m tests.fuzz` searches further."""
    with Search(TARGETS[name], seed=0) as search:
        found = [finding for _ in range(EXAMPLES[name]) if (finding := search.step()) is not None]
        print(search.tally)
        assert search.warmed is not None
        assert search.warmed.kind == "done", "the plainest choices make a sound file"
    assert not found, "\n".join(f"{one}\n{one.verdict.trace}" for one in found)
    assert search.tally.verdicts["refused"]


# That the fuzzer sees faults.


def found(name: str, seed: int, says: str, examples: int = 6) -> Finding:
    """The first finding among a few examples whose key has `says` in it. Seeds are chosen so that
    it comes soon: whether it comes at all is what is asked.
    """
    with Search(TARGETS[name], seed) as search:
        for _ in range(examples):
            finding = search.step()
            if finding is not None and says in finding.verdict.key:
                return finding
        pytest.fail(f"none of {search.tally.repeats} says {says}")


@pytest.fixture(autouse=True)
def _no_shortening(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_module, "MOST_SHORTENING", 0)


def test_a_library_that_refuses_and_nobody_expects_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Never(Exception):
        pass

    monkeypatch.setattr(safetensors_file, "SafetensorError", Never)
    finding = found("safetensors", 0, "in /checkpoint/safetensors_file.py")
    assert finding.verdict.kind == "exception"


def test_recursion_that_nobody_catches(monkeypatch: pytest.MonkeyPatch) -> None:
    def parsed(text: bytes) -> Any:
        try:
            return json.loads(text)
        except ValueError as error:
            raise ValueError("not JSON") from error

    monkeypatch.setattr(sharded, "parse_object", parsed)
    found("index", 8, "RecursionError in /checkpoint/sharded.py")


class Believing:
    """In the place of the library's reader: takes a header at its word."""

    def __init__(self, path: Path, *_: object, **__: object) -> None:
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        self._header = json.loads(data[8 : 8 + length])
        self._header.pop("__metadata__", None)

    def __enter__(self) -> "Believing":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def offset_keys(self) -> list[str]:
        return list(self._header)

    def get_slice(self, name: str) -> "Believing":
        self._name = name
        return self

    def get_dtype(self) -> str:
        return self._header[self._name]["dtype"]

    def get_shape(self) -> list[int]:
        return self._header[self._name]["shape"]


def test_data_that_overlaps_or_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors_file, "safe_open", Believing)
    found("safetensors", 7, "AssertionError in here: accepted")


def test_sizes_that_nobody_compares_with_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few bytes that ask for a gigabyte."""
    monkeypatch.setattr(safetensors_file, "safe_open", Believing)
    assert found("safetensors", 61, "memory").verdict.kind == "memory"


@pytest.mark.parametrize(
    ("name", "seed", "place"), [("zip", 1, "pickled.py"), ("legacy", 4, "pickle_scan.py")]
)
def test_damage_that_nobody_expects(
    name: str, seed: int, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pickled, "DAMAGED", (OSError,))
    assert found(name, seed, f"in /checkpoint/{place}").verdict.kind == "exception"


def test_yaml_that_nobody_expects(monkeypatch: pytest.MonkeyPatch) -> None:
    class Never(Exception):
        pass

    monkeypatch.setattr(yaml_text, "MarkedYAMLError", Never)
    monkeypatch.setattr(yaml_text, "YAMLError", Never)
    found("manifest", 2, "in /manifest/yaml_text.py")


@pytest.fixture
def raw_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors that leave their words as they are."""
    monkeypatch.setattr(errors, "printable", str)


@pytest.mark.usefixtures("raw_words")
def test_words_that_are_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (state_dict_module, safetensors_file, sharded):
        monkeypatch.setattr(module, "shown", str)
    assert found("index", 75, "no printable line").verdict.kind == "words"


# The process that examples run in.

Run = Callable[[Path, Mapping[str, Any]], None]


def judged_alone(run: Run, case: Case | None = None, seconds: float = 10.0) -> Verdict:
    """What one run comes to, by a process that first did nothing at all."""

    def only_marked(folder: Path, options: Mapping[str, Any]) -> None:
        if options:
            run(folder, options)

    with Isolated(only_marked, Case({}), seconds=seconds) as isolated:
        verdict = isolated(case or Case({"a": b"x"}, {"go": True}))
        assert isolated(Case({})).kind == "done", "the next one finds a process again"
    return verdict


def test_an_honest_answer() -> None:
    def refuse(folder: Path, _: Mapping[str, Any]) -> None:
        raise CheckpointError(f"{folder.name}: is no checkpoint.")

    assert judged_alone(refuse).words == ("case: is no checkpoint.",)
    assert judged_alone(lambda *_: None).kind == "done"


@pytest.mark.usefixtures("raw_words")
@pytest.mark.parametrize("words", ["", "a\nb", "a\x1b[2J", "\ud800"])
def test_an_answer_that_is_no_line(words: str) -> None:
    def refuse(*_: object) -> None:
        raise CheckpointError(words)

    assert judged_alone(refuse).kind == "words"


def test_another_exception() -> None:
    verdict = judged_alone(lambda *_: [][1])
    assert (verdict.kind, verdict.key) == ("exception", "IndexError in ?")


def test_a_crash() -> None:
    verdict = judged_alone(lambda *_: print(ctypes.string_at(0)))
    assert verdict.kind == "crash"
    assert "SIGSEGV" in verdict.key
    assert "string_at" in verdict.trace


def test_a_hang() -> None:
    verdict = judged_alone(lambda *_: time.sleep(60), seconds=0.5)
    assert verdict.kind == "hang"
    assert "test_fuzz.py" in verdict.trace
    assert verdict.seconds < 5


def test_a_large_allocation() -> None:
    """Counted where it is touched, also where it is given back; measured against the files."""

    def grow(_: Path, options: Mapping[str, Any]) -> None:
        bytearray(options["bytes"])

    def kind(nbytes: int, files: int = 1) -> str:
        return judged_alone(grow, Case({"a": bytes(files)}, {"bytes": nbytes})).kind

    assert kind(100 << 20) == "done"
    assert kind(160 << 20) == "memory"
    assert kind(160 << 20, files=4 << 20) == "done"
    assert kind(600 << 20) == "memory"


def test_the_lines_that_ran_guide_the_search(tmp_path: Path) -> None:
    """A door behind a door behind a door, each opened by one of 40 choices."""
    source = "def walk(c):\n" + "".join(
        f"{' ' * (n + 1)}if c[{n}] == 7:\n{' ' * (n + 2)}reached = {n}\n" for n in range(3)
    )
    source += "    raise IndexError\n"
    place = tmp_path / "walked.py"
    place.write_text(source)
    names: dict[str, Any] = {}
    exec(compile(source, str(place), "exec"), names)

    def make(choices: Choices) -> Case:
        return Case({}, {"c": [choices.below(40) for _ in range(3)]})

    target = Target("doors", make, lambda _, options: names["walk"](options["c"]))
    with Search(target, seed=0, traced=(str(place),)) as guided:
        found = next((f for _ in range(3000) if (f := guided.step()) is not None), None)
    assert found is not None
    assert found.case.options["c"] == [7, 7, 7]


def test_shortening_leaves_what_matters() -> None:
    attempts = Shorter([5, 9, 0, 7, 1, 0, 0])
    while (attempt := attempts.next()) is not None:
        if 7 in attempt:
            attempts.best = attempt
    assert attempts.best == [7]
