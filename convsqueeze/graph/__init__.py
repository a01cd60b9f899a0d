"""The one form of what is merged: operations between values, graphs of them, and linear regions."""

from convsqueeze.graph.find import find_regions, unusable
from convsqueeze.graph.graph import Graph, SizeRead
from convsqueeze.graph.op import AddOp, LayerOp, ModuleCall, Op, OpaqueOp, Shape, layer_ops
from convsqueeze.graph.placement import Placement, Replaced, placement, replaced_modules
from convsqueeze.graph.region import Added, Region, result_of
from convsqueeze.kinds.semantics import Reason, ReasonKind

__all__ = [
    "AddOp",
    "Added",
    "Graph",
    "LayerOp",
    "ModuleCall",
    "Op",
    "OpaqueOp",
    "Placement",
    "Reason",
    "ReasonKind",
    "Region",
    "Replaced",
    "Shape",
    "SizeRead",
    "find_regions",
    "layer_ops",
    "placement",
    "replaced_modules",
    "result_of",
    "unusable",
]
