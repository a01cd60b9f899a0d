"""Sizes as people write them. What reads them is imported when one is given."""

import typer


def byte_count(text: str) -> int:
    """`5GB` and `5G` are 5e9 bytes, `5GiB` are 5 * 2^30, `500` are 500.

    Raises BadParameter for anything else, and for less than one byte.
    """
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        count = int(TypeAdapter(ByteSize).validate_python(text))
    except (ValidationError, OverflowError) as error:
        raise typer.BadParameter(f"{text!r} is no size such as 5GB, 200MB or 1GiB.") from error
    if count < 1:
        raise typer.BadParameter(f"{text!r} is less than one byte.")
    return count
