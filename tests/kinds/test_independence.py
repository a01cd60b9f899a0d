"""How verification runs a kind of layer shares nothing with the operator that is merged."""

import inspect
import pkgutil
import sys
from importlib import import_module
from typing import Any

import pytest
import torch

from convsqueeze import algebra, layers
from convsqueeze.verify.reference import reference
from tests.verify.test_reference import CASES, Case, assert_same, drawn, every_case, planned

SHARED = {"convsqueeze.algebra.tree"}
"""Chains and sums, which say only in which order layers run."""


class Touched(Exception):
    """Something of the operators' side was called."""


def raises(*given: Any, **named: Any) -> Any:
    raise Touched


def is_forbidden(what: Any) -> bool:
    """Whether it is a function or a class of the algebra, or makes an operator of a layer."""
    home = getattr(what, "__module__", None) or ""
    of_algebra = home.startswith("convsqueeze.algebra.") and home not in SHARED
    makers = (vars(layers)[name] for name in layers.__all__)
    return (inspect.isfunction(what) or inspect.isclass(what)) and (
        of_algebra or home == "convsqueeze.kinds.operators" or any(what is one for one in makers)
    )


@pytest.fixture
def without_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything of the operators' side raises, by whatever name a module knows it."""
    for info in pkgutil.walk_packages(algebra.__path__, "convsqueeze.algebra."):
        import_module(info.name)
    modules = [m for name, m in sys.modules.items() if name.startswith("convsqueeze.")]
    found = [(m, name) for m in modules for name, what in vars(m).items() if is_forbidden(what)]
    for module, name in found:
        monkeypatch.setattr(module, name, raises)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_oracle_runs_without_operators(case: Case, request: pytest.FixtureRequest) -> None:
    merge, tensors = planned(case)
    request.getfixturevalue("without_operators")
    run = reference(merge.tree, tensors.__getitem__)
    assert_same(run, case.module, drawn(case))
    for part in ("affine", "linear"):
        for magnitude in (False, True):
            made = reference(merge.tree, tensors.__getitem__, part, magnitude=magnitude)
            assert bool(made(drawn(case).abs()).isfinite().all())


@every_case
def test_an_operator_is_not_made_without_them(case: Case, request: pytest.FixtureRequest) -> None:
    """What is forbidden is what operators are made of."""
    merge, _ = planned(case)
    leaf = merge.layers[0]
    meta = {r: torch.empty(p.shape, device="meta") for r, p in leaf.parameters.items()}
    assert leaf.layer.operator(meta, leaf.rank, case.channels).geometry == leaf.geometry
    request.getfixturevalue("without_operators")
    with pytest.raises(Touched):
        leaf.layer.operator(meta, leaf.rank, case.channels)
