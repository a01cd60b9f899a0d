"""The counter counts: what is planted is seen, and a name that is gone is an error."""

import copy
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from convsqueeze import merge_state_dict
from convsqueeze.manifest import manifest_from_data
from tests.counting.__main__ import report
from tests.counting.counter import COPIES, PART_COPIES, RUNS, Counted, Hook, counted
from tests.counting.tables import BEFORE, HEADINGS, LIMITS, beyond, figures, hooks

PACKAGE = """
class Entry:
    def __init__(self, into):
        self.into = into

def plan(entry):
    return entry.into

def numbers():
    yield 1
    yield 2

def lambdas():
    return (lambda: 1)() + (lambda: 2)()

def other_name():
    pass

moved = other_name
"""


class Small(nn.Module):
    """Two convolutions that can be one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 8, 3)
        self.second = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.second(self.first(x))
        return result


FORWARD = (Small.forward.__code__.co_filename, Small.forward.__code__.co_qualname)
MANIFEST = {
    "version": 1,
    "pairs": [{"into": "first", "chain": [{"name": "first"}, {"name": "second"}]}],
}


def count(work: Callable[[], object]) -> Counted:
    return counted(work, hooks(), package="convsqueeze", forward=FORWARD)


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package of a known number of functions, not imported yet."""
    folder = tmp_path / "planted_package"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "work.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("planted_package", "planted_package.work"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return folder.name


def seen(package: str, work: Callable[[], object], *chosen: Hook) -> Counted:
    return counted(work, chosen, package=package, forward=FORWARD)


def test_imports_count_as_calls_of_bodies(planted: str) -> None:
    found = seen(planted, lambda: __import__(f"{planted}.work"))
    assert (found.functions, found.files, found.calls) == (3, 2, 3)  # two modules and a class


def test_a_call_in_another_thread_and_each_resumption_count(planted: str) -> None:
    work = __import__(f"{planted}.work").work

    def resumed_and_apart() -> None:
        assert list(work.numbers()) == [1, 2]
        thread = threading.Thread(target=work.other_name)
        thread.start()
        thread.join()

    found = seen(planted, resumed_and_apart)
    assert (found.functions, found.files, found.calls) == (2, 1, 4)


def test_lambdas_of_one_function_are_one(planted: str) -> None:
    work = __import__(f"{planted}.work").work
    found = seen(planted, work.lambdas)
    assert (found.functions, found.calls) == (2, 3)


def test_a_hook_tells_what_it_was_done_to(planted: str) -> None:
    work = __import__(f"{planted}.work").work
    hook = Hook("values", f"{planted}.work:plan", "entry.into")
    found = seen(planted, lambda: [work.plan(work.Entry(name)) for name in "aba"], hook)
    assert found.things["values"] == {"a": 2, "b": 1}
    assert (found.total("values"), found.most("values")) == (3, 2)


@pytest.mark.parametrize(
    ("hook", "told"),
    [
        (Hook("plans", "planted_package.work:gone"), "was not found"),
        (Hook("plans", "planted_package.gone:plan"), "was not found"),
        (Hook("plans", "planted_package.work:moved"), "is not where that function is written"),
        (Hook("plans", "planted_package.work:Entry"), "is not where that function is written"),
        (Hook("plans", "planted_package.work:numbers"), "is a generator"),
        (Hook("values", "planted_package.work:plan", "merge.into"), "has no argument merge"),
    ],
)
def test_a_name_that_is_gone_is_an_error(planted: str, hook: Hook, told: str) -> None:
    with pytest.raises(LookupError, match=told):
        seen(planted, lambda: None, hook)


def test_the_names_of_the_package_are_there() -> None:
    for hook in hooks():
        hook.check()


def test_what_is_done_once_more_is_seen() -> None:
    model, x = Small().eval(), torch.rand(1, 2, 8, 8)
    state, manifest = model.state_dict(), manifest_from_data(MANIFEST, "planted")

    def once() -> None:
        merge_state_dict(state, manifest)
        model(copy.deepcopy(x))
        copy.deepcopy(model)
        copy.deepcopy(model.first)

    def planted_as_well() -> None:
        once()
        with torch.no_grad():
            model(x)
        copy.deepcopy(model)
        copy.deepcopy(model.second)
        merge_state_dict(state, manifest)

    alone, more = count(once), count(planted_as_well)
    for thing in (COPIES, PART_COPIES, RUNS, "plans", "parts", "values"):
        assert (alone.total(thing), more.total(thing)) == (1, 2), thing
    assert (alone.things["values"], more.things["values"]) == ({"first": 1}, {"first": 2})
    assert more.calls > alone.calls > 0


def test_a_run_that_traces_is_a_run() -> None:
    class Inside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.small = Small()

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.small(x)
            return result

    found = count(lambda: torch.fx.symbolic_trace(Inside()))
    assert found.things == {RUNS: {"": 1}}


def test_a_copy_is_of_the_whole_or_of_a_part_and_counts_once() -> None:
    model = Small()
    found = count(lambda: copy.deepcopy([model, model.second, nn.ReLU(), {"a": 1}]))
    assert found.things == {COPIES: {"Small": 1}, PART_COPIES: {"Conv2d": 1, "ReLU": 1}}


def test_a_figure_beyond_its_limit_fails(capsys: pytest.CaptureFixture[str]) -> None:
    within = Counted(
        600,
        100,
        40_000,
        {
            "plans": {"": 1},
            "parts": {"": 12},
            "values": dict.fromkeys("abcdefg", 1),
            COPIES: {"SESR": 2},
            PART_COPIES: {"Block": 1},
            RUNS: {"": 8},
        },
    )
    assert report({"squeeze": within}, places=False) == 0
    within.things["values"]["g"] = 2
    assert report({"squeeze": within}, places=False) == 1
    assert "2 !" in capsys.readouterr().out


@pytest.mark.parametrize("command", BEFORE)
def test_functions_and_calls_may_be_half_of_those_before(command: str) -> None:
    before, limits = BEFORE[command], LIMITS[command]
    assert before.keys() == limits.keys() == HEADINGS.keys()
    for name in ("functions", "calls"):
        assert beyond_at(command, name, before[name] * 101 // 200)
        assert not beyond_at(command, name, before[name] * 99 // 200)
    nothing = figures(Counted(0, 0, 0))
    assert {"plans", "values", "merges"} <= set(beyond(command, nothing)), "0 is never well"


def beyond_at(command: str, name: str, figure: int) -> bool:
    return name in beyond(command, {**BEFORE[command], name: figure})
