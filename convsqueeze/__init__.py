"""Merge trained convolutions that follow each other into one, exactly.

squeeze(model)                         your own model, smaller, and what was done
load_layers(path)                      each squeezed layer, ready to call
apply(model, path)                     the squeezed layers in your own model
merge_state_dict(state_dict, manifest) the same merge in memory
Conv, layers                           the algebra: `outer @ inner`, `a + b`, `s * a`
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convsqueeze.algebra import Axis, Conv
    from convsqueeze.errors import ConvsqueezeError
    from convsqueeze.kinds import layers
    from convsqueeze.manifest import Manifest, load_manifest
    from convsqueeze.models import SqueezeReport, apply, squeeze
    from convsqueeze.module import SqueezedConv, load_layers
    from convsqueeze.pipeline import MergeReport, merge_file, merge_state_dict, verify_files

_HOMES = {
    "convsqueeze.algebra": ("Axis", "Conv"),
    "convsqueeze.errors": ("ConvsqueezeError",),
    "convsqueeze.kinds": ("layers",),
    "convsqueeze.manifest": ("Manifest", "load_manifest"),
    "convsqueeze.models": ("SqueezeReport", "apply", "squeeze"),
    "convsqueeze.module": ("SqueezedConv", "load_layers"),
    "convsqueeze.pipeline": ("MergeReport", "merge_file", "merge_state_dict", "verify_files"),
}
"""Imported when a name is first asked for: the command line starts before torch is there."""

__all__ = [
    "Axis",
    "Conv",
    "ConvsqueezeError",
    "Manifest",
    "MergeReport",
    "SqueezeReport",
    "SqueezedConv",
    "apply",
    "layers",
    "load_layers",
    "load_manifest",
    "merge_file",
    "merge_state_dict",
    "squeeze",
    "verify_files",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
