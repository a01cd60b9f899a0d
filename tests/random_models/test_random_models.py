"""Random models squeezed are the models they were, and the oracle sees every planted fault."""

import warnings
from collections.abc import Iterator

import pytest

from .__main__ import table
from .cases import FIXED, HOOKS, Case, fixed_case, workable_case
from .description import Coded, Layer, Row, Sum, walk
from .drawn import CODES
from .faults import FAULTS, Fault, is_seen
from .oracle import examine

pytestmark = pytest.mark.stress

BLOCK = 15


@pytest.fixture(autouse=True)
def silent() -> Iterator[None]:
    """Torch warns of weight norm's older form."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("first", range(0, len(FIXED), BLOCK))
def test_squeezed_models_give_the_same_output(first: int) -> None:
    cases = FIXED[first : first + BLOCK]
    outcomes = [one for number in cases for one in examine(*fixed_case(number))]
    print(table(outcomes))
    assert sum(outcome.merges for outcome in outcomes) >= BLOCK
    assert sum(outcome.pairs for outcome in outcomes) >= BLOCK / 3
    assert sum(outcome.weights[1] < outcome.weights[0] for outcome in outcomes) >= BLOCK / 2


def features(case: Case) -> Iterator[str]:
    """What a case has of all that there is to try."""
    yield f"{case.rank} axes"
    yield case.model.output
    yield from (f"hook: {kind}" for kind in case.hooks.values())
    yield from (name for name in ("taps",) if case.model.taps)
    yield from (name for name in ("ties", "training") if getattr(case, name))
    yield "a batch" if case.batch else "no batch"
    for _, node in walk(case.model.row, "body"):
        yield type(node).__name__
        if isinstance(node, Layer):
            yield node.kind
            yield from (f"{key} {node.settings[key]}" for key in TOLD if key in node.settings)
            yield from node.settings
        elif isinstance(node, Row | Sum):
            yield node.form
        elif isinstance(node, Coded):
            yield f"code: {node.kind}"
        if isinstance(node, Sum):
            yield from (f"factor {branch.factor}" for branch in node.branches)
            yield from ("identity branch" for branch in node.branches if branch.part is None)


TOLD = ("kernel_size", "padding_mode", "normed", "form", "mode")
WANTED = (
    *(f"{rank} axes" for rank in range(4)),
    *("tensor", "tuple", "dict", "taps", "ties", "training", "no batch", "identity branch"),
    *(f"hook: {kind}" for kind in HOOKS),
    *("Row", "Sum", "Repeated", "Wasteful", "Gated", "Coded", "ChannelsLast"),
    *("sequential", "list", "operators", "in place", "stack"),
    *(f"code: {code}" for code in CODES),
    *("conv", "conv_transpose", "linear", "batch_norm", "scale", "pad", "avg_pool", "max_pool"),
    *("dropout", "identity", "relu", "leaky_relu", "prelu", "inplace"),
    *("cat", "chunk", "permute", "interpolate", "mean"),
    *("stride", "dilation", "padding", "groups", "output_padding", "affine", "ceil_mode"),
    *(f"kernel_size {size}" for size in range(1, 6)),
    *(f"padding_mode {mode}" for mode in ("reflect", "replicate", "circular")),
    *(f"mode {mode}" for mode in ("zeros", "reflect", "replicate")),
    *("normed weight_norm", "normed parametrized", "factor -1.0", "factor 0.5"),
    *(f"form {form}" for form in ("parameter", "scalar", "buffer", "unsaved", "shift", "number")),
)


def test_the_cases_have_all_that_models_are_made_of() -> None:
    seen = {feature for number in range(600) for feature in features(workable_case(number))}
    assert [feature for feature in WANTED if feature not in seen] == []


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_planted_fault_is_seen(fault: Fault) -> None:
    assert fault.case in FIXED
    assert is_seen(fault, fault.case)
