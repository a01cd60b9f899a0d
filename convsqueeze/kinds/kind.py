"""What one file of this folder hands to the registry."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from convsqueeze.kinds.call import Rule
from convsqueeze.kinds.layer import Layer


@dataclass(frozen=True)
class Kind:
    """A kind of layer: its class, and the rules that find it by the name of an operator.

    `modules` are those of torch by their type, each with the operator that it calls.
    """

    layer: type[Layer]
    aten: Mapping[str, Rule] = field(default_factory=dict)
    modules: Mapping[type[nn.Module], str] = field(default_factory=dict)
