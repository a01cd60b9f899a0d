"""The user's model from its own code, and with the tensors of a checkpoint.

The code is run: what it does is the user's. Knows modules and checkpoints; nothing of merges.
"""

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from convsqueeze.checkpoint import Checkpoint, from_state_dict, open_checkpoint
from convsqueeze.copying import Sandbox
from convsqueeze.errors import ModelCodeError, ModelInputError, ModelMismatchError
from convsqueeze.models.inputs import Inputs, guess_inputs, parsed_inputs
from convsqueeze.names import nearest, shown
from convsqueeze.paths import anchored
from convsqueeze.pipeline.tracking import Track
from convsqueeze.surgery.apply import load_state
from convsqueeze.tracing.raised import contained, kind_and_text, user_code_line

FORM = "package.module:factory or path/to/file.py:factory"
LARGEST_CODE = 100_000_000
"""Bytes of a file of code, which Python reads whole."""
_FILE = "convsqueeze_model_"
"""Before the name of a module that was given as a file, which nothing else is called."""


@dataclass(frozen=True, eq=False)
class Code:
    """A model from its own code, and where that is run; `notes` say what was guessed, `files` are
    those of its checkpoint.
    """

    model: nn.Module
    inputs: Inputs
    notes: tuple[str, ...]
    sandbox: Sandbox
    files: tuple[Path, ...] = ()


def code_of(
    place: str,
    shapes: Sequence[str],
    track: Track,
    checkpoint: Path | None = None,
    key: str | None = None,
) -> Code:
    """The model that the user's code at `place` builds, in eval mode, with the tensors of a
    checkpoint if given.

    `shapes` are what its forward takes, guessed where there are none. Raises as `load_model`,
    `load_checkpoint`, `parsed_inputs` and `guess_inputs` do.
    """
    given = parsed_inputs(shapes) if shapes else None
    track(f"running {place}", 0, 0)
    model = load_model(place).eval()
    check_not_compiled(model)
    files = () if checkpoint is None else load_checkpoint(model, checkpoint, key)
    sandbox = Sandbox(model)
    if given is not None:
        return Code(model, given, (), sandbox, files)
    guess, note = guess_inputs(model, sandbox)
    return Code(model, guess, (note,), sandbox, files)


def check_not_compiled(model: nn.Module) -> None:
    """Raises ModelInputError for what torch.jit and torch.compile make of a model."""
    for name, module in model.named_modules():
        is_made_by_dynamo = type(module).__name__ == "OptimizedModule" and hasattr(
            module, "_orig_mod"
        )
        if is_made_by_dynamo or (not name and isinstance(module, torch.jit.ScriptModule)):
            what = f"{type(model).__name__}: {name + ' ' if name else ''}is compiled"
            raise ModelInputError(
                f"{what}, so its code cannot be followed. Squeeze the module that it was made of, "
                "then compile that."
            )


def load_model(place: str) -> nn.Module:
    """The model that `package.module:factory` or `path/to/file.py:factory` gives, as it gives it.

    The module is imported with the current directory first on the path (a file's with its own), and
    what stands after the colon is looked up in it, by attributes: a function or class is called
    without arguments, a module is taken as it is. What it prints goes to standard error. Raises
    ModelCodeError for a place that leads nowhere, for whatever the code raises, and for a result
    that is no `nn.Module`.
    """
    where, _, path = place.rpartition(":")
    if not where or not path:
        raise ModelCodeError(f"{place}: names no model, {FORM} was needed.")
    with _running(place, "importing it"):
        found: Any = _imported(where, place)
    for name in path.split("."):
        if not hasattr(found, name):
            names = [one for one in getattr(found, "__dict__", ()) if not one.startswith("_")]
            advice = nearest(name, names, "Name a function, a class or a model of it.")
            raise ModelCodeError(f"{place}: {where} has no {shown(path)}. {advice}")
        found = getattr(found, name)
    if isinstance(found, nn.Module):
        return found
    what = f"is of type {type(found).__name__}"
    if callable(found):
        if needed := _required(found):
            raise ModelCodeError(
                f"{place}: needs arguments ({', '.join(needed)}), a factory without any was "
                "needed. Write a function that calls it with them, and name that."
            )
        with _running(place, "calling it"):
            found = found()
        if isinstance(found, nn.Module):
            return found
        kind = "nothing" if found is None else f"a value of type {type(found).__name__}"
        what = f"gives {kind}"
    raise ModelCodeError(f"{place}: {what}, a torch.nn.Module was needed. Name what builds it.")


