"""The layers of a checkpoint as far as names and shapes tell: what a manifest is written from."""

from collections.abc import Mapping
from dataclasses import dataclass

from convsqueeze.checkpoint import Checkpoint, TensorInfo

WEIGHTS = {
    "weight": "",
    "weight_v": "weight norm",
    "parametrizations.weight.original1": "weight norm",
    "weight_orig": "spectral norm or pruned",
    "parametrizations.weight.original": "parametrized",
}
"""What a layer's weight may be stored as, and what that means."""


@dataclass(frozen=True)
class FoundLayer:
    """Tensors under one name. `kind` is a guess from shapes, `detail` what else they tell."""

    name: str
    kind: str
    detail: str
    tensors: Mapping[str, TensorInfo]

    @property
    def weights(self) -> int:
        return sum(info.numel for info in self.tensors.values())

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight; where there is none, of the first tensor."""
        role = next((role for role in WEIGHTS if role in self.tensors), next(iter(self.tensors)))
        return self.tensors[role].shape


def found_layers(checkpoint: Checkpoint) -> list[FoundLayer]:
    """Every layer of the checkpoint in file order."""
    grouped: dict[str, dict[str, TensorInfo]] = {}
    for key, info in checkpoint.tensors.items():
        name, inside, role = key.partition(".parametrizations.")
        if inside:  # a parametrization belongs to its layer
            role = f"parametrizations.{role}"
        else:
            name, _, role = key.rpartition(".")
        grouped.setdefault(name, {})[role] = info
    return [FoundLayer(name, *_kind(tensors), tensors) for name, tensors in grouped.items()]


def _kind(tensors: Mapping[str, TensorInfo]) -> tuple[str, str]:
    if "running_mean" in tensors and "running_var" in tensors:
        return "batch_norm", f"{tensors['running_mean'].numel} channels, eps is not stored"
    for role, note in WEIGHTS.items():
        if role in tensors:
            kind, detail = _by_shape(tensors[role].shape)
            facts = [detail, "bias" if "bias" in tensors else "", note]
            return kind, ", ".join(fact for fact in facts if fact)
    return "other", ", ".join(tensors)


def _by_shape(shape: tuple[int, ...]) -> tuple[str, str]:
    if len(shape) in (3, 4, 5):
        kernel = "x".join(map(str, shape[2:]))
        if shape[1] == 1 and shape[0] > 1:
            return "conv", f"{kernel}, 1 to {shape[0]} channels, or depthwise (groups {shape[0]})"
        return "conv", f"{kernel}, {shape[1]} to {shape[0]} channels (groups 1)"
    if len(shape) == 2:
        return "linear", f"{shape[1]} to {shape[0]}"
    if len(shape) == 1:
        return "scale", f"{shape[0]} channels; or a norm, or PReLU"
    return "other", f"shape {list(shape)}"
