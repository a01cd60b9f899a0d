"""What a scan finds in a network, in the words of the table."""

from collections.abc import Iterable

from torch import nn

from convsqueeze.graph import LayerOp
from convsqueeze.manifest import Border
from convsqueeze.models import inputs_of, scan_model
from convsqueeze.scan import Scan

from .cases import Case, Left, Names
from .running import example


def scanned(case: Case, network: nn.Module, border: Border = "exact") -> Scan:
    return scan_model(network, inputs_of(example(case)), border=border)


def regions(result: Scan) -> tuple[Names, ...]:
    """Those of two layers or more."""
    named = (_names(one.region.layers) for one in result.scanned)
    return tuple(names for names in named if len(names) > 1)


def _names(layers: Iterable[LayerOp]) -> Names:
    """The module of each layer's tensors, once for a factor and its summand; none for a pad."""
    found: list[str] = []
    for placed in layers:
        layer = placed.layer
        name = layer.name or _module(getattr(layer, "weight", None) or getattr(layer, "bias", None))
        name = name or ("identity" if layer.type == "identity" else "")
        if name and name not in found[-1:]:
            found.append(name)
    return tuple(found)


def _module(tensor: str | None) -> str:
    return tensor.rpartition(".")[0] if tensor else ""


def kinds(result: Scan, pair: Left) -> set[str]:
    """The kinds of reason that are told for layers of which these two are some, in this order."""
    found = set()
    for left in result.left:
        names = iter(left.layers)
        if pair.first in names and pair.second in names:
            found.add(left.reason.kind)
    return found