def _imported(where: str, place: str) -> ModuleType:
    """The module of a name, or in a file, which is imported anew. Its folder stays first on the
    path, for what the model imports when it is called.
    """
    file = Path(os.path.realpath(where)) if where.endswith(".py") else None
    if file is not None and not file.is_file():
        what = f"{where} is no regular file" if file.exists() else f"there is no file {where}"
        raise ModelCodeError(f"{place}: {what}, {FORM} was needed.")
    if file is not None and file.stat().st_size > LARGEST_CODE:
        size = f"{where} has {file.stat().st_size:,} bytes, Python code was needed"
        raise ModelCodeError(f"{place}: {size}. Name the file of the model's code.")
    folder = str(Path.cwd() if file is None else file.parent)
    if sys.path[:1] != [folder]:
        sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        if file is None:
            return importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{where}.".startswith(f"{error.name}."):
            raise
        raise ModelCodeError(
            f"{place}: there is no module {shown(error.name)} in {Path.cwd()} or among the "
            f"installed packages, {FORM} was needed."
        ) from None
    name = _FILE + file.stem
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ModelCodeError(f"{place}: {where} is no file of Python code, one was needed.")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _required(factory: Any) -> list[str]:
    """Parameters without a default."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # built in: calling it tells
        return []
    various = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in various]


@contextmanager
def _running(place: str, doing: str) -> Iterator[None]:
    """Around the user's code: its exceptions become ModelCodeError, its output goes beside ours."""
    modes = _get_current_dispatch_mode_stack()
    try:
        with redirect_stdout(sys.stderr), contained():
            yield
        if left := _get_current_dispatch_mode_stack()[len(modes) :]:
            kind = type(left[-1]).__name__
            raise ModelCodeError(f"{place}: leaves torch in a {kind}. Enter it by `with` alone.")
    except ModelCodeError:
        raise
    except Exception as error:
        line = user_code_line(error)
        at = f" at {line[0]}:{line[1]}" if line else ""
        kind, text = kind_and_text(error)
        raise ModelCodeError(
            f"{place}: {doing} fails{at}: {kind}: {text.rstrip('.')}. This is the model's own "
            "code; --debug shows all of its traceback."
        ) from error


def load_checkpoint(model: nn.Module, path: Path | str, key: str | None = None) -> tuple[Path, ...]:
    """Puts all tensors of a checkpoint file into `model`; returns the files that it consists of.

    Any format that `open_checkpoint` reads, with `key` for the state dict in a wrapped file;
    prefixes such as `module.` do not matter. Raises CheckpointError for the file,
    ModelMismatchError with every tensor that is missing, too many, of another shape, or stored in a
    wider dtype than the model holds.
    """
    path = anchored(path)
    checkpoint = open_checkpoint(path, key=key)
    state = model.state_dict(keep_vars=True)  # whose tensors are one and the same if they are tied
    model_state = from_state_dict(state)
    stored = _stored_names(model_state, state, checkpoint)
    problems = list(_misfits(model_state, checkpoint, stored))
    if problems:
        raise ModelMismatchError([f"{path}: {problem}" for problem in problems])
    extra = {name: state[name] for name in state if name.endswith("_extra_state")}
    tensors = {model_state.prefix + name: checkpoint.load(held) for name, held in stored.items()}
    on_meta = any(tensor.is_meta for tensor in state.values() if isinstance(tensor, Tensor))
    prefix = f"{path}: the model does not take it"
    load_state(model, {**tensors, **extra}, prefix, assign=on_meta)
    checkpoint.check_unchanged()
    return checkpoint.paths


def _stored_names(
    model_state: Checkpoint, state: Mapping[str, Any], checkpoint: Checkpoint
) -> dict[str, str]:
    """For each tensor of the model the name in the file, if it has it: its own, or that of another
    name of the same tensor, of which safetensors keeps one.
    """
    there = [name for name in model_state.tensors if name in checkpoint.tensors]
    held = {id(state[model_state.prefix + name]): name for name in reversed(there)}
    stored = {name: held.get(id(state[model_state.prefix + name])) for name in model_state.tensors}
    stored |= {name: name for name in there}
    return {name: found for name, found in stored.items() if found is not None}


def _misfits(
    model_state: Checkpoint, checkpoint: Checkpoint, stored: dict[str, str]
) -> Iterator[str]:
    spare = [name for name in checkpoint.tensors if name not in model_state.tensors]
    for name, info in model_state.tensors.items():
        if name not in stored:
            if name.endswith("num_batches_tracked"):
                continue  # older than torch 0.4.1, and a count alone
            yield f"has no {shown(name)}, which the model has. {nearest(name, spare, _OTHER)}"
            continue
        found = checkpoint.tensors[stored[name]]
        if found.shape != info.shape:
            yield f"{shown(name)} has shape {found.shape}, the model's is {info.shape}. {_OTHER}"
        elif torch.promote_types(found.dtype, info.dtype) != info.dtype:
            yield (
                f"{shown(name)} is stored as {found.dtype}, the model holds {info.dtype}, which "
                "would round it. Build the model in the wider dtype."
            )
    for name in spare:
        advice = nearest(name, model_state.tensors, _OTHER)
        yield f"has {shown(name)}, which the model has not. {advice}"


_OTHER = "Give the checkpoint of this model, or the factory of this checkpoint's model."
