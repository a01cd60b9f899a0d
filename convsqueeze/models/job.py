"""A file merged as its model's code says: scanned, merged, and compared as a whole before it is
written.
"""

from torch import nn

from convsqueeze.checkpoint import from_state_dict
from convsqueeze.checkpoint.new_files import NewFiles
from convsqueeze.copying import Sandbox
from convsqueeze.models.inputs import Inputs
from convsqueeze.models.verifying import merged_parameters, verify_whole
from convsqueeze.models.whole import Track, WholeReport, untracked
from convsqueeze.pipeline import Result
from convsqueeze.surgery.apply import with_layers


class WholeJob:
    """Beside a merge: holds the whole model with the merged layers against the model as it was."""

    def __init__(
        self,
        model: nn.Module,
        inputs: Inputs,
        *,
        seed: int = 0,
        track: Track = untracked,
        sandbox: Sandbox | None = None,
    ) -> None:
        """`model` has the weights that are merged; `sandbox` is its own."""
        self._model, self._inputs, self._sandbox = model, inputs, sandbox
        self._seed, self._track = seed, track
        self.report: WholeReport | None = None

    def __call__(self, result: Result, files: NewFiles) -> None:
        """Raises VerificationError where the models differ, ModelMismatchError where a merged layer
        has no place in the model.
        """
        model = self._model
        own = from_state_dict(model.state_dict())
        layers, plan = result.modules(), result.plan
        squeezed = with_layers(model, own, plan.merges, lambda merge: layers[merge.into])
        self.report = verify_whole(
            *(model, squeezed, self._inputs),
            exact=merged_parameters(result, own.prefix),
            seed=self._seed,
            track=self._track,
            sandbox=self._sandbox,
        )
        self.report.raise_if_failed()
