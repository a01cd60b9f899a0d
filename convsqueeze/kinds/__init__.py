"""The kinds of layers: one file each, with everything that is known of the kind."""

from convsqueeze.kinds import layers
from convsqueeze.kinds.layer import Layer
from convsqueeze.kinds.registry import KINDS, LAYER_KINDS

__all__ = ["KINDS", "LAYER_KINDS", "Layer", "layers"]
