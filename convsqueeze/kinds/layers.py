"""Each kind of layer as a `Conv`, in torch's own terms and with torch's defaults."""

from convsqueeze.kinds.avg_pool import average_pool
from convsqueeze.kinds.batch_norm import batch_norm
from convsqueeze.kinds.conv import convolution
from convsqueeze.kinds.conv_transpose import transposed
from convsqueeze.kinds.identity import identity
from convsqueeze.kinds.linear import linear
from convsqueeze.kinds.operators import Padding, PerAxis, diagonal, padding_pairs, per_axis
from convsqueeze.kinds.pad import pad
from convsqueeze.kinds.scale import scale

__all__ = [
    "Padding",
    "PerAxis",
    "average_pool",
    "batch_norm",
    "convolution",
    "diagonal",
    "identity",
    "linear",
    "pad",
    "padding_pairs",
    "per_axis",
    "scale",
    "transposed",
]
