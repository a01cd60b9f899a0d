"""Merge trained convolutions that follow each other into one, exactly.

load_layers(path)                      each squeezed layer, ready to call
apply(model, path)                     the squeezed layers in your own model
merge_state_dict(state_dict, manifest) the same merge in memory
Conv, layers                           the algebra: `outer @ inner`, `a + b`, `s * a`
"""

from convsqueeze.algebra import Axis, Conv, layers
from convsqueeze.errors import ConvsqueezeError
from convsqueeze.manifest import Manifest, load_manifest
from convsqueeze.module import SqueezedConv, load_layers
from convsqueeze.pipeline import MergeReport, merge_file, merge_state_dict, verify_files
from convsqueeze.surgery import apply

__all__ = [
    "Axis",
    "Conv",
    "ConvsqueezeError",
    "Manifest",
    "MergeReport",
    "SqueezedConv",
    "apply",
    "layers",
    "load_layers",
    "load_manifest",
    "merge_file",
    "merge_state_dict",
    "verify_files",
]
