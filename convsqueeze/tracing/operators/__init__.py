"""ATen's operators in the manifest's words: the layers that a call is of one value, if it is any.

Each rule takes a call whose parameters are constants. What it cannot say exactly it does not say:
then the reason comes back. Knows operators, no modules and no order. `meanings` are what a call can
be; `kernels`, `norms`, `pads_and_pools`, `arithmetic` and `passing` hold the rules by subject, and
`rules` finds the one for a call.
"""

from convsqueeze.tracing.operators.arithmetic import is_number, scale_meaning, shares
from convsqueeze.tracing.operators.axes import axis_pairs, on_every_axis, per_axis_numbers
from convsqueeze.tracing.operators.meanings import (
    ACTIVATIONS,
    Adding,
    Linear,
    Meaning,
    Passing,
    no_layer,
)
from convsqueeze.tracing.operators.pads_and_pools import padding_meaning
from convsqueeze.tracing.operators.passing import PASSING
from convsqueeze.tracing.operators.rules import meaning_of

__all__ = [
    "ACTIVATIONS",
    "PASSING",
    "Adding",
    "Linear",
    "Meaning",
    "Passing",
    "axis_pairs",
    "is_number",
    "meaning_of",
    "no_layer",
    "on_every_axis",
    "padding_meaning",
    "per_axis_numbers",
    "scale_meaning",
    "shares",
]
