"""What a model is run on: shapes and dtypes, random values of them, examples as a user gives them,
and a guess without any.

Knows modules and their first layers; nothing of checkpoints or merges.
"""

import inspect
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._pytree import tree_leaves, tree_map_only

from convsqueeze.copying import Sandbox, in_eval_mode
from convsqueeze.errors import ModelInputError
from convsqueeze.names import listed
from convsqueeze.tracing.raised import contained, describe_error

DTYPES = (
    *("float64", "float32", "float16", "bfloat16"),
    *("int64", "int32", "int16", "int8", "uint8", "bool"),
)
FORM = "1,3,224,224 or 1,77:int64"
Shapes = tuple[tuple[int, ...], ...]
"""Of each tensor."""
_MORE = ((1, 0, 1, 2, 3), (1, 0, 32, 64, 96), None, (0, 8, 0, 0, 0))
"""What is added to a size by its place: batch, channels, then the axes; None: half of each axis."""
_SHAPE = re.compile(r"\d+(,\d+)*,?")


@dataclass(frozen=True)
class InputSpec:
    """One tensor that a model is given: shape and dtype, and an `example` where there is one."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    example: Tensor | None = None

    def __str__(self) -> str:
        kind = "" if self.dtype == torch.float32 else f":{str(self.dtype).removeprefix('torch.')}"
        return ",".join(map(str, self.shape)) + kind

    def drawn(self, generator: torch.Generator) -> Tensor:
        """Floats are normal, integers 0 or 1, which any table of embeddings has, bools either; with
        an example its own values in a random order, so that all of them are ones that occur.
        """
        if self.example is not None:
            order = torch.randperm(self.example.numel(), generator=generator)
            return self.example.detach().cpu().reshape(-1)[order].reshape(self.shape)
        if self.dtype.is_floating_point:
            x = torch.randn(self.shape, generator=generator, dtype=torch.float64)
            return x.to(self.dtype)
        return torch.randint(0, 2, self.shape, generator=generator).to(self.dtype)


@dataclass(frozen=True)
class Inputs:
    """The positional arguments of a model's forward: tensors, what else an example had, and tuples,
    lists and dicts of both.
    """

    specs: tuple[InputSpec | Any, ...]

    def __str__(self) -> str:
        return " ".join(str(one) for one in self.tensors)

    @property
    def tensors(self) -> tuple[InputSpec, ...]:
        return tuple(one for one in tree_leaves(self.specs) if isinstance(one, InputSpec))

    def drawn(
        self,
        seed: int,
        dtype: torch.dtype | None = None,
        *,
        shuffled: bool = True,
        kept: Collection[torch.dtype] = (),
    ) -> tuple[Any, ...]:
        """Random arguments, the same for the same seed, floats in `dtype` if one is given.

        Examples are shuffled, or as they were given; those whose dtype is among `kept` keep it.
        """
        generator = torch.Generator().manual_seed(seed)

        def one(spec: InputSpec) -> Tensor:
            x = spec.drawn(generator) if shuffled or spec.example is None else spec.example
            keeps = spec.example is not None and spec.dtype in kept
            is_cast = dtype is not None and x.is_floating_point() and not keeps
            return x.detach().cpu().to(dtype if is_cast else x.dtype)

        filled: tuple[Any, ...] = tree_map_only(InputSpec, one, self.specs)
        return filled

    def first(
        self, dtype: torch.dtype | None = None, *, seed: int = 0, kept: Collection[torch.dtype] = ()
    ) -> tuple[Any, ...]:
        """As `drawn`, with examples as they were given."""
        return self.drawn(seed, dtype, shuffled=False, kept=kept)

    def resized(self, shapes: Sequence[tuple[int, ...]]) -> "Inputs":
        """The same arguments with their tensors in other shapes, without their examples."""
        left = iter(shapes)
        return Inputs(
            tree_map_only(
                InputSpec, lambda spec: replace(spec, shape=next(left), example=None), self.specs
            )
        )

    def other_shapes(self, opened: Sequence[Sequence[int | str]] | None = None) -> list[Shapes]:
        """Other shapes, where sizes are open: the same name the same size everywhere. By default
        all are open but channels, and those of one size have one name, batches another.

        Larger by a few each, by 32, which most networks with strides take, and half as large, with
        other batches; and at last with other channels too, where they are open. A model need not
        take any of them.
        """
        given = tuple(spec.shape for spec in self.tensors)
        if opened is None:
            opened = [
                [
                    n if i == 1 and len(shape) > 2 else f"{min(i, 1)} {n}"
                    for i, n in enumerate(shape)
                ]
                for shape in given
            ]
        found: dict[Shapes, None] = {}
        for more in _MORE:
            sizes: dict[int | str, int] = {}
            for shape, axes in zip(given, opened, strict=True):
                for index, (size, kind) in enumerate(zip(shape, axes, strict=True)):
                    # of three, the second is the length of a sequence, or the channels of a signal
                    place = min(index, 4) if len(axes) > 3 or index == 0 else index + 1
                    half = max(size // 2, 1) if place > 1 else size
                    sizes.setdefault(kind, size + more[place] if more else half)
            shapes = tuple(
                tuple(
                    sizes[kind] if isinstance(kind, str) else size
                    for size, kind in zip(shape, axes, strict=True)
                )
                for shape, axes in zip(given, opened, strict=True)
            )
            if shapes != given:
                found[shapes] = None
        return list(found)


def parsed_inputs(given: Sequence[str]) -> Inputs:
    """One `1,3,224,224` or `1,77:int64` for each positional argument of forward.

    Raises ModelInputError for any other text.
    """
    specs = []
    for text in given:
        shape, colon, kind = text.replace(" ", "").partition(":")
        if not _SHAPE.fullmatch(shape):
            raise ModelInputError(f"--input {text}: is no shape, {FORM} was needed.")
        if colon and kind not in DTYPES:
            raise ModelInputError(
                f"--input {text}: {kind or 'nothing'} is no dtype, one of {', '.join(DTYPES)} was "
                "needed."
            )
        sizes = tuple(int(size) for size in shape.split(",") if size)
        if 0 in sizes:
            raise ModelInputError(
                f"--input {text}: has no values, sizes of 1 and more were needed."
            )
        specs.append(InputSpec(sizes, getattr(torch, kind or "float32")))
    return Inputs(tuple(specs))


def inputs_of(examples: Any) -> Inputs:
    """Inputs like an example: a tensor, or a sequence of positional arguments. A tensor without
    values (on the meta device) gives its shape and dtype alone.
    """
    given = (examples,) if isinstance(examples, Tensor) else tuple(examples)

    def spec(one: Tensor) -> InputSpec:
        return InputSpec(tuple(one.shape), one.dtype, None if one.is_meta else one)

    return Inputs(tree_map_only(Tensor, spec, given))


def example_arguments(model: nn.Module, inputs: Inputs) -> tuple[Any, ...]:
    """Arguments on the model's device and in its dtype, examples in any of its dtypes as given."""
    tensors = [p for p in (*model.parameters(), *model.buffers()) if p.is_floating_point()]
    layer = first_layer(model)
    telling = [] if layer is None else [p for p in layer[1].parameters() if p.is_floating_point()]
    first = (*telling, *tensors, torch.zeros(()))[0]
    given = inputs.first(first.dtype, kept={one.dtype for one in tensors})
    moved: tuple[Any, ...] = tree_map_only(Tensor, lambda x: x.to(first.device), given)
    return moved


