"""What one file of this folder hands to the registry."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from convsqueeze.kinds.call import Rule
from convsqueeze.kinds.layer import Layer
from convsqueeze.kinds.semantics import Semantics

ModuleRule = Callable[[Any, str], Semantics]
"""What a module is that has a name; `keys` of the layers are filled in by who knows the names."""


@dataclass(frozen=True)
class Kind:
    """A kind of layer: its class, and the rules that find it.

    `aten` are rules by the name of an operator, `modules` by the type of one of torch's modules.
    """

    layer: type[Layer]
    aten: Mapping[str, Rule] = field(default_factory=dict)
    modules: Mapping[type[nn.Module], ModuleRule] = field(default_factory=dict)
