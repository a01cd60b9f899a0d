"""What kind of file this is, by its first bytes and, for a zip archive, by what it lists.

Reads at most a header and a directory of names, runs nothing, and refuses by name what holds no
state dict, with the way to get one.
"""

import contextlib
import re
import zipfile
from pathlib import Path
from typing import BinaryIO

from convsqueeze.checkpoint.disk import unreadable
from convsqueeze.checkpoint.format import Start
from convsqueeze.checkpoint.resaving import resave
from convsqueeze.errors import CheckpointError
from convsqueeze.names import listed, nearest

HEAD = 1024
ZIP = b"PK\x03\x04"
INDEX_SUFFIX = ".safetensors.index.json"
SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")

AGAIN = "Download or save it anew."
OTHER = "Name the checkpoint instead."
UNPACK = "Unpack it and name the checkpoint inside."
PULL = 'Run "git lfs pull" and try again.'
FOREIGN: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"version https://git-lfs", "a git-lfs pointer, not the file itself", PULL),
    (0, b"\x89PNG\r\n\x1a\n", "a PNG picture", OTHER),
    (0, b"\xff\xd8\xff", "a JPEG picture", OTHER),
    (0, b"GIF8", "a GIF picture", OTHER),
    (0, b"%PDF", "a PDF document", OTHER),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file", "Save the weights from Keras as .safetensors."),
    (0, b"GGUF", "a GGUF file", "Take the checkpoint that it was made from."),
    (4, b"TFL3", "a TensorFlow Lite model", "Take the checkpoint that it was made from."),
    (0, b"\x93NUMPY", "a NumPy array", "Save tensors by name with torch.save or safetensors."),
    (0, b"\x1f\x8b", "a gzip archive", UNPACK),
    (0, b"BZh", "a bzip2 archive", UNPACK),
    (0, b"\xfd7zXZ\x00", "an xz archive", UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "a zstd archive", UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (257, b"ustar", "a tar archive", UNPACK),
)
ONNX = re.compile(rb"\x08[\x01-\x20](?:\x12.[\w .+-]|\x3a|\x1a)", re.DOTALL)
HTML = re.compile(rb"\s*(?:<!doctype\s+html|<html)", re.IGNORECASE)


def examine(path: Path) -> Start:
    """Raises CheckpointError for all that is no checkpoint by its first bytes or is none to open,
    saying what it is instead.
    """
    _check_place(path)
    try:
        with path.open("rb") as file:
            head, size = file.read(HEAD), path.stat().st_size
            records = _records(path, file) if head.startswith(ZIP) else None
    except OSError as error:
        raise unreadable(path, error) from error
    if not head:
        raise wrong(path, "an empty file", AGAIN)
    if records is None:
        _refuse_foreign(path, head)
    return Start(path, head, size, records)


def unknown(start: Start) -> CheckpointError:
    """For a file that no format recognizes."""
    path, records = start.path, start.records
    if records is None and re.match(rb"\x80[\x02-\x05]", start.head):
        advice = 'Save the state dict with torch.save(..., "model.pt").'
        return wrong(path, "a plain pickle", advice)
    if records is None:
        return wrong(path, "no kind of file that is known here, or cut off", AGAIN)
    if "constants.pkl" in records:
        code = 'torch.jit.load(PATH, map_location="cpu").state_dict()'
        return wrong(path, "a TorchScript archive", resave(path, code))
    if "archive_format" in records or "serialized_exported_program.json" in records:
        code = "dict(torch.export.load(PATH).state_dict)"
        return wrong(path, "a torch.export archive", resave(path, code))
    if any(name.endswith(".npy") for name in records):
        return wrong(path, "a NumPy .npz archive", "Save tensors with torch.save or safetensors.")
    return wrong(path, "a zip archive that torch.save did not write", UNPACK)


def wrong(path: Path, what: str, advice: str) -> CheckpointError:
    """*where: what is, what was needed. What to do.*"""
    needed = "a checkpoint (.pt, .pth, .ckpt, .bin, .safetensors or its index) was needed"
    return CheckpointError(f"{path}: {what}, {needed}. {advice}")


def _check_place(path: Path) -> None:
    try:
        if path.is_dir():
            names = sorted(p.name for p in path.iterdir())
            inside = [name for name in names if name.endswith(INDEX_SUFFIX)]
            inside = inside or [name for name in names if name.endswith(SUFFIXES)]
            advice = f"Name a file inside: {listed(inside)}." if inside else "Name a file."
            raise wrong(path, "a directory", advice)
        with contextlib.suppress(FileNotFoundError):
            path.stat()  # raises for a link to itself
        if not path.exists():
            there = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
            advice = nearest(path.name, there, "Check the path.")
            raise CheckpointError(f"{path}: no such file. {advice}")
        if not path.is_file():
            raise wrong(path, "no regular file", OTHER)
    except OSError as error:
        raise unreadable(path, error) from error


def _refuse_foreign(path: Path, head: bytes) -> None:
    for offset, magic, what, advice in FOREIGN:
        if head[offset:].startswith(magic):
            raise wrong(path, what, advice)
    if HTML.match(head):
        raise wrong(path, "a web page", "Download the file itself, not the page about it.")
    if path.suffix.lower() == ".onnx" or ONNX.match(head):
        raise wrong(path, "an ONNX model", "Take the checkpoint that it was exported from.")


def _records(path: Path, file: BinaryIO) -> dict[str, zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(file) as archive:
            found = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError) as error:
        raise wrong(path, "a zip archive cut off or damaged", AGAIN) from error
    records = {one.filename.partition("/")[2] or one.filename: one for one in found}
    if len({name.lower() for name in records}) < len(found):  # torch finds them in any case
        raise wrong(path, "a zip archive with two records of one name", AGAIN)
    return records
