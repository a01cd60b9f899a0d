"""Squeezed layers put into the user's own model. Knows modules, plans and recipes."""

from convsqueeze.surgery.apply import Zero, apply

__all__ = ["Zero", "apply"]
