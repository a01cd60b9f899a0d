"""A file merged as its model's code says: scanned, merged, and compared as a whole before it is
written.
"""

from dataclasses import replace

from convsqueeze.checkpoint import edited_state_dict, from_state_dict
from convsqueeze.checkpoint.new_files import NewFiles
from convsqueeze.models.code import Code
from convsqueeze.models.verifying import verify_whole
from convsqueeze.models.whole import Track, WholeReport, untracked
from convsqueeze.pipeline import Result
from convsqueeze.surgery.apply import applied


class WholeJob:
    """Beside a merge: holds the whole model with the merged layers against the model as it was."""

    def __init__(self, code: Code, *, seed: int = 0, track: Track = untracked) -> None:
        """`code` is the model with the weights that are merged."""
        self._code, self._seed, self._track = code, seed, track
        self.report: WholeReport | None = None

    def __call__(self, result: Result, files: NewFiles) -> None:
        """Raises VerificationError where the models differ, ModelMismatchError where a merged layer
        has no place in the model.
        """
        model = self._code.model
        own = from_state_dict(model.state_dict())
        edits = [replace(edit, insert=edit.tensors()) for edit in result.edits]
        state = edited_state_dict(own, edits, result.draft.to_json())
        squeezed, plan = applied(model, from_state_dict(state))
        self.report = verify_whole(
            *(model, squeezed, self._code.inputs),
            plan=plan,
            seed=self._seed,
            track=self._track,
            sandbox=self._code.sandbox,
        )
        self.report.raise_if_failed()
