"""Every kind of layer, one line each, in the order in which a manifest's schema lists them."""

from collections.abc import Mapping
from typing import get_args

from convsqueeze.kinds.avg_pool import AvgPoolLayer
from convsqueeze.kinds.batch_norm import BatchNormLayer
from convsqueeze.kinds.conv import ConvLayer
from convsqueeze.kinds.conv_transpose import ConvTransposeLayer
from convsqueeze.kinds.identity import IdentityLayer
from convsqueeze.kinds.layer import Layer
from convsqueeze.kinds.linear import LinearLayer
from convsqueeze.kinds.pad import PadLayer
from convsqueeze.kinds.scale import ScaleLayer

KINDS: tuple[type[Layer], ...] = (
    ConvLayer,
    ConvTransposeLayer,
    LinearLayer,
    BatchNormLayer,
    ScaleLayer,
    AvgPoolLayer,
    IdentityLayer,
    PadLayer,
)

LAYER_KINDS: Mapping[str, type[Layer]] = {
    get_args(kind.model_fields["type"].annotation)[0]: kind for kind in KINDS
}
"""By the name that a manifest has for it."""
