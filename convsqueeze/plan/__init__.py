"""Planning: every refusal, from names and shapes, before any arithmetic."""

from convsqueeze.plan.memory import bytes_needed, memory_problem
from convsqueeze.plan.model import Growth, Merge, Plan, Timing, geometry_tree
from convsqueeze.plan.planner import make_plan, plan_of
from convsqueeze.plan.resolve import ResolvedLayer

__all__ = [
    "Growth",
    "Merge",
    "Plan",
    "ResolvedLayer",
    "Timing",
    "bytes_needed",
    "geometry_tree",
    "make_plan",
    "memory_problem",
    "plan_of",
]
