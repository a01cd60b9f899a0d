"""The manifest's words as frozen values; their JSON Schema comes from the same classes.

Knows what a manifest may say, not what a checkpoint holds or where a line stands in a file.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    WithJsonSchema,
    model_validator,
)

Border = Literal["exact", "corrected", "interior"]
MANIFEST_VERSION = 1
BORDERS: tuple[Border, ...] = ("exact", "corrected", "interior")

_COUNT = {"type": "integer", "minimum": 1}
_AMOUNT = {"type": "integer"}


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _per_axis(lowest: int) -> BeforeValidator:
    def check(value: Any) -> Any:
        numbers = value if isinstance(value, list | tuple) and value else [value]
        if not all(_is_int(number) and number >= lowest for number in numbers):
            raise ValueError(f"a whole number from {lowest} up, or a list with one for each axis")
        return tuple(numbers) if isinstance(value, list | tuple) else value

    return BeforeValidator(check)


def _not_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("1")
    return value


def _check_padding(value: Any) -> Any:
    if _is_int(value) or value in ("same", "valid"):
        return value
    if isinstance(value, list | tuple) and value:
        if all(_is_int(entry) for entry in value):
            return tuple(value)
        pairs = [entry for entry in value if isinstance(entry, list | tuple) and len(entry) == 2]
        if len(pairs) == len(value) and all(_is_int(n) for pair in pairs for n in pair):
            return tuple(tuple(pair) for pair in pairs)
    raise ValueError(
        "a whole number, a list with one for each axis, a list with one [before, after] for each "
        "axis, same or valid"
    )


def _or_list(item: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [item, {"type": "array", "items": item, "minItems": 1, "maxItems": 3}]}


PerAxis = Annotated[Any, _per_axis(1), WithJsonSchema(_or_list(_COUNT))]
PerAxisFromZero = Annotated[
    Any, _per_axis(0), WithJsonSchema(_or_list({"type": "integer", "minimum": 0}))
]
Padding = Annotated[
    Any,
    BeforeValidator(_check_padding),
    WithJsonSchema(
        {
            "anyOf": [
                _AMOUNT,
                {"type": "array", "items": _AMOUNT, "minItems": 1, "maxItems": 3},
                {
                    "type": "array",
                    "items": {"type": "array", "items": _AMOUNT, "minItems": 2, "maxItems": 2},
                    "minItems": 1,
                    "maxItems": 3,
                },
                {"enum": ["same", "valid"]},
            ]
        }
    ),
]
PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
Name = Annotated[str, Field(min_length=1)]


class Strict(BaseModel):
    """A frozen value with no keys but its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class _Layer(Strict):
    name: Name | None = Field(None, description="Key prefix of the layer's tensors.")

    @property
    def label(self) -> str:
        """What messages call the layer."""
        return self.name or getattr(self, "weight", None) or self.type  # type: ignore[attr-defined]


def _one_of(*keys: str) -> ConfigDict:
    """A class whose JSON Schema needs one of these keys, as its validator does."""
    return ConfigDict(json_schema_extra={"anyOf": [{"required": [key]} for key in keys]})


class _WithTensors(_Layer):
    model_config = _one_of("name", "weight")

    weight: Name | None = Field(None, description="Name of the weight, if not <name>.weight.")
    bias: Name | None = Field(None, description="Name of the bias, if not <name>.bias.")

    @model_validator(mode="after")
    def _is_named(self) -> "_WithTensors":
        if self.name is None and self.weight is None:
            raise ValueError("a name (or a weight) saying which tensors the layer has")
        return self


class ConvLayer(_WithTensors):
    """An ordinary convolution, `torch.nn.Conv1d`, `Conv2d` or `Conv3d`."""

    type: Literal["conv"] = "conv"
    stride: PerAxis = 1
    padding: Padding = 0
    padding_mode: PaddingMode = "zeros"
    dilation: PerAxis = 1
    groups: int = Field(1, ge=1)


class ConvTransposeLayer(_WithTensors):
    """A transposed convolution, `torch.nn.ConvTranspose1d`, 2d or 3d."""

    type: Literal["conv_transpose"]
    stride: PerAxis = 1
    padding: Padding = 0
    output_padding: PerAxisFromZero = 0
    dilation: PerAxis = 1
    groups: int = Field(1, ge=1)


class LinearLayer(_WithTensors):
    """`torch.nn.Linear` on the channels."""

    type: Literal["linear"]


class BatchNormLayer(_Layer):
    """`torch.nn.BatchNorm` in eval mode. `eps` has no default: no checkpoint holds it."""

    type: Literal["batch_norm"]
    name: Name
    eps: float = Field(ge=0, allow_inf_nan=False)


