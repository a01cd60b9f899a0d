"""Verification that can fail: original layers against squeezed ones, from the stored tensors."""

from convsqueeze.verify.effort import check_effort, effort_problem
from convsqueeze.verify.files import Report, Settings, verify_checkpoints, verify_merge, verify_plan
from convsqueeze.verify.layer import check_layer
from convsqueeze.verify.maps import DifferenceMap
from convsqueeze.verify.outcome import LayerReport
from convsqueeze.verify.worst import Worst, worst_of

__all__ = [
    "DifferenceMap",
    "LayerReport",
    "Report",
    "Settings",
    "Worst",
    "check_effort",
    "check_layer",
    "effort_problem",
    "verify_checkpoints",
    "verify_merge",
    "verify_plan",
    "worst_of",
]
