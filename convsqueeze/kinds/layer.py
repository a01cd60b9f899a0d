"""What every kind of layer says of itself: words, tensors, operator and oracle.

A kind is one file of this folder and one line of `registry`. Its class holds its words in a
manifest (pydantic fields), which stored tensors it has, its operator (`operator`), how torch's own
operator runs it (`run`, the oracle, which calls nothing of the operator's side), and which calls
and modules of torch are it. Knows no files, no plan and no graph.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from pydantic import ConfigDict, Field, model_validator
from torch import Tensor

from convsqueeze.algebra.conv import Conv
from convsqueeze.algebra.geometry import Axis, Geometry
from convsqueeze.kinds.fields import Name, Strict

Tensors = Mapping[str, Tensor]
"""A layer's tensors by role: `weight`, `bias`, `running_mean`, ..."""
Shape = tuple[int, ...]
NAMES = {"type", "name", "weight", "bias"}
"""Fields of a layer that are no settings."""


class OnnxNodes(Protocol):
    """What a layer needs to spell itself as ONNX nodes; who writes a graph provides it. Nodes are
    added one after the other, values are told by their names.
    """

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """A node with one output, whose name is given back."""

    def integers(self, values: Sequence[int]) -> str:
        """A constant of int64 numbers."""

    def constant(self, values: Tensor) -> str:
        """A constant in the dtype of the layers."""

    def padded(self, x: str, axes: Sequence[Axis]) -> str:
        """What the axes add around an image, or take away."""

    def convolved(
        self, x: str, weight: str, bias: str | None, axes: Sequence[Axis], groups: int
    ) -> str:
        """The convolution by the axes; a transposed one where they upsample."""


class Layer(Strict):
    """One layer: its words in a manifest are the fields, what its kind is stands in the classes."""

    name: Name | None = Field(None, description="Key prefix of the layer's tensors.")

    roles: ClassVar[tuple[str, ...]] = ()
    """The tensors that it may have, by torch's names."""
    required: ClassVar[tuple[str, ...]] = ()
    """The tensors without which it is no layer."""
    counters: ClassVar[tuple[str, ...]] = ()
    """Stored tensors that go with it and hold no weights."""
    constants: ClassVar[tuple[str, ...]] = ("bias",)
    """The tensors that are added, not multiplied by."""
    is_identity: ClassVar[bool] = False
    """Whether it passes its input on."""
    has_taps: ClassVar[bool] = False
    """Whether it has a kernel with a size on each axis."""
    mixes_channels: ClassVar[bool] = False
    """Whether its weight is a kernel between channels, not one number a channel."""
    takes_channels_first: ClassVar[bool] = False
    """Whether that kernel is stored as (in_channels, out_channels / groups, ...)."""

    if TYPE_CHECKING:

        @property
        def type(self) -> str:
            """The kind's name in a manifest."""

    @property
    def label(self) -> str:
        """What messages call the layer."""
        return self.name or getattr(self, "weight", None) or self.type

    @property
    def is_bare(self) -> bool:
        """Whether it does something without tensors, so that only a module can give it a name."""
        return not self.roles and not self.is_identity

    def padded_by(self, before: "Layer") -> "Layer | None":
        """As one layer with a pad that stands before it, None if the kind has no words for that."""
        return None

    @property
    def settings(self) -> dict[str, Any]:
        """What its words say beside its type and the names of tensors."""
        return {f: getattr(self, f) for f in type(self).model_fields if f not in NAMES}

    # tensors and geometry

    def kernel_rank(self, shapes: Mapping[str, Shape]) -> int | None:
        """The number of axes that its kernel has, None for a kind whose kernel does not tell."""
        kernel = shapes.get("weight") if self.has_taps else None
        return None if kernel is None else max(len(kernel) - 2, 0)

    @property
    def listed_rank(self) -> int | None:
        """The number of axes for which its settings are listed, if one is."""
        values = (getattr(self, field, None) for field in ("kernel_size", "padding"))
        return next((len(value) for value in values if isinstance(value, tuple)), None)

    def infer_in_channels(self, shapes: Mapping[str, Shape]) -> int | None:
        """The channels that enter, as far as its tensors tell."""
        return None

    def check_values(self, tensors: Tensors, keys: Mapping[str, str]) -> None:
        """Raises TensorDataError for values that make no operator; `keys` say where they are."""

    def value_notes(self, keys: Mapping[str, str], load: Callable[[str], Tensor]) -> list[str]:
        """Values that are merged, though no training gives them."""
        return []

    @abstractmethod
    def operator(self, tensors: Tensors, rank: int, channels: int) -> Conv:
        """The operator from the layer's tensors. Raises GeometryError where it is not legal.

        `rank` and `channels` (the channels that enter) are for kinds whose tensors do not tell.
        """

    @abstractmethod
    def onnx(self, nodes: OnnxNodes, x: str, names: Mapping[str, str], geometry: Geometry) -> str:
        """The layer as nodes on the value `x`; `names` are its tensors by role, as stored."""

    # the oracle

    @abstractmethod
    def run(self, x: Tensor, tensors: Tensors) -> Tensor:
        """The layer by torch's own operator, (batch, channels, *size), in the dtype of `x`."""

    def linear_part(self, tensors: Tensors) -> tuple[Self, Tensors]:
        """The layer without what it adds, for `run`."""
        return self, {
            r: t.new_zeros(t.shape) if r in self.constants else t for r, t in tensors.items()
        }

    def magnitudes(self, tensors: Tensors) -> tuple[Self, Tensors]:
        """The layer of absolute values, which gives the sums of magnitudes of |x|, for `run`."""
        return self, {role: tensor.abs() for role, tensor in tensors.items()}


def one_of(*keys: str) -> ConfigDict:
    """A class whose JSON Schema needs one of these keys, as its validator does."""
    return ConfigDict(json_schema_extra={"anyOf": [{"required": [key]} for key in keys]})


class WithTensors(Layer):
    """A layer with a weight and perhaps a bias."""

    model_config = one_of("name", "weight")

    weight: Name | None = Field(None, description="Name of the weight, if not <name>.weight.")
    bias: Name | None = Field(None, description="Name of the bias, if not <name>.bias.")

    roles = ("weight", "bias")
    required: ClassVar[tuple[str, ...]] = ("weight",)

    @model_validator(mode="after")
    def _is_named(self) -> Self:
        if self.name is None and self.weight is None:
            raise ValueError("a name (or a weight) saying which tensors the layer has")
        return self

    def infer_in_channels(self, shapes: Mapping[str, Shape]) -> int | None:
        kernel = shapes["weight"]
        return kernel[1] * getattr(self, "groups", 1) if len(kernel) > 1 else None

    def onnx(self, nodes: OnnxNodes, x: str, names: Mapping[str, str], geometry: Geometry) -> str:
        weight, bias = names["weight"], names.get("bias")
        return nodes.convolved(x, weight, bias, geometry.axes, geometry.groups)
