"""Batch norms: those in eval mode are layers."""

from convsqueeze.graph import Reason
from convsqueeze.kinds.batch_norm import BatchNormLayer
from convsqueeze.tracing.operators.meanings import Linear, Meaning, Parameters, is_raw


def batch_norm(given: Parameters) -> Meaning:
    """A norm named after one layer, by its running statistics."""
    mean, variance = given["running_mean"], given["running_var"]
    if given["training"] or mean is None or variance is None:
        what = "is in training mode" if given["training"] else "keeps no running statistics"
        return Reason("training", f"a norm that {what}, so it is not linear")
    parts = {
        role: given[role]
        for role in ("weight", "bias", "running_mean", "running_var")
        if given[role] is not None
    }
    if not all(is_raw(part) for part in parts.values()):
        return Reason("not linear", "a norm whose tensors are computed")
    name = mean.key.rpartition(".")[0]
    told = {role: part.key for role, part in parts.items()}
    absent = [r for r in ("weight", "bias") if r not in parts and f"{name}.{r}" in given.names]
    if absent or any(key != f"{name}.{role}" for role, key in told.items()):
        return Reason("not linear", "a norm whose tensors are not named after one layer")
    keys = tuple(key for part in parts.values() for key in part.keys)
    layer = BatchNormLayer(type="batch_norm", name=name, eps=given["eps"])
    return Linear(layer, given.ndim() - 2, keys)


def trained_norm(given: Parameters) -> Meaning:
    """Why a norm by the batch's own statistics is none."""
    if getattr(given.node.target, "_overloadname", "") == "no_stats":
        return Reason("training", "a norm that keeps no running statistics, so it is not linear")
    return Reason("training", "a norm that is in training mode, so it is not linear")
