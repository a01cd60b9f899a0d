"""The words that several kinds of layers have in a manifest, as pydantic types.

Knows what a manifest may say, nothing of tensors.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

_COUNT = {"type": "integer", "minimum": 1}
_AMOUNT = {"type": "integer"}


class Strict(BaseModel):
    """A frozen value with no keys but its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _per_axis(lowest: int) -> BeforeValidator:
    def check(value: Any) -> Any:
        numbers = value if isinstance(value, list | tuple) and value else [value]
        if not all(_is_int(number) and number >= lowest for number in numbers):
            raise ValueError(f"a whole number from {lowest} up, or a list with one for each axis")
        return tuple(numbers) if isinstance(value, list | tuple) else value

    return BeforeValidator(check)


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
