"""`*.safetensors.index.json` and its shards: one checkpoint in several safetensors files.

The index says which shard holds which tensor, and its order is the order of the names. Each shard
lies beside the index, and is no link to elsewhere. The recipe travels in the index's metadata
alone; a shard by itself says nothing of merges.
"""

import json
import re
from collections.abc import Iterator, Mapping
from functools import partial
from math import inf, prod
from pathlib import Path
from typing import Any

from convsqueeze.checkpoint.base import RECIPE_KEY, Checkpoint
from convsqueeze.checkpoint.disk import FileVersion, unreadable
from convsqueeze.checkpoint.format import Format, Output, Start
from convsqueeze.checkpoint.new_files import NewFiles
from convsqueeze.checkpoint.safetensors_file import (
    FROM_TORCH,
    read_file,
    read_json,
    safetensors_writer,
    storable,
    stored_shape,
    tensors_only_notes,
)
from convsqueeze.checkpoint.sniff import INDEX_SUFFIX
from convsqueeze.checkpoint.tensors import Entry
from convsqueeze.errors import CheckpointError
from convsqueeze.names import listed, nearest, plain_file_name, shown

LONGEST_INDEX = 100_000_000
SHARD_NAME = re.compile(r"[^/\\:\x00-\x1f]+\.safetensors")


def _recognizes(start: Start) -> bool:
    return start.path.name.endswith(".json") and start.records is None


def _open(start: Start, key: str | None) -> Checkpoint:
    """Raises CheckpointError where index and shards do not fit each other."""
    path, version = start.path, FileVersion.of(start.path)
    index = _read_index(path, version)
    weight_map: dict[str, str] = index["weight_map"]
    names = sorted(set(weight_map.values()))
    _check_all_there(path, names)
    _check_links(path, names)
    shards = {name: read_file(path.parent / name) for name in names}
    for name, shard in weight_map.items():
        if name not in shards[shard].entries:
            raise _misfit(path, f"puts {shown(name)} into {shown(shard)}, which does not hold it")
    for shard, one in shards.items():
        if extra := [name for name in one.entries if weight_map.get(name) != shard]:
            raise _misfit(path, f"does not list {listed(extra)}, which {shown(shard)} holds")
    recipe = index.get("metadata", {}).get(RECIPE_KEY)
    return Checkpoint(
        path,
        SHARDED.name,
        {name: shards[shard].entries[name] for name, shard in weight_map.items()},
        metadata={k: v for one in reversed(shards.values()) for k, v in one.metadata.items()},
        recipe=recipe if isinstance(recipe, str) else None,
        files=(version, *(file for one in shards.values() for file in one.files)),
        index=index,
        shards=tuple(shards.values()),
    )


def _read_index(path: Path, version: FileVersion) -> dict[str, Any]:
    if version.size > LONGEST_INDEX:
        raise _misfit(path, f"takes {version.size} bytes, at most {LONGEST_INDEX} are read")
    try:
        index = parse_object(path.read_bytes())
    except OSError as error:
        raise unreadable(path, error) from error
    except ValueError as error:
        raise _misfit(path, f"is {error}") from error
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise _misfit(path, "has no weight_map, or an empty one")
    if not isinstance(index.get("metadata", {}), dict):
        raise _misfit(path, "has metadata that is no JSON object")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not SHARD_NAME.fullmatch(shard):
            raise _misfit(
                path, f"puts {shown(name)} into {shown(str(shard))}, no .safetensors file beside it"
            )
    return index


