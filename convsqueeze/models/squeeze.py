"""A model in, a smaller model out: trace, scan, merge, put in place, compare."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import RLock
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.fx import GraphModule
from torch.nn.parameter import is_lazy

from convsqueeze.checkpoint import Checkpoint, TensorInfo, from_state_dict
from convsqueeze.copying import Sandbox, copied
from convsqueeze.device import CPU
from convsqueeze.errors import ModelInputError, PlanError, TracingError
from convsqueeze.manifest import Border, Manifest
from convsqueeze.models.arguments import positional
from convsqueeze.models.inputs import Inputs, example_arguments, guess_inputs, inputs_of
from convsqueeze.models.report import WholeReport
from convsqueeze.models.running import runnable
from convsqueeze.models.verifying import merged_parameters, verify_whole
from convsqueeze.module import SqueezedConv
from convsqueeze.names import listed
from convsqueeze.pipeline.merging import MergeReport, squeeze_checkpoint
from convsqueeze.plan import Growth, Plan, check_memory, plan_of
from convsqueeze.plan.pricing import Latency, Minimize
from convsqueeze.scan import LeftAlone, Scan, scan
from convsqueeze.scan.writing import left_lines
from convsqueeze.surgery.apply import with_layers
from convsqueeze.tracing import traced
from convsqueeze.verify import Settings


@dataclass(frozen=True, repr=False)
class SqueezeReport:
    """What `squeeze` did: what it found, what it merged and what comparing both models showed. As a
    string it is the table that the command prints, and what was left alone.

    `merged` and `whole` are None where nothing was worth merging.
    """

    scan: Scan
    merged: MergeReport | None = None
    whole: WholeReport | None = None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        merged = "Nothing to merge." if self.merged is None else str(self.merged)
        notes = (*self.notes, *self.scan.notes, *(self.whole.notes if self.whole else ()))
        lines = [*(f"note: {note}" for note in notes), merged, *left_lines(self.left)]
        if self.whole is not None:
            lines.append(f"whole model: {self.whole.describe()}")
        return "\n".join(lines)

    __repr__ = __str__

    @property
    def weights_before(self) -> int:
        """Numbers in the layers that were merged."""
        return self.merged.weights_before if self.merged else 0

    @property
    def weights_after(self) -> int:
        """Numbers in what they became."""
        return self.merged.weights_after if self.merged else 0

    @property
    def left(self) -> tuple[LeftAlone, ...]:
        """Layers that were left alone, and why."""
        return self.scan.left


_ONE_AT_A_TIME = RLock()
"""Following a model's code changes what is the whole process's: torch's tracing and its log, and
where text is printed.
"""


def squeeze(
    model: nn.Module,
    example_inputs: Tensor | Sequence[Any] | Mapping[str, Any] | None = None,
    *,
    minimize: Minimize = "weights",
    border: Border = "exact",
    growth: Growth = "refuse",
    widen: bool = False,
    latency: Latency | None = None,
) -> tuple[nn.Module, SqueezeReport]:
    """A copy of `model` in which layers with nothing non-linear between them are one, and a report.

    Its forward is followed on `example_inputs` (a tensor, its positional arguments or a dict of
    named ones; by default a guess from its first layer), and both models are run on them at the
    end, in float64 and eval mode: hooks of the model are called. The given model is untouched. The
    copy is for eval mode: a norm in training mode is left alone, so call `model.eval()` first.
    `widen` stores what a merge makes too large for its dtype in a wider one; `latency` measures
    where that is minimised, by default in torch. Threads take turns.

    Raises TracingError where the model's code cannot be followed, ModelInputError where an example
    is needed or does not fit, TensorDataError for merged values that are not finite, PlanError for
    a policy that there is not, VerificationError where the two models differ by more than rounding.
    """
    _check_policies(minimize=(minimize, Minimize), border=(border, Border), growth=(growth, Growth))
    _check_values(model)
    _check_has_modules(model)
    with _ONE_AT_A_TIME, torch.inference_mode(mode=False):
        sandbox = Sandbox(model)
        inputs, notes = _inputs(model, example_inputs, sandbox)
        notes = (*_mode_notes(model), *notes, *_squeezed_notes(model))
        if minimize == "latency" and latency is None:
            from convsqueeze.latency import measuring

            latency = measuring("torch")
        found = scan_model(
            *(model, inputs),
            minimize=minimize,
            border=border,
            growth=growth,
            latency=latency,
            sandbox=sandbox,
        )
        with CPU:
            own = from_state_dict(model.state_dict()) if found.document else None
            plan = scan_plan(found, own, "scan", growth) if own else None
            if own is None or plan is None:
                return copied(model), SqueezeReport(found, notes=notes)
            for name, tensor in model.state_dict().items():
                if isinstance(tensor, Tensor) and tensor.is_meta:
                    own.load(name.removeprefix(own.prefix))  # which raises
            check_memory(plan)
            result = squeeze_checkpoint(
                plan, own, growth=growth, widen=widen, settings=Settings(), keep_exact=True
            )
            layers = result.modules()
            squeezed = with_layers(model, own, plan.merges, lambda merge: layers[merge.into])
            exact = merged_parameters(result, own.prefix)
            whole = verify_whole(model, squeezed, inputs, exact=exact, sandbox=sandbox)
    whole.raise_if_failed()
    merged = MergeReport(
        plan, result.verification, (*plan.notes, *result.notes), widened=result.widened
    )
    return squeezed, SqueezeReport(found, merged, whole, notes)


def _check_policies(**policies: tuple[object, Any]) -> None:
    """Raises PlanError for a word that is none of those that a policy has."""
    problems = [
        f"{name}: {given!r} was given, one of {', '.join(get_args(words))} was needed."
        for name, (given, words) in policies.items()
        if given not in get_args(words)
    ]
    if problems:
        raise PlanError(problems)


def _inputs(model: nn.Module, examples: Any, sandbox: Sandbox) -> tuple[Inputs, tuple[str, ...]]:
    """What the model is followed on, and what is to be told of it."""
    if examples is None:
        guess = guess_inputs(model, sandbox)
        return guess.inputs, (guess.note,)
    return inputs_of(positional(model, examples)), ()


def _mode_notes(model: nn.Module) -> Iterator[str]:
    if model.training:
        yield (
            "the model is in training mode, in which norms are not constant and dropout is not "
            "off, so they were left alone. Call model.eval() first"
        )


def _squeezed_notes(model: nn.Module) -> Iterator[str]:
    names = [n or "the model" for n, m in model.named_modules() if isinstance(m, SqueezedConv)]
    if names:
        yield f"squeezed already, and merged again only where more pays: {listed(names)}"


def scan_model(
    model: nn.Module,
    inputs: Inputs,
    *,
    minimize: Minimize = "weights",
    border: Border = "exact",
    growth: Growth = "refuse",
    latency: Latency | None = None,
    stored: Mapping[str, TensorInfo] | None = None,
    sandbox: Sandbox | None = None,
) -> Scan:
    """What of a model can be merged, and what of it pays; see `convsqueeze.scan.scan`. The model's
    code is run in the `sandbox`.

    `stored` are the tensors of the file that will be merged, by default those of the model.

    Raises TracingError where the model's code cannot be followed, ModelInputError where it does not
    run on these inputs.
    """
    _check_values(model)
    prefix, infos = _stored(model)
    sandbox = sandbox or Sandbox(model)
    try:
        graph = traced(model, example_arguments(model, inputs), prefix, sandbox)
    except TracingError:
        runnable(sandbox, inputs.first)
        raise
    with CPU:
        return scan(
            graph,
            infos if stored is None else stored,
            border=border,
            growth=growth,
            minimize=minimize,
            latency=latency,
        )


def _stored(model: nn.Module) -> tuple[str, Mapping[str, TensorInfo]]:
    """The prefix that all tensors of a model have, and the tensors without it; it may have none."""
    state = model.state_dict()
    if not any(isinstance(value, Tensor) for value in state.values()):
        return "", {}
    own = from_state_dict(state)
    return own.prefix, own.tensors


def _check_values(model: nn.Module) -> None:
    """Raises ModelInputError for what is no module with code of its own, and a lazy one that has
    not run yet.
    """
    if not isinstance(model, nn.Module):
        kind = model.__name__ if isinstance(model, type) else type(model).__name__
        raise ModelInputError(f"{kind}: is no torch.nn.Module, the model itself was needed.")
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelInputError(
            f"{type(model).__name__}: is compiled, so its code cannot be followed. Squeeze the "
            "module that it was made of, then compile that."
        )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise ModelInputError(
                f"{type(model).__name__}: {name} has no shape yet, as its module is lazy and never "
                "ran. Call the model once, or load its weights, first."
            )


def _check_has_modules(model: nn.Module) -> None:
    """Raises ModelInputError for what torch.export makes of a model: layers that are no modules."""
    if not isinstance(model, GraphModule):
        return
    calls = [node.target for node in model.graph.nodes if node.op == "call_function"]
    modules = [node.target for node in model.graph.nodes if node.op == "call_module"]
    has_layers = any(True for name in modules for _ in model.get_submodule(name).parameters())
    if not has_layers and any(isinstance(target, OpOverload) for target in calls):
        raise ModelInputError(
            f"{type(model).__name__}: is what torch.export makes of a model: its layers are calls "
            "of operators and no modules, so none can be replaced. Squeeze the model that it was "
            "made of, then export that."
        )


def scan_plan(found: Scan, checkpoint: Checkpoint, source: str, growth: Growth) -> Plan | None:
    """The plan of a scan's merges for the checkpoint whose tensors it was given; None where nothing
    is worth merging. Raises PlanError for what stands against it.
    """
    if found.document is None:
        return None
    manifest = Manifest(found.document, source)
    return plan_of(manifest, found.merged, checkpoint, growth=growth)
