"""The words that several kinds of layers have in a manifest, as pydantic types.

Knows what a manifest may say, nothing of tensors.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema


class Strict(BaseModel):
    """A frozen value with no keys but its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _list_of(item: dict[str, Any], least: int = 1, most: int = 3) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": least, "maxItems": most}


def _per_axis(lowest: int) -> BeforeValidator:
    def check(value: Any) -> Any:
        numbers = value if isinstance(value, list | tuple) and value else [value]
        if not all(_is_int(number) and number >= lowest for number in numbers):
            raise ValueError(f"a whole number from {lowest} up, or a list with one for each axis")
        return tuple(numbers) if isinstance(value, list | tuple) else value

    return BeforeValidator(check)


def _per_axis_schema(lowest: int) -> WithJsonSchema:
    item = {"type": "integer", "minimum": lowest}
    return WithJsonSchema({"anyOf": [item, _list_of(item)]})


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


_AMOUNT = {"type": "integer"}
_PADDING = [_AMOUNT, _list_of(_AMOUNT), _list_of(_list_of(_AMOUNT, 2, 2))]

PerAxis = Annotated[Any, _per_axis(1), _per_axis_schema(1)]
PerAxisFromZero = Annotated[Any, _per_axis(0), _per_axis_schema(0)]
Padding = Annotated[
    Any,
    BeforeValidator(_check_padding),
    WithJsonSchema({"anyOf": [*_PADDING, {"enum": ["same", "valid"]}]}),
]
PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
Name = Annotated[str, Field(min_length=1)]