def parse_object(text: bytes) -> dict[str, Any]:
    """A JSON object that can be written again, its keys in file order. Raises ValueError with a
    terse reason.
    """
    try:
        parsed = read_json(text.decode("utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at character {error.pos})") from error
    except UnicodeError as error:
        raise ValueError("not UTF-8 text") from error
    except RecursionError as error:
        raise ValueError("JSON that is nested too deeply") from error
    try:
        json.dumps(parsed, allow_nan=False, ensure_ascii=False).encode("utf-8")
    except ValueError as error:  # Python reads NaN, 1e999 and halves of surrogate pairs
        raise ValueError("JSON with a number or a text that cannot be written again") from error
    if not isinstance(parsed, dict):
        raise ValueError("not a JSON object")
    return parsed


def _check_all_there(path: Path, names: list[str]) -> None:
    try:
        there = [p.name for p in path.parent.iterdir() if p.is_file()]
    except OSError as error:
        raise unreadable(path, error) from error
    if missing := [name for name in names if name not in there]:
        advice = nearest(missing[0], there, "Download the rest.")
        raise CheckpointError(
            f"{path}: {len(missing)} of its {len(names)} shards are missing ({listed(missing)}), "
            f"all were needed beside it. {advice}"
        )


def _check_links(path: Path, names: list[str]) -> None:
    """A shard that is a link leads to a file beside the index, or beside what the index links to.

    That is how download caches are laid out; any other link would take in a file from elsewhere.
    """
    try:
        beside = {path.parent.resolve(), path.resolve().parent}
        for name in names:
            place = path.with_name(name)
            if place.is_symlink() and place.resolve().parent not in beside:
                raise _misfit(
                    path, f"has a shard {shown(name)} that is a link to another directory"
                )
    except (OSError, RuntimeError) as error:  # RuntimeError: of a link to itself, up to 3.12
        raise _misfit(path, f"has a shard that is no file ({error})") from error


def _misfit(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: {reason}, an index that fits its .safetensors shards was needed. "
        "Download or save all of them anew."
    )


def _parts(index: Path) -> list[Path]:
    """What stands there with a name that the shards of an index written here may have."""
    stem = re.escape(_stem(index))
    pattern = re.compile(stem + r"(-[0-9a-f]{8}|-[0-9a-f]{64})?-\d{5,}-of-\d{5,}\.safetensors")
    return [path for path in sorted(index.parent.iterdir()) if pattern.fullmatch(path.name)]


def _stage(output: Output, files: NewFiles) -> tuple[str, ...]:
    """Write the shards and then the index, so that it never names what is not there. The shards of
    an earlier output that the new index no longer names are removed after that.

    Each tensor stays in its shard, a new one goes where the tensor in whose place it stands was;
    a shard that would be empty is left out. Any other source becomes one shard. With a largest
    size, shards are filled anew in the order of the tensors, up to that many bytes of values each;
    a larger tensor has a shard of its own.
    """
    parts = storable(output.splicing)
    groups = [(names, metadata) for names, metadata in _groups(output, parts) if names]
    home: dict[str, str] = {}
    for number, (names, metadata) in enumerate(groups, start=1):
        shard = files.add_part(
            partial(_shard_place, output.place, f"{number:05}-of-{len(groups):05}"),
            safetensors_writer({name: parts[name] for name in names}, metadata, output.progress),
        )
        home |= dict.fromkeys(names, shard.name)
    index = _new_index(output, parts) | {"weight_map": {name: home[name] for name in parts}}
    text = json.dumps(index, indent=2, allow_nan=False) + "\n"
    files.add(output.place, lambda file: file.write(text.encode("ascii")))
    for old in _shards_of(output.place):
        if old not in files.places:
            files.retire(old)
    return tuple(tensors_only_notes(output.splicing))


def _shard_place(index: Path, number: str, digits: str) -> Path:
    """`model-00001-of-00002.safetensors`; with `digits`, `model-<digits>-00001-of-...`."""
    return index.with_name("-".join(filter(None, (_stem(index), digits, number))) + ".safetensors")


def _stem(index: Path) -> str:
    """What the names of an index's shards begin with."""
    return plain_file_name(index.name.removesuffix(INDEX_SUFFIX))


def _shards_of(index: Path) -> list[Path]:
    """The shards that an index written here before names; none where it is no such index."""
    try:
        named = set(_read_index(index, FileVersion.of(index))["weight_map"].values())
    except CheckpointError:
        return []
    return [path for path in _parts(index) if path.name in named]


def _groups(
    output: Output, parts: Mapping[str, Entry]
) -> Iterator[tuple[list[str], Mapping[str, str]]]:
    """Full names of each new shard in its order, with its metadata."""
    source = output.splicing.source
    if output.largest_shard is None and source.shards:
        for shard in source.shards:
            names = [name for old in shard.entries for name, _ in output.splicing.at(old)]
            yield names, _without_recipe(shard.metadata)
        return
    metadata = _without_recipe(source.metadata) or FROM_TORCH
    names, held_bytes, most = [], 0, output.largest_shard or inf
    for name, part in parts.items():
        if names and held_bytes + part.info.nbytes > most:
            yield names, metadata
            names, held_bytes = [], 0
        names.append(name)
        held_bytes += part.info.nbytes
    yield names, metadata


def _without_recipe(metadata: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in metadata.items() if key != RECIPE_KEY}


def _new_index(output: Output, parts: Mapping[str, Entry]) -> dict[str, Any]:
    """The source's index with its sums brought up to date."""
    source = output.splicing.source
    metadata = dict(source.index.get("metadata", {}))
    metadata["total_size"] = sum(part.info.nbytes for part in parts.values())
    if isinstance(count := metadata.get("total_parameters"), int):
        metadata["total_parameters"] = count + _numel(parts) - _numel(source.entries)
    metadata[RECIPE_KEY] = output.recipe
    return {**source.index, "metadata": metadata}


def _numel(entries: Mapping[str, Entry]) -> int:
    """As the headers count."""
    return sum(prod(stored_shape(entry.info)) for entry in entries.values())


SHARDED = Format(
    "sharded", (INDEX_SUFFIX,), recognizes=_recognizes, open=_open, stage=_stage, parts=_parts
)
