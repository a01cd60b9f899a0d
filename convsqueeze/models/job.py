"""A file merged as its model's code says: scanned, merged, and compared as a whole before it is
written.
"""

from convsqueeze.checkpoint import Checkpoint, from_state_dict
from convsqueeze.checkpoint.new_files import NewFiles
from convsqueeze.errors import PlanError
from convsqueeze.manifest import Border
from convsqueeze.models.code import Code
from convsqueeze.models.inputs import example_arguments
from convsqueeze.models.report import WholeReport
from convsqueeze.models.squeeze import scan_model, scan_plan
from convsqueeze.models.verifying import merged_parameters, verify_whole
from convsqueeze.pipeline import Result
from convsqueeze.pipeline.merging import Planner
from convsqueeze.pipeline.tracking import Track, untracked
from convsqueeze.plan import Growth, Plan
from convsqueeze.surgery.apply import with_layers


def planner_from_code(
    code: Code, place: str, track: Track, *, border: Border | None, growth: Growth
) -> Planner:
    """What plans the merges that a scan of the model at `place` finds.

    It raises PlanError where nothing is worth merging, and as `scan_model` does.
    """

    def plan(checkpoint: Checkpoint) -> Plan:
        track(f"scanning {place}", 0, 0)
        found = scan_model(
            code.model,
            code.inputs,
            border=border or "exact",
            growth=growth,
            stored=checkpoint.tensors,
            sandbox=code.sandbox,
        )
        made = scan_plan(found, checkpoint, place, growth)
        if made is None:
            why = f"`convsqueeze scan {place}` says why"
            raise PlanError([f"{place}: no layers of it are worth merging. {why}."])
        return made

    return plan


class WholeJob:
    """After verification: holds the whole model with the merged layers against the original."""

    def __init__(self, code: Code, *, seed: int = 0, track: Track = untracked) -> None:
        """`code` is that of the model with the weights that are merged."""
        self._code, self._seed, self._track = code, seed, track
        self.report: WholeReport | None = None

    def __call__(self, result: Result, files: NewFiles) -> None:
        """Raises VerificationError where the models differ, ModelMismatchError where a merged layer
        has no place in the model.
        """
        model, inputs = self._code.model, self._code.inputs
        own = from_state_dict(model.state_dict())
        layers, plan = result.modules(), result.plan
        squeezed = with_layers(
            *(model, own, plan.merges, lambda merge: layers[merge.into]),
            arguments=example_arguments(model, inputs),
        )
        self.report = verify_whole(
            *(model, squeezed, inputs),
            exact=merged_parameters(result, own.prefix),
            seed=self._seed,
            track=self._track,
            sandbox=self._code.sandbox,
        )
        self.report.raise_if_failed()
