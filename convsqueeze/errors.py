"""The errors a user can cause: one root, one class for each room of the house.

Inner code raises these with terse reasons; the boundary adds the place; the command line prints
them and leaves with the exit status each class carries. Knows nothing of tensors or files.
"""

import re
from collections.abc import Sequence
from typing import Any, ClassVar

LONGEST_WORD = 500
LONGEST_TEXT = 20_000


def printable(text: str) -> str:
    """On one line and not endless, whatever names a file has: none of them moves a cursor or rings
    a bell.
    """
    text = re.sub(rf"\S{{{LONGEST_WORD + 1},}}", lambda word: _cut(word[0], LONGEST_WORD), text)
    text = _cut(text, LONGEST_TEXT)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _cut(text: str, longest: int) -> str:
    half = longest // 2
    return text if len(text) <= longest else f"{text[:half]}...{text[-half:]}"


_NO_MEMORY = (
    "allocate memory",
    "not enough memory",
    "out of memory",
    "bad_alloc",
    "bad allocation",
    "Storage size calculation overflowed",  # more than any machine has
)


def lacks_memory(error: BaseException) -> bool:
    """Whether memory was refused: that says nothing of what was to be computed. torch and
    onnxruntime word it as errors that can be anything else.
    """
    return isinstance(error, MemoryError) or any(one in str(error) for one in _NO_MEMORY)


class ConvsqueezeError(Exception):
    """Root of every error that a user's input or request can cause."""

    exit_status: ClassVar[int] = 2

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class GeometryError(ConvsqueezeError):
    """Layers whose geometry is not legal, or whose combination is not one convolution."""


class TooLargeError(GeometryError):
    """Layers that make one operator, but too much would have to be looked at to know its border."""


class DeviceError(ConvsqueezeError):
    """A device that torch does not have, cannot compute on, or whose memory is full."""

    def __init__(self, name: str, reason: str, instead: str | None = None) -> None:
        advice = "Leave --device out" if instead is None else f"Leave --device out, or {instead}"
        super().__init__(f"--device {name}: {reason}. {advice}.")


class CheckpointError(ConvsqueezeError):
    """An input file that is missing, damaged, of another kind, or lacks a tensor."""


class OutputError(ConvsqueezeError):
    """An output place that cannot be written, or must not be."""


class ReportedTogether(ConvsqueezeError):
    """Several problems found in one pass, told together."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(map(printable, problems))
        Exception.__init__(self, "\n".join(self.problems))


class ManifestError(ReportedTogether):
    """A manifest that does not parse or does not fit its schema.

    `sound` is the manifest without its unsound entries, where something is left of it: what stands
    there can be planned, so that its problems are told in the same run.
    """

    def __init__(self, problems: Sequence[str], sound: Any = None) -> None:
        super().__init__(problems)
        self.sound = sound


class PlanError(ReportedTogether):
    """Merges that were asked for and are refused, each with its reason and the choices."""


class TensorDataError(ConvsqueezeError):
    """Stored values that no exact merge can be made of: NaN, infinity, overflow on rounding."""


class TracingError(ConvsqueezeError):
    """A model whose code cannot be followed to a graph of its layers."""


class ModelMismatchError(ReportedTogether):
    """A model whose modules are not the layers that the recipe merged."""


class ModelCodeError(ConvsqueezeError):
    """The user's own model code that is not found, raises, or gives no module. Where it raised,
    `__cause__` is what it raised.
    """


class ModelInputError(ConvsqueezeError):
    """Inputs that a model does not take, or that cannot be told from the model alone."""


class VerificationError(ReportedTogether):
    """The squeezed layers do not compute what the original layers compute."""

    exit_status: ClassVar[int] = 1
