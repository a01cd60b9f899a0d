"""Every kind of layer, in the order of a manifest's schema, and what is asked of all of them.

Which layers a call or a module is, is said by the rules of the kinds; sums are no layers and are
said here.
"""

from collections.abc import Mapping

from torch import nn

from convsqueeze.kinds import (
    avg_pool,
    batch_norm,
    conv,
    conv_transpose,
    identity,
    linear,
    pad,
    scale,
)
from convsqueeze.kinds.call import Call, Kind, Rule, alike, module_call
from convsqueeze.kinds.layer import Layer
from convsqueeze.kinds.semantics import ACTIVATIONS, Adding, Reason, Semantics, no_layer, not_linear

KINDS: tuple[Kind, ...] = (
    conv.KIND,
    conv_transpose.KIND,
    linear.KIND,
    batch_norm.KIND,
    scale.KIND,
    avg_pool.KIND,
    identity.KIND,
    pad.KIND,
)

LAYER_KINDS: Mapping[str, type[Layer]] = {kind.name: kind.layer for kind in KINDS}
"""By the name that a manifest has for it."""
MODULES: Mapping[type, str] = {t: name for kind in KINDS for t, name in kind.modules.items()}
COMPARED = frozenset(t for kind in KINDS if kind.layer.roles for t in kind.modules)
"""Modules with tensors whose settings are all known: others are run to see what they do."""
_RULES: Mapping[str, Rule] = {name: rule for kind in KINDS for name, rule in kind.aten.items()}
_ALIASES = {
    **{"multiply": "mul", "divide": "div", "true_divide": "div"},
    **{"subtract": "sub", "negative": "neg"},
}
"""Other names of operators, which torch.export does not resolve."""


def semantics_of(call: Call) -> Semantics:
    """What the call is of the values that go in; its other tensors are constants."""
    operator, values = _ALIASES.get(call.operator, call.operator), call.values
    if len(values) > 1:
        return _of_several(operator, call)
    rule = None if operator in ACTIVATIONS else _RULES.get(operator)
    if rule is None or not values:
        return no_layer(operator)
    found = rule(call)
    if isinstance(found, Reason):
        return found
    return call.converted() or call.stored_numbers() or found


def _of_several(operator: str, call: Call) -> Semantics:
    if operator not in ("add", "sub"):
        joins = f"{operator} joins several values"
        return not_linear("two values are multiplied" if operator == "mul" else joins)
    if call.arguments.get("alpha", 1) != 1:
        return not_linear("a multiple of a value is added")
    if not alike(call.values):
        return not_linear("values of different shapes are added")
    return Adding(frozenset({1} if operator == "sub" else ()))


def semantics_of_module(module: nn.Module, name: str, names: frozenset[str]) -> Semantics:
    """The layer that one of torch's own modules is; `names` are those of the state dict."""
    operator = MODULES.get(type(module))
    if operator is None:
        kind = type(module).__name__
        return no_layer(kind.lower() if kind.lower() in ACTIVATIONS else kind)
    return semantics_of(module_call(operator, module, name, names))
