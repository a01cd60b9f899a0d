"""Pickles put together opcode by opcode, as torch.save never would.

A value is the bytes that push it. Protocol 2, the opcodes that weights-only loading knows.
"""

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence

from .choices import Choices


def number(value: int) -> bytes:
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def real(value: float) -> bytes:
    return b"G" + struct.pack(">d", value)


def found(name: str) -> bytes:
    """A global by its dotted name."""
    module, _, last = name.rpartition(".")
    return b"c" + module.encode() + b"\n" + last.encode() + b"\n"


def tuple_of(items: Iterable[bytes]) -> bytes:
    return b"(" + b"".join(items) + b"t"


def list_of(items: Iterable[bytes]) -> bytes:
    return b"](" + b"".join(items) + b"e"


def called(function: str, *arguments: bytes) -> bytes:
    return found(function) + tuple_of(arguments) + b"R"


def filled(mapping: bytes, items: Mapping[bytes, bytes]) -> bytes:
    return mapping + b"(" + b"".join(key + value for key, value in items.items()) + b"u"


def ordered(items: Mapping[bytes, bytes]) -> bytes:
    return filled(called("collections.OrderedDict"), items)


def built(value: bytes, state: bytes) -> bytes:
    return value + state + b"b"


def nested(depth: int) -> bytes:
    """A list in a list and so on."""
    return b"]" * depth + b"a" * (depth - 1)


def itself() -> bytes:
    """A dict that holds itself under every key that state dicts are looked for under."""
    keys = [b"h\xf0".join((text(name), b"")) for name in ("state_dict", "model", "params", "x")]
    return b"}q\xf0(" + b"".join(keys) + b"u"


TRUE, FALSE, NONE, DICT, EMPTY = b"\x88", b"\x89", b"N", b"}", b")"

STORAGES = ("FloatStorage", "LongStorage", "HalfStorage", "BoolStorage", "ComplexFloatStorage")
ODD_STORAGES = (
    *("QInt8Storage", "QUInt4x2Storage", "DoubleStorage", "ByteStorage", "BFloat16Storage"),
    *("storage.UntypedStorage", "storage.TypedStorage", "Tensor", "float32"),
)
LOCATIONS = ("cpu", "cuda:0", "meta", "mps", "cuda:99999", "xpu", "", "x\ny", "cpu:7")


