"""A file merged as its model's code says: scanned, merged, and compared as a whole before it is
written.
"""

from dataclasses import replace

from torch import nn

from convsqueeze.checkpoint import edited_state_dict, from_state_dict
from convsqueeze.checkpoint.new_files import NewFiles
from convsqueeze.models.inputs import Inputs
from convsqueeze.models.verifying import untracked, verify_whole
from convsqueeze.models.whole import Track, WholeReport
from convsqueeze.pipeline import Result
from convsqueeze.surgery.apply import applied


class WholeJob:
    """After verification: holds the whole model with the merged layers against the model as it was.

    `model` has the weights that are merged.
    """

    def __init__(
        self, model: nn.Module, inputs: Inputs, *, seed: int = 0, track: Track = untracked
    ) -> None:
        self._model, self._inputs, self._seed, self._track = model, inputs, seed, track
        self.report: WholeReport | None = None

    def __call__(self, result: Result, files: NewFiles) -> None:
        """Raises VerificationError where the models differ, ModelMismatchError where a merged layer
        has no place in the model.
        """
        own = from_state_dict(self._model.state_dict())
        edits = [replace(edit, insert=edit.tensors()) for edit in result.edits]
        state = edited_state_dict(own, edits, result.recipe_text.draft)
        squeezed, plan = applied(self._model, from_state_dict(state))
        self.report = verify_whole(
            self._model, squeezed, self._inputs, plan=plan, seed=self._seed, track=self._track
        )
        self.report.raise_if_failed()
