"""The user's model from its own code, and with the tensors of a checkpoint.

The code is run: what it does is the user's. Knows modules and checkpoints; nothing of merges.
"""

import contextlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from convsqueeze.checkpoint import Checkpoint, from_state_dict, open_checkpoint
from convsqueeze.copying import copied
from convsqueeze.errors import ModelCodeError, ModelMismatchError
from convsqueeze.names import nearest, shown
from convsqueeze.tracing.raised import is_signal, user_code_line

FORM = "package.module:factory or path/to/file.py:factory"
_BESIDE = "convsqueeze_model_"
"""Before the name of a module that was given as a file, which nothing else is called."""


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
    found: Any = _imported(where, place)
    for name in path.split("."):
        if not hasattr(found, name):
            raise ModelCodeError(f"{place}: {where} has no {shown(path)}. {_advice(found, name)}")
        found = getattr(found, name)
    model = found if isinstance(found, nn.Module) else _called(found, place)
    if not isinstance(model, nn.Module):
        what = f"is of type {type(found).__name__}" if model is found else f"gives {_kind(model)}"
        raise ModelCodeError(f"{place}: {what}, a torch.nn.Module was needed. Name what builds it.")
    return model


def _kind(value: object) -> str:
    return "nothing" if value is None else f"a value of type {type(value).__name__}"


def _advice(found: object, name: str) -> str:
    names = [one for one in vars(found) if not one.startswith("_")] if _has_names(found) else []
    return nearest(name, names, "Name a function, a class or a model of it.")


def _has_names(found: object) -> bool:
    return hasattr(found, "__dict__")


def _imported(where: str, place: str) -> ModuleType:
    with _running(place, "importing it"):
        if where.endswith(".py"):
            return _module_of(Path(where), place)
        _put_first(Path.cwd())
        importlib.invalidate_caches()
        try:
            return importlib.import_module(where)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{where}.".startswith(f"{error.name}."):
                raise
            raise ModelCodeError(
                f"{place}: there is no module {shown(error.name)} in {Path.cwd()} or among the "
                f"installed packages, {FORM} was needed."
            ) from None


def _module_of(file: Path, place: str) -> ModuleType:
    """The module in a file, imported anew."""
    if not file.is_file():
        raise ModelCodeError(f"{place}: there is no file {file}, {FORM} was needed.")
    name = _BESIDE + file.stem
    _put_first(file.resolve().parent)
    spec = importlib.util.spec_from_file_location(name, file.resolve())
    if spec is None or spec.loader is None:
        raise ModelCodeError(f"{place}: {file} is no file of Python code, one was needed.")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _put_first(folder: Path) -> None:
    """On the path, as `python -m` has the current directory; it stays there, for what the model
    imports when it is called.
    """
    if sys.path[:1] not in ([str(folder)], [""]):
        sys.path.insert(0, str(folder))


def _called(factory: Any, place: str) -> object:
    if not callable(factory):
        return factory
    needed = _required(factory)
    if needed:
        raise ModelCodeError(
            f"{place}: needs arguments ({', '.join(needed)}), a factory without any was needed. "
            "Write a function that calls it with them, and name that."
        )
    with _running(place, "calling it"):
        return factory()


def _required(factory: Callable[..., Any]) -> list[str]:
    """Parameters without a default."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # built in: calling it tells
        return []
    various = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in various]


@contextlib.contextmanager
def _running(place: str, doing: str) -> Iterator[None]:
    """Around the user's code: its exceptions become ModelCodeError, its output goes beside ours."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except ModelCodeError:
        raise
    except BaseException as error:
        if is_signal(error):
            raise
        line = user_code_line(error)
        at = f" at {line[0]}:{line[1]}" if line else ""
        message = str(error).strip().partition("\n")[0].rstrip(".") or "no message"
        raise ModelCodeError(
            f"{place}: {doing} fails{at}: {type(error).__name__}: {message}. This is the model's "
            "own code; --debug shows all of its traceback."
        ) from error


def with_checkpoint(model: nn.Module, path: Path | str, key: str | None = None) -> nn.Module:
    """A copy of `model` with all tensors of a checkpoint file in place; the model stays as it is.
    Raises as `load_checkpoint` does.
    """
    loaded = copied(model)
    load_checkpoint(loaded, path, key)
    return loaded


def load_checkpoint(model: nn.Module, path: Path | str, key: str | None = None) -> None:
    """Puts all tensors of a checkpoint file into `model`.

    Any format that `open_checkpoint` reads, with `key` for the state dict in a wrapped file;
    prefixes such as `module.` do not matter. Raises CheckpointError for the file,
    ModelMismatchError with every tensor that is missing, too many, of another shape, or stored in a
    wider dtype than the model holds.
    """
    checkpoint = open_checkpoint(Path(path), key=key)
    state = model.state_dict(keep_vars=True)  # whose tensors are one and the same if they are tied
    own = from_state_dict(state)
    stored = _stored_names(own, state, checkpoint)
    problems = list(_misfits(own, checkpoint, stored))
    if problems:
        raise ModelMismatchError([f"{path}: {problem}" for problem in problems])
    extra = {name: state[name] for name in state if name.endswith("_extra_state")}
    tensors = {own.prefix + name: checkpoint.load(held) for name, held in stored.items()}
    on_meta = any(tensor.is_meta for tensor in state.values() if isinstance(tensor, Tensor))
    try:
        model.load_state_dict({**tensors, **extra}, assign=on_meta)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).split("\n")[1:] if line.strip()]
        raise ModelMismatchError(
            [f"{path}: the model does not take it: {x}" for x in lines]
        ) from error
    checkpoint.check_unchanged()


def _stored_names(
    own: Checkpoint, state: Mapping[str, Any], checkpoint: Checkpoint
) -> dict[str, str]:
    """For each tensor of the model the name in the file, if it has it: its own, or that of another
    name of the same tensor, of which safetensors keeps one.
    """
    identity = {name: id(state[own.prefix + name]) for name in own.tensors}
    held: dict[int, str] = {}
    for name in own.tensors:
        if name in checkpoint.tensors:
            held.setdefault(identity[name], name)
    return {
        name: name if name in checkpoint.tensors else held[identity[name]]
        for name in own.tensors
        if name in checkpoint.tensors or identity[name] in held
    }


def _misfits(own: Checkpoint, checkpoint: Checkpoint, stored: dict[str, str]) -> Iterator[str]:
    spare = [name for name in checkpoint.tensors if name not in own.tensors]
    for name, info in own.tensors.items():
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
        yield f"has {shown(name)}, which the model has not. {nearest(name, own.tensors, _OTHER)}"


_OTHER = "Give the checkpoint of this model, or the factory of this checkpoint's model."