class ScaleLayer(_WithTensors):
    """`factor * weight * x + bias + shift`: a factor and a summand for each channel, as LayerScale
    and a normalisation have them, or numbers that stand in the code, as LoRA's alpha / r.
    """

    model_config = _one_of("name", "weight", "bias", "factor", "shift")

    type: Literal["scale"]
    factor: float = Field(1.0, allow_inf_nan=False)
    shift: float = Field(
        0.0, allow_inf_nan=False, description="Added to every channel, after the factor."
    )

    @model_validator(mode="after")
    def _is_named(self) -> "ScaleLayer":
        named = self.name or self.weight or self.bias
        if named is None and not self.model_fields_set & {"factor", "shift"}:
            raise ValueError("a name, a weight, a bias, a factor or a shift to scale by")
        return self


class AvgPoolLayer(_Layer):
    """`torch.nn.AvgPool` with padding counted and sizes rounded down; stride: the kernel_size."""

    type: Literal["avg_pool"]
    kernel_size: PerAxis
    stride: PerAxis | None = None
    padding: Padding = 0


class IdentityLayer(_Layer):
    """A branch that passes its input on."""

    type: Literal["identity"]


class PadLayer(_Layer):
    """Padding alone; negative amounts crop."""

    type: Literal["pad"]
    padding: Padding
    padding_mode: PaddingMode = "zeros"


Layer = (
    ConvLayer
    | ConvTransposeLayer
    | LinearLayer
    | BatchNormLayer
    | ScaleLayer
    | AvgPoolLayer
    | IdentityLayer
    | PadLayer
)
LAYER_KINDS: dict[str, type[_Layer]] = {
    "conv": ConvLayer,
    "conv_transpose": ConvTransposeLayer,
    "linear": LinearLayer,
    "batch_norm": BatchNormLayer,
    "scale": ScaleLayer,
    "avg_pool": AvgPoolLayer,
    "identity": IdentityLayer,
    "pad": PadLayer,
}


def item_tag(value: Any) -> str:
    """Which class an item of a chain or sum is: by its key `chain` or `sum`, else its type."""
    for key in ("chain", "sum"):
        if (isinstance(value, dict) and key in value) or hasattr(value, key):
            return key
    kind = value.get("type", "conv") if isinstance(value, dict) else getattr(value, "type", "conv")
    return kind if isinstance(kind, str) else "unknown"


def entry_tag(value: Any) -> str:
    """Which class an entry of `pairs` is."""
    for key in ("chain", "sum"):
        if (isinstance(value, dict) and key in value) or hasattr(value, key):
            return key
    return "pair"


class ChainItem(Strict):
    """Layers one after the other, the first taking the input."""

    chain: "tuple[Item, ...]" = Field(min_length=1)


class SumItem(Strict):
    """Branches that all take the input; their outputs are added."""

    sum: "tuple[Item, ...]" = Field(min_length=1)


Item = Annotated[
    Annotated[ConvLayer, Tag("conv")]
    | Annotated[ConvTransposeLayer, Tag("conv_transpose")]
    | Annotated[LinearLayer, Tag("linear")]
    | Annotated[BatchNormLayer, Tag("batch_norm")]
    | Annotated[ScaleLayer, Tag("scale")]
    | Annotated[AvgPoolLayer, Tag("avg_pool")]
    | Annotated[IdentityLayer, Tag("identity")]
    | Annotated[PadLayer, Tag("pad")]
    | Annotated[ChainItem, Tag("chain")]
    | Annotated[SumItem, Tag("sum")],
    Discriminator(item_tag),
]


class _Entry(Strict):
    into: Name | None = Field(
        None, description="Name of the merged layer; the first named layer's by default."
    )
    border: Border | None = Field(None, description="Border policy of this entry.")
    input: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(
        None, description="The only input size that matters, one number for each axis."
    )
    drop: tuple[Name, ...] = Field(
        (), description="Layers or tensors to remove with the merge, as a stale merged copy."
    )


class PairEntry(_Entry):
    """Two layers in execution order."""

    first: Item
    second: Item


class ChainEntry(_Entry, ChainItem):
    """A chain of any length."""


class SumEntry(_Entry, SumItem):
    """Parallel branches, summed."""


Entry = Annotated[
    Annotated[PairEntry, Tag("pair")]
    | Annotated[ChainEntry, Tag("chain")]
    | Annotated[SumEntry, Tag("sum")],
    Discriminator(entry_tag),
]


class Document(Strict):
    """A convsqueeze manifest: which layers to merge, with their geometry in torch's terms."""

    version: Annotated[Literal[1], BeforeValidator(_not_bool)]
    border: Border = Field("exact", description="Border policy of entries that name none.")
    pairs: tuple[Entry, ...] = Field(min_length=1)


def json_schema() -> dict[str, Any]:
    """The manifest's JSON Schema (draft 2020-12)."""
    schema = Document.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
