"""The main job from end to end: open, plan, squeeze, verify, write. The same for a file and for a
state dict in memory.
"""

from convsqueeze.pipeline.files import MergedFile, compose, merge_file, verify_files
from convsqueeze.pipeline.merging import MergeReport, squeeze_checkpoint
from convsqueeze.pipeline.state_dicts import merge_state_dict

__all__ = [
    "MergeReport",
    "MergedFile",
    "compose",
    "merge_file",
    "merge_state_dict",
    "squeeze_checkpoint",
    "verify_files",
]
