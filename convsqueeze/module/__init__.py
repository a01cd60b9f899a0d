"""Squeezed layers as torch modules, and how a squeezed file gives them."""

from convsqueeze.module.files import load_layers, module_of, modules_of, stored_tensors
from convsqueeze.module.layer import SqueezedConv

__all__ = ["SqueezedConv", "load_layers", "module_of", "modules_of", "stored_tensors"]