def stored(choices: Choices, key: str, count: int, percent: int, *, legacy: bool) -> bytes:
    """A storage by its persistent id."""
    kind = (
        "FloatStorage" if not choices.chance(percent) else choices.pick((*STORAGES, *ODD_STORAGES))
    )
    place = "cpu" if not choices.chance(percent) else choices.pick(LOCATIONS)
    told = count if not choices.chance(percent) else choices.size()
    name = key if not choices.chance(percent) else choices.pick(("0", "1", "9", "../data.pkl", ""))
    view = [NONE] if legacy else []
    if legacy and choices.chance(percent):
        view = [tuple_of([text("v"), number(choices.size()), number(choices.size())])]
    parts = [text("storage"), found(f"torch.{kind}"), text(name), text(place), number(told), *view]
    if choices.chance(percent // 3):
        parts.pop(choices.below(len(parts)))
    return tuple_of(parts) + b"Q"


def shape(choices: Choices, sizes: Sequence[int], percent: int) -> bytes:
    if choices.chance(percent):
        sizes = [choices.size() for _ in range(choices.below(4))]
    elif sizes and choices.chance(percent):
        sizes = [*sizes[:-1], choices.size()]
    return tuple_of(map(number, sizes))


def tensor(
    choices: Choices, key: str, sizes: Sequence[int], percent: int, *, legacy: bool
) -> bytes:
    """A float32 tensor, or something near to one."""
    count, strides = 1, []
    for n in reversed(sizes):
        strides.insert(0, count)
        count *= n
    offset = 0 if not choices.chance(percent) else choices.size()
    storage = stored(choices, key, count, percent, legacy=legacy)
    wanted = choices.pick((FALSE, TRUE)) if choices.chance(percent) else FALSE
    return called(
        "torch._utils._rebuild_tensor_v2",
        storage,
        number(offset),
        shape(choices, sizes, percent),
        shape(choices, strides, percent),
        wanted,
        called("collections.OrderedDict"),
    )


Make = Callable[[Choices, bytes], bytes]


def _sparse(choices: Choices, values: bytes) -> bytes:
    size = tuple_of(number(choices.size()) for _ in range(1 + choices.below(3)))
    flag = choices.pick((NONE, TRUE, FALSE))
    if choices.chance(50):
        data = tuple_of([values, values, size, flag][: 3 + choices.below(2)])
        return called("torch._utils._rebuild_sparse_tensor", found("torch.sparse_coo"), data)
    layout = choices.pick(("torch.sparse_csr", "torch.sparse_bsc", "torch.strided"))
    data = tuple_of([values, values, values, size])
    return called("torch._utils._rebuild_sparse_tensor", _layout(layout), data)


def _layout(name: str) -> bytes:
    return called("torch.serialization._get_layout", text(name))


def sparse_coo(indices: bytes, values: bytes, size: Sequence[int], coalesced: bytes) -> bytes:
    """A sparse tensor of its parts."""
    data = tuple_of([indices, values, tuple_of(map(number, size)), coalesced])
    return called("torch._utils._rebuild_sparse_tensor", _layout("torch.sparse_coo"), data)


def _sparse_layout(choices: Choices, values: bytes) -> bytes:
    """Indices out of a plain tensor's memory: some lie far outside of the shape."""
    indices = called(
        "torch._utils._rebuild_device_tensor_from_cpu_tensor",
        *(values, found("torch.int64"), text("cpu"), FALSE),
    )
    flag = choices.pick((NONE, TRUE))
    return sparse_coo(indices, values, [choices.size() for _ in range(1 + choices.below(3))], flag)


def _quantized(choices: Choices, values: bytes) -> bytes:
    del values
    scheme = choices.pick(("per_tensor_affine", "per_channel_affine", "per_tensor_symmetric"))
    parameters = tuple_of(
        [found(f"torch.{scheme}"), real(choices.pick((0.5, 0.0, -1.0))), number(0)]
    )
    storage = tuple_of(
        [text("storage"), found("torch.QInt8Storage"), text("0"), text("cpu"), number(6)]
    )
    sizes = tuple_of([number(choices.size())])
    return called(
        "torch._utils._rebuild_qtensor",
        *(storage + b"Q", number(0), sizes, tuple_of([number(1)]), parameters, FALSE, DICT),
    )


def _meta(choices: Choices, values: bytes) -> bytes:
    del values
    sizes = tuple_of(number(choices.size()) for _ in range(choices.below(3)))
    return called(
        "torch._utils._rebuild_meta_tensor_no_storage",
        *(found("torch.float32"), sizes, sizes, FALSE),
    )


def _parameter(choices: Choices, values: bytes) -> bytes:
    if choices.chance(40):
        return called("torch._utils._rebuild_parameter", values, TRUE, DICT)
    return called(
        "torch._utils._rebuild_parameter_with_state",
        *(values, FALSE, DICT, attributes(choices, values)),
    )


ATTRIBUTES = (
    *("items", "values", "keys", "get", "numel", "detach", "shape", "dtype", "untyped_storage"),
    *("data_ptr", "_metadata", "is_quantized", "layout", "device", "cpu", "data", "x", "update"),
    *("clear", "is_nested", "element_size", "contiguous", "requires_grad", "grad", "__class__"),
)


def attributes(choices: Choices, value: bytes) -> bytes:
    """What an instance's dictionary is set to: names that hide methods."""
    values = (value, NONE, number(3), text("{}"), DICT, list_of([]), ordered({}))
    picked = {
        text(choices.pick(ATTRIBUTES)): choices.pick(values) for _ in range(1 + choices.below(3))
    }
    return filled(DICT, picked)


def _wrapped(choices: Choices, values: bytes) -> bytes:
    return called(
        "torch._utils._rebuild_from_type_v2",
        found("torch._utils._rebuild_parameter"),
        found(choices.pick(("torch.Tensor", "torch.nn.parameter.Parameter"))),
        tuple_of([values, TRUE, DICT]),
        attributes(choices, values),
    )


def _set(choices: Choices, values: bytes) -> bytes:
    sizes = tuple_of([number(choices.size())])
    state = tuple_of([values, number(choices.size()), sizes, sizes][: 1 + choices.below(4)])
    return built(values, state)


def _converted(choices: Choices, values: bytes) -> bytes:
    dtype = choices.pick(("float64", "int8", "bool", "complex64", "float8_e5m2", "quint8", "bits8"))
    place = choices.pick(LOCATIONS)
    return called(
        "torch._utils._rebuild_device_tensor_from_cpu_tensor",
        *(values, found(f"torch.{dtype}"), text(place), FALSE),
    )


def _with_metadata(choices: Choices, values: bytes) -> bytes:
    """Conjugated or negated, which complex numbers may be."""
    metadata = filled(DICT, {text(choices.pick(("conj", "neg", "x"))): TRUE})
    storage = tuple_of(
        [text("storage"), found("torch.ComplexFloatStorage"), text("0"), text("cpu"), number(3)]
    )
    one = tuple_of([number(1)])
    return called(
        "torch._utils._rebuild_tensor_v2",
        *(storage + b"Q", number(0), one, one, FALSE, DICT, metadata),
    )


def _bytes(choices: Choices, values: bytes) -> bytes:
    del values
    return called("builtins.bytearray", number(choices.size()))


def _plain(choices: Choices, values: bytes) -> bytes:
    return choices.pick(
        (
            *(NONE, number(5), real(float("nan")), text("x\ud800"), list_of([values, values])),
            *(b"\x8f", called("collections.Counter"), called("builtins.complex", real(1.0))),
            *(
                called("torch.Size", list_of([number(1 << 40)])),
                called("torch.device", text("cpu")),
            ),
            *(
                called("_codecs.encode", text("é"), text("latin1")),
                nested(100),
                nested(100_000),
                EMPTY + b"\x85" * 100_000,
            ),
            *(
                itself(),
                values[:-1],
                called("builtins.set", list_of([number(1)])),
                found("torch.int"),
            ),
            *(number(10**200), b"U\xffx" + b"y" * 254, called("torch.Tensor", number(1 << 28))),
            *(called("torch.FloatStorage", number(1 << 28)), called("exec", text("1"))),
        )
    )


ODD: tuple[Make, ...] = (
    *(_plain, _sparse, _sparse_layout, _quantized, _meta, _parameter, _wrapped, _set, _converted),
    *(_with_metadata, _bytes),
)


def odd(choices: Choices, values: bytes) -> bytes:
    """Something else than a tensor, or a tensor of a strange kind, made of `values`."""
    return choices.pick(ODD)(choices, values)
