"""The main job from end to end: open, plan, squeeze, verify, write. The same for a file and for a
state dict in memory.
"""

from convsqueeze.pipeline.files import MergedFile, compose, merge_file, verify_files
from convsqueeze.pipeline.merging import MergeReport, Result, squeeze_checkpoint
from convsqueeze.pipeline.reviewing import ReviewedFile, review_file
from convsqueeze.pipeline.state_dicts import merge_state_dict

__all__ = [
    "MergeReport",
    "MergedFile",
    "Result",
    "ReviewedFile",
    "compose",
    "merge_file",
    "merge_state_dict",
    "review_file",
    "squeeze_checkpoint",
    "verify_files",
]
