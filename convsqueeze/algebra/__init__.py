"""The algebra of convolutions: geometry, values, layer kinds and the border. Imports only torch."""

from convsqueeze.algebra.conv import Conv
from convsqueeze.algebra.geometry import Axis, Geometry
from convsqueeze.algebra.tree import Chain, Sum

__all__ = ["Axis", "Chain", "Conv", "Geometry", "Sum"]
