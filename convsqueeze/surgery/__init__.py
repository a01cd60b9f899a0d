"""Squeezed layers put into the user's own model. Knows modules, plans and recipes."""

from convsqueeze.surgery.apply import applied, plan_of

__all__ = ["applied", "plan_of"]