def positional(
    model: nn.Module, examples: Any, given_as: str = "example_inputs"
) -> tuple[Any, ...]:
    """A tensor, a sequence of positional arguments, or a mapping of named ones, as positional ones.

    `given_as` is the name under which the user gave them. Raises ModelInputError for anything else,
    and where forward does not take them.
    """
    name, signature = type(model).__name__, inspect.signature(model.forward)
    if isinstance(examples, Tensor):
        examples = (examples,)
    if isinstance(examples, str | bytes) or not isinstance(examples, Sequence | Mapping):
        raise ModelInputError(
            f"{given_as}: {type(examples).__name__} was given, a tensor, a tuple of positional "
            "arguments or a dict of named ones was needed."
        )
    try:
        if not isinstance(examples, Mapping):
            signature.bind(*examples)
            return tuple(examples)
        given = signature.bind(**examples).arguments
    except TypeError as error:
        raise ModelInputError(
            f"{name}: its forward does not take these {given_as} ({error}). A tuple has one "
            "for each positional argument, a dict one for each name; a tuple or dict that is "
            "itself an argument stands in a tuple, ({...},)."
        ) from error
    parameters = [p for p in signature.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    if others := given.keys() - {one.name for one in parameters}:
        raise ModelInputError(
            f"{name}: its forward takes {listed(sorted(others))} by name alone, and its code is "
            "followed with positional arguments. Squeeze a module whose forward takes them by "
            "position and calls this one."
        )
    count = max((i for i, one in enumerate(parameters, 1) if one.name in given), default=0)
    return tuple(given.get(one.name, one.default) for one in parameters[:count])


SIZES = {1: (16000, 4096, 1024, 64, 16), 2: (64, 224, 32, 256, 512, 128, 28), 3: (16, 32, 64, 8)}
"""Tried in turn, by rank."""


def guess_inputs(model: nn.Module, sandbox: Sandbox | None = None) -> tuple[Inputs, str]:
    """Inputs for a forward with one required argument, from its first layer with weights, and a
    sentence that says what was guessed and from what.

    Candidates are run without values (fake tensors), in eval mode, in the `sandbox`. Raises
    ModelInputError where forward needs another number of arguments, the first layer does not tell
    what it takes, or the model takes none of the candidates; ModelCodeError where the model cannot
    be copied.
    """
    _check_single_argument(model)
    first, kind = first_layer(model), type(model).__name__
    if first is None:
        raise ModelInputError(f"{kind}: no layer of it tells what it takes. {_ADVICE}")
    name, layer = first
    sandbox = sandbox or Sandbox(model)
    like = next(layer.parameters(), torch.zeros(()))
    tried: list[str] = []
    reason = ""
    for shape in _candidates(layer):
        spec = InputSpec(shape, torch.int64 if isinstance(layer, nn.Embedding) else like.dtype)
        problem = _refusal(sandbox, spec, like.device)
        if problem is None:
            guess = f"input {spec}: guessed from {name or 'the model'} ({type(layer).__name__})"
            return Inputs((spec,)), f"{guess}. --input says another."
        tried.append(str(spec))
        reason = reason or problem
    raise ModelInputError(
        f"{kind}: takes none of the inputs guessed from {name} ({type(layer).__name__}): "
        f"{', '.join(tried)} ({reason}). {_ADVICE}"
    )


_ADVICE = f"Give --input (in Python example_inputs), such as {FORM}, one for each argument."
_TELLING = (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm, nn.Linear, nn.Embedding)


def first_layer(model: nn.Module) -> tuple[str, nn.Module] | None:
    """The first layer with weights, which tells what a model takes, by name."""
    return next(((n, m) for n, m in model.named_modules() if isinstance(m, _TELLING)), None)


def _check_single_argument(model: nn.Module) -> None:
    parameters = list(inspect.signature(model.forward).parameters.values())
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = [p.name for p in positional if p.default is p.empty]
    needed += [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    various = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    if len(needed) == 1 or (not needed and (positional or various)):
        return
    names = ", ".join(needed) or "none"
    raise ModelInputError(
        f"{type(model).__name__}: its forward needs {len(needed)} arguments ({names}), only one "
        f"tensor can be guessed. {_ADVICE}"
    )


def _candidates(layer: nn.Module) -> Iterator[tuple[int, ...]]:
    """Shapes that the layer itself would take, the likeliest first."""
    if isinstance(layer, nn.Embedding):
        yield from ((1, length) for length in (16, 77, 128, 512))
    elif isinstance(layer, nn.Linear):
        yield (1, layer.in_features)
        yield from ((1, length, layer.in_features) for length in (16, 64, 196))
    else:
        rank = next((int(digit) for digit in type(layer).__name__ if digit in "123"), 2)
        if isinstance(layer, nn.modules.conv._ConvNd):
            rank = len(layer.kernel_size)
        channels = getattr(layer, "in_channels", None) or getattr(layer, "num_features", None)
        yield from ((1, int(channels or 1), *(size,) * rank) for size in SIZES[rank])


def _refusal(sandbox: Sandbox, spec: InputSpec, device: torch.device) -> str | None:
    """Why the model does not take an input, in a line; None where it does."""
    module = sandbox.module()
    try:
        fake = FakeTensorMode(allow_non_fake_inputs=True)
        with in_eval_mode(module), fake, torch.no_grad(), contained():
            module(torch.empty(spec.shape, dtype=spec.dtype, device=device))
    except (DataDependentOutputException, DynamicOutputShapeException):
        pass  # it was taken as far as code can run without values
    except Exception as error:  # noqa: BLE001  the user's code may raise anything
        return describe_error(error)[:200]
    return None
