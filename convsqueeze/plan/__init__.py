"""Planning: every refusal, from names and shapes, before any arithmetic."""

from convsqueeze.plan.memory import check_memory
from convsqueeze.plan.model import Growth, Merge, Plan, Timing, geometry_tree
from convsqueeze.plan.partition import best_partition
from convsqueeze.plan.parts import Cost, Minimize, Partition, Rejected
from convsqueeze.plan.planner import make_plan, plan_of
from convsqueeze.plan.resolve import ResolvedLayer
from convsqueeze.plan.review import Review, Reviewed, review

__all__ = [
    "Cost",
    "Growth",
    "Merge",
    "Minimize",
    "Partition",
    "Plan",
    "Rejected",
    "ResolvedLayer",
    "Review",
    "Reviewed",
    "Timing",
    "best_partition",
    "check_memory",
    "geometry_tree",
    "make_plan",
    "plan_of",
    "review",
]
