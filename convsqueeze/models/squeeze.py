"""A model in, a smaller model out: trace, scan, merge, put in place, compare. The same walk for a
model in memory and for the file that a model's weights are in.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import RLock
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.fx import GraphModule
from torch.nn.parameter import is_lazy

from convsqueeze.checkpoint import Checkpoint, TensorInfo, from_state_dict, open_checkpoint
from convsqueeze.copying import Sandbox, copied
from convsqueeze.device import CPU
from convsqueeze.errors import ModelInputError, ModelMismatchError, PlanError, TracingError
from convsqueeze.manifest import Border, Manifest
from convsqueeze.models.distances import distances, is_beyond, largest_value, named_tensors
from convsqueeze.models.factory import Code, check_not_compiled
from convsqueeze.models.inputs import Inputs, example_arguments, guess_inputs, inputs_of, positional
from convsqueeze.models.running import Running, runnable
from convsqueeze.models.whole import WholeReport, exact_parameters, verify_whole
from convsqueeze.module import SqueezedConv
from convsqueeze.names import listed
from convsqueeze.paths import anchored
from convsqueeze.pipeline.merging import MergeReport, Result, squeeze_checkpoint
from convsqueeze.pipeline.tracking import Track
from convsqueeze.plan import Growth, Plan, plan_of
from convsqueeze.plan.pricing import Latency, Minimize
from convsqueeze.scan import LeftAlone, Scan, scan
from convsqueeze.scan.writing import left_lines
from convsqueeze.surgery.apply import applied, with_layers
from convsqueeze.tracing import traced
from convsqueeze.verify import Settings

TOLERANCE = 1e-3
"""Of the largest output of an example: far above float32's rounding, far below a lost activation.
"""
ROUNDINGS = 8
"""Where that is more: how many roundings to the coarsest dtype of merged weights may add up."""


@dataclass(frozen=True, repr=False)
class SqueezeReport:
    """What `squeeze` did: what it found, what it merged and what comparing both models showed. As a
    string it is the table that the command prints, and what was left alone.

    `merged` and `whole` are None where nothing was worth merging. `notes` are all that is good to
    know: of the model, and those of `scan`, `merged` and `whole`.
    """

    scan: Scan
    merged: MergeReport | None = None
    whole: WholeReport | None = None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        merged = "Nothing to merge." if self.merged is None else str(self.merged)
        shown = self.merged.notes if self.merged else ()
        notes = (f"note: {note}" for note in self.notes if note not in shown)
        lines = [*notes, merged, *left_lines(self.left)]
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
    notes = []
    if model.training:
        notes.append(
            "the model is in training mode, in which norms are not constant and dropout is not "
            "off, so they were left alone. Call model.eval() first"
        )
    with _ONE_AT_A_TIME, torch.inference_mode(mode=False), Sandbox(model) as sandbox:
        if example_inputs is None:
            inputs, guessed = guess_inputs(model, sandbox)
            notes.append(guessed)
        else:
            inputs = inputs_of(positional(model, example_inputs))
        names = [n or "the model" for n, m in model.named_modules() if isinstance(m, SqueezedConv)]
        if names:
            notes.append(
                f"squeezed already, and merged again only where more pays: {listed(names)}"
            )
        if minimize == "latency" and latency is None:
            from convsqueeze.latency import measuring

            latency = measuring("torch")
        policies: dict[str, Any] = {"minimize": minimize, "border": border, "growth": growth}
        found = scan_model(model, inputs, **policies, latency=latency, sandbox=sandbox)
        with CPU:
            if found.document is None:
                sandbox.restore()
                return copied(model), SqueezeReport(found, notes=(*notes, *found.notes))
            model_state = from_state_dict(model.state_dict())
            merges = found.merged
            plan = plan_of(Manifest(found.document, "scan"), merges, model_state, growth=growth)
            for name, tensor in model.state_dict().items():
                if isinstance(tensor, Tensor) and tensor.is_meta:
                    model_state.load(name.removeprefix(model_state.prefix))  # which raises
            result = squeeze_checkpoint(
                plan, model_state, growth=growth, widen=widen, settings=Settings(), keep_exact=True
            )
            squeezed, whole = put_in_place(
                model, result, inputs, model_state=model_state, sandbox=sandbox
            )
    merging = (*plan.notes, *result.notes)
    merged = MergeReport(plan, result.verification, merging, widened=result.widened)
    every = tuple(dict.fromkeys((*notes, *found.notes, *merging, *whole.notes)))
    return squeezed, SqueezeReport(found, merged, whole, every)


def put_in_place(
    model: nn.Module,
    result: Result,
    inputs: Inputs,
    *,
    sandbox: Sandbox,
    model_state: Checkpoint | None = None,
    **options: Any,
) -> tuple[nn.Module, WholeReport]:
    """A copy of the model with the layers of a result, and what comparing both showed.

    `result` has the values before they were rounded, `own` are the model's tensors, `options` are
    those of `verified`. Raises ModelMismatchError where a merged layer has no place in the model,
    VerificationError where the two models differ by more than rounding.
    """
    model_state = model_state or from_state_dict(model.state_dict())
    layers = result.modules()
    squeezed = with_layers(
        *(model, model_state, result.plan.merges, lambda merge: layers[merge.into]),
        arguments=example_arguments(model, inputs),
        sandbox=sandbox,
    )
    exact = exact_parameters(
        result.plan, model_state.prefix, lambda merge: result.exact[merge.into]
    )
    report = verify_whole(model, squeezed, inputs, exact=exact, sandbox=sandbox, **options)
    report.raise_if_failed()
    return squeezed, report


def plan_from_code(
    code: Code,
    place: str,
    track: Track,
    border: Border | None,
    growth: Growth,
    checkpoint: Checkpoint,
) -> Plan:
    """The plan, for a checkpoint, of the merges that a scan of the model at `place` finds.

    Raises PlanError where nothing is worth merging, and as `scan_model` does.
    """
    track(f"scanning {place}", 0, 0)
    found = scan_model(
        *(code.model, code.inputs),
        border=border or "exact",
        growth=growth,
        stored=checkpoint.tensors,
        sandbox=code.sandbox,
    )
    if found.document is None:
        why = f"`convsqueeze scan {place}` says why"
        raise PlanError([f"{place}: no layers of it can be merged and pay. {why}."])
    manifest = Manifest(found.document, place)
    plan = plan_of(manifest, found.merged, checkpoint, growth=growth)
    return replace(plan, notes=(*found.notes, *plan.notes))


def apply(
    model: nn.Module,
    path: str | Path,
    *,
    key: str | None = None,
    example: Tensor | Sequence[Any] | Mapping[str, Any] | None = None,
) -> nn.Module:
    """A copy of `model` with the squeezed layers of a file in place and all its tensors loaded.

    The module named `into` becomes the squeezed layer; the other merged modules become
    `nn.Identity` (in another branch of a sum: `Zero`). `key` chooses the state dict in a wrapped
    file. The given model is left as it is. With an `example` (a tensor, a tuple of positional
    arguments or a dict of named ones) both models are run on it in float64 and eval mode (the given
    one with the weights it has) and must agree: the only check that sees an activation between two
    layers, or an order that is not the model's.

    Raises ModelMismatchError with every reason where the model's layers are not those of the
    recipe, its own code would still do a part of the merge, or the outputs differ; ModelInputError
    where the model does not take the example; CheckpointError for the file.
    """
    arguments = None if example is None else positional(model, example, "example")
    with Sandbox(model) as sandbox:
        checkpoint = open_checkpoint(anchored(path), key=key)
        squeezed, plan = applied(model, checkpoint, arguments, sandbox)
        if arguments is None:
            return squeezed
        one = runnable(sandbox, inputs_of(arguments).first, "example")
    before = named_tensors(one.gave)
    after = Running(copied(squeezed), one.dtype).run(one.given)
    coarsest = max((torch.finfo(merge.dtype).eps for merge in plan.merges), default=0.0)
    differences = distances(before, after)
    if band := is_beyond(differences, before, max(TOLERANCE, ROUNDINGS * coarsest)):
        largest = max(map(largest_value, before.values()))
        raise ModelMismatchError(
            [
                f"the squeezed model differs by {differences[band]:.3g} on the example, whose "
                f"largest output is {largest:.3g}. Something stands between merged layers, or the "
                "model runs them in another order, or it does not hold the weights that were "
                "merged."
            ]
        )
    return squeezed


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
    state, prefix = model.state_dict(), ""
    if any(isinstance(value, Tensor) for value in state.values()):
        model_state = from_state_dict(state)
        prefix, stored = model_state.prefix, model_state.tensors if stored is None else stored
    sandbox = sandbox or Sandbox(model)
    try:
        graph = traced(model, example_arguments(model, inputs), prefix, sandbox)
    except TracingError:
        runnable(sandbox, inputs.first)
        raise
    with CPU:
        return scan(
            graph, stored or {}, border=border, growth=growth, minimize=minimize, latency=latency
        )


def _check_policies(**policies: tuple[object, Any]) -> None:
    """Raises PlanError for a word that is none of those that a policy has."""
    problems = [
        f"{name}: {given!r} was given, one of {', '.join(get_args(words))} was needed."
        for name, (given, words) in policies.items()
        if given not in get_args(words)
    ]
    if problems:
        raise PlanError(problems)


def _check_values(model: nn.Module) -> None:
    """Raises ModelInputError for what is no module with code of its own, and a lazy one that has
    not run yet.
    """
    if not isinstance(model, nn.Module):
        kind = model.__name__ if isinstance(model, type) else type(model).__name__
        raise ModelInputError(f"{kind}: is no torch.nn.Module, the model itself was needed.")
    check_not_compiled(model)
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
