"""A model in, a smaller model out: trace, scan, merge, put in place, compare."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from convsqueeze.checkpoint import from_state_dict
from convsqueeze.copying import copied
from convsqueeze.errors import ModelInputError
from convsqueeze.manifest import Border, Manifest, document_data, manifest_from_data
from convsqueeze.models.inputs import Inputs, guess_inputs, inputs_of
from convsqueeze.models.verifying import verify_whole
from convsqueeze.models.whole import WholeReport
from convsqueeze.pipeline import MergeReport, merge_state_dict
from convsqueeze.plan import Growth, Minimize
from convsqueeze.plan.parts import Latency
from convsqueeze.scan import LeftAlone, Scan, scan
from convsqueeze.surgery.apply import applied
from convsqueeze.tracing import traced


@dataclass(frozen=True)
class SqueezeReport:
    """What `squeeze` did: what it found, what it merged and what comparing both models showed.

    `merged` and `whole` are None where nothing was worth merging.
    """

    scan: Scan
    merged: MergeReport | None = None
    whole: WholeReport | None = None
    notes: tuple[str, ...] = ()

    @property
    def weights_before(self) -> int:
        """Numbers in the layers that were merged."""
        return self.merged.weights_before if self.merged else 0

    @property
    def weights_after(self) -> int:
        return self.merged.weights_after if self.merged else 0

    @property
    def left(self) -> tuple[LeftAlone, ...]:
        """Layers that were left alone, and why."""
        return self.scan.left


def squeeze(
    model: nn.Module,
    example_inputs: Tensor | Sequence[Any] | None = None,
    *,
    minimize: Minimize = "weights",
    border: Border = "exact",
    growth: Growth = "refuse",
    latency: Latency | None = None,
) -> tuple[nn.Module, SqueezeReport]:
    """A copy of `model` in which layers with nothing non-linear between them are one, and a report.

    Its forward is followed on `example_inputs` (a tensor, or its positional arguments; by default a
    guess from its first layer), and both models are run on them at the end, in float64 and eval
    mode. The given model is untouched. A norm in training mode is left alone: call `model.eval()`
    first.

    Raises TracingError where the model's code cannot be followed, ModelInputError where an example
    is needed, VerificationError where the two models differ by more than rounding.
    """
    notes: tuple[str, ...] = ()
    _check_values(model)
    if example_inputs is None:
        guess = guess_inputs(model)
        inputs, notes = guess.inputs, (guess.told,)
    else:
        inputs = inputs_of(example_inputs)
    found = scan_model(
        model, inputs, minimize=minimize, border=border, growth=growth, latency=latency
    )
    manifest = manifest_of(found)
    if manifest is None:
        return copied(model), SqueezeReport(found, notes=notes)
    state, merged = merge_state_dict(model.state_dict(), manifest, growth=growth)
    squeezed, plan = applied(model, from_state_dict(state))
    whole = verify_whole(model, squeezed, inputs, plan=plan)
    whole.raise_if_failed()
    return squeezed, SqueezeReport(found, merged, whole, notes)


def scan_model(
    model: nn.Module,
    inputs: Inputs,
    *,
    minimize: Minimize = "weights",
    border: Border = "exact",
    growth: Growth = "refuse",
    latency: Latency | None = None,
) -> Scan:
    """What of a model can be merged, and what of it pays; see `convsqueeze.scan.scan`.

    Raises TracingError where the model's code cannot be followed.
    """
    _check_values(model)
    own = from_state_dict(model.state_dict())
    graph = traced(model, _beside(model, inputs), own.prefix)
    return scan(
        graph, own.tensors, border=border, growth=growth, minimize=minimize, latency=latency
    )


def _check_values(model: nn.Module) -> None:
    """Raises ModelInputError for a lazy module that has not run yet."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise ModelInputError(
                f"{type(model).__name__}: {name} has no shape yet, as its module is lazy and never "
                "ran. Call the model once, or load its weights, first."
            )


def _beside(model: nn.Module, inputs: Inputs) -> tuple[Any, ...]:
    """Arguments on the model's device and in its dtype."""
    tensors = [p for p in (*model.parameters(), *model.buffers()) if p.is_floating_point()]
    first = tensors[0] if tensors else torch.zeros(())
    return tuple(
        x.to(first.device) if isinstance(x, Tensor) else x for x in inputs.first(first.dtype)
    )


def manifest_of(found: Scan, source: str = "scan") -> Manifest | None:
    """The scan's manifest, whose entries messages place in `source`; None where nothing is worth
    merging.
    """
    document = found.document
    if document is None:
        return None
    return manifest_from_data(document_data(document), source)
