"""Operations of nodes that add, or that are no layer; the same for every way to follow code."""

from collections.abc import Collection
from dataclasses import fields, replace
from typing import Any

from convsqueeze.graph import AddOp, LayerOp, Op, OpaqueOp, Reason
from convsqueeze.kinds.scale import ScaleLayer


def summed(whole: Op, negated: Collection[int]) -> list[Op]:
    """A node that adds its inputs, with an operation in front of it for each that is subtracted."""
    minus = {
        index: LayerOp(
            *(f"{whole.name}.minus{index}", (whole.inputs[index],), whole.node, "neg", whole.calls),
            layer=ScaleLayer(type="scale", factor=-1.0),
        )
        for index in negated
    }
    inputs = (minus[i].name if i in minus else value for i, value in enumerate(whole.inputs))
    add = AddOp(**_fields(replace(whole, inputs=tuple(inputs))), nodes=frozenset({whole.node}))
    return [*minus.values(), add]


def opaque(whole: Op, reason: Reason) -> OpaqueOp:
    """A node that is no layer and no sum."""
    return OpaqueOp(**_fields(whole), reason=reason)


def _fields(op: Op) -> dict[str, Any]:
    return {one.name: getattr(op, one.name) for one in fields(Op)}
