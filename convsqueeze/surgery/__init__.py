"""Squeezed layers put into the user's own model. Knows modules, plans and recipes."""

from convsqueeze.surgery.apply import Zero, applied, plan_of

__all__ = ["Zero", "applied", "plan_of"]
