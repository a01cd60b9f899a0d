"""The manifest: every form of it means what torch means by the same words, with file and line."""

import copy
import itertools
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from convsqueeze.algebra.geometry import Axis
from convsqueeze.checkpoint import from_state_dict
from convsqueeze.errors import ManifestError, PlanError
from convsqueeze.manifest import (
    Manifest,
    expand,
    json_schema,
    load_manifest,
    manifest_from_data,
    manifest_yaml,
    parse_manifest,
)
from convsqueeze.plan import Plan, make_plan
from convsqueeze.recipe import RecipeLayer
from tests.command_line import BLOCKS, SESR_PAIRS

pytestmark = pytest.mark.quick

SAMPLES = (SESR_PAIRS, *sorted(BLOCKS.glob("*.yaml")))


def manifest(text: str) -> Manifest:
    return parse_manifest(text, "pairs.yaml")


def problems(text: str) -> tuple[str, ...]:
    with pytest.raises(ManifestError) as raised:
        manifest(text)
    return raised.value.problems


def one_layer(**fields: Any) -> dict[str, Any]:
    return {"version": 1, "pairs": [{"chain": [{"name": "layer", **fields}]}]}


def planned(data: Any, shapes: Mapping[str, tuple[int, ...]], **options: Any) -> Plan:
    """The plan for tensors of these shapes."""
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
    return make_plan(manifest_from_data(data), from_state_dict(tensors), **options)


def axes_of(*weight: int, **fields: Any) -> tuple[Axis, ...]:
    (merge,) = planned(one_layer(**fields), {"layer.weight": weight}).merges
    return merge.geometry.axes


# The forms of padding and of the other numbers.


@pytest.mark.parametrize(
    ("padding", "pads"),
    [
        (None, [(0, 0), (0, 0)]),
        (0, [(0, 0), (0, 0)]),
        (2, [(2, 2), (2, 2)]),
        ([1, 2], [(1, 1), (2, 2)]),
        ([[1, 2], [3, 0]], [(1, 2), (3, 0)]),
        ([[0, 0], [1, 1]], [(0, 0), (1, 1)]),
        ("valid", [(0, 0), (0, 0)]),
        ("same", [(1, 1), (2, 2)]),
    ],
)
def test_padding_in_two_dimensions(padding: Any, pads: list[tuple[int, int]]) -> None:
    fields = {} if padding is None else {"padding": padding}
    assert [(axis.before, axis.after) for axis in axes_of(4, 4, 3, 5, **fields)] == pads


@pytest.mark.parametrize(
    ("kernel", "dilation", "pads"),
    [
        (3, 1, (1, 1)),
        (4, 1, (1, 2)),
        (2, 1, (0, 1)),
        (2, 3, (1, 2)),
        (1, 1, (0, 0)),
        (5, 2, (4, 4)),
    ],
)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_same_is_what_torch_pads(kernel: int, dilation: int, pads: tuple[int, int]) -> None:
    """An odd amount goes behind, as torch does it: the output has the input's size."""
    (axis,) = axes_of(2, 2, kernel, padding="same", dilation=dilation)
    assert (axis.before, axis.after) == pads
    conv = torch.nn.Conv1d(2, 2, kernel, padding="same", dilation=dilation, dtype=torch.float64)
    x = torch.randn(1, 2, 11, dtype=torch.float64)
    other = torch.nn.Conv1d(2, 2, kernel, dilation=dilation, dtype=torch.float64)
    other.load_state_dict(conv.state_dict())
    assert torch.equal(conv(x), other(torch.nn.functional.pad(x, pads)))


def test_same_with_a_stride_is_refused_as_torch_does() -> None:
    with pytest.raises(PlanError, match="same"):
        axes_of(2, 2, 3, padding="same", stride=2)
    with pytest.raises(ValueError, match="same"):
        torch.nn.Conv1d(2, 2, 3, padding="same", stride=2)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_one_number_or_one_for_each_axis(rank: int) -> None:
    weight = (2, 2, *(3,) * rank)
    for key, attribute in (("stride", "stride"), ("dilation", "dilation")):
        assert [getattr(axis, attribute) for axis in axes_of(*weight, **{key: 2})] == [2] * rank
        each = list(range(1, rank + 1))
        assert [getattr(axis, attribute) for axis in axes_of(*weight, **{key: each})] == each
    for fields in ({"stride": [2] * (rank + 1)}, {"padding": [1] * (rank + 1)}):
        with pytest.raises(PlanError, match=rf"has {rank + 1} (numbers|entries) for {rank} ax"):
            axes_of(*weight, **fields)


def test_nested_padding_is_before_and_after_not_width_and_height() -> None:
    """`[[1, 2], [3, 4]]` puts 1 row on top and 4 columns at the right."""
    (merge,) = planned(
        one_layer(padding=[[1, 2], [3, 4]], stride=[1, 2]), {"layer.weight": (1, 1, 3, 3)}
    ).merges
    layer = RecipeLayer.of(
        "layer", merge.geometry, sources=["layer"], border="exact", weights_before=9
    )
    assert layer.padding == ((1, 2), (3, 4))
    assert merge.geometry.output_size((10, 10)) == (11, 8)


def test_defaults_are_torchs() -> None:
    (layer,) = manifest_from_data(one_layer()).document.pairs[0].chain  # type: ignore[union-attr]
    conv = torch.nn.Conv2d(1, 1, 1)
    assert layer.type == "conv"
    assert (layer.stride,) * 2 == conv.stride
    assert (layer.padding,) * 2 == conv.padding
    assert (layer.dilation,) * 2 == conv.dilation
    assert (layer.groups, layer.padding_mode) == (conv.groups, conv.padding_mode)
    transposed = manifest_from_data(one_layer(type="conv_transpose")).document.pairs[0].chain[0]  # type: ignore[union-attr]
    turned = torch.nn.ConvTranspose2d(1, 1, 1)
    assert (transposed.output_padding,) * 2 == turned.output_padding
    document = manifest_from_data(one_layer()).document
    assert (document.border, document.pairs[0].border, document.pairs[0].input) == (
        "exact",
        None,
        None,
    )


def test_pooling_steps_by_its_kernel_unless_told() -> None:
    def pooled(**fields: Any) -> tuple[Axis, ...]:
        data = {
            "version": 1,
            "pairs": [{"chain": [{"name": "a"}, {"type": "avg_pool", "kernel_size": 2, **fields}]}],
        }
        return planned(data, {"a.weight": (1, 1, 1, 1)}, growth="allow").merges[0].geometry.axes

    assert [axis.stride for axis in pooled()] == [2, 2]
    assert [axis.stride for axis in pooled(stride=1)] == [1, 1]
    assert [axis.stride for axis in pooled(stride=[1, 2])] == [1, 2]


# Pairs, chains, sums, nesting; names.

SHAPES = {
    "a.weight": (8, 4, 1, 1),
    "a.bias": (8,),
    "b.weight": (4, 8, 3, 3),
    "c.weight": (4, 4, 1, 1),
    "n.weight": (4,),
    "n.bias": (4,),
    "n.running_mean": (4,),
    "n.running_var": (4,),
}


@pytest.mark.parametrize(
    ("body", "into", "labels"),
    [
        ("{first: {name: a}, second: {name: b}}", "a", ["a", "b"]),
        ("{first: {name: a}, second: {name: b}, into: x.y}", "x.y", ["a", "b"]),
        ("{chain: [{name: a}, {name: b}, {name: c}]}", "a", ["a", "b", "c"]),
        ("{chain: [{name: c}]}", "c", ["c"]),
        (
            "{sum: [{name: c}, {type: identity}, {name: n, type: batch_norm, eps: 1.0e-5}]}",
            "c",
            ["c", "identity", "n"],
        ),
        (
            "{sum: [{chain: [{name: a}, {name: b, padding: 1}]}, {chain: [{name: c}]}], "
            "border: interior}",
            "a",
            ["a", "b", "c"],
        ),
        (
            "{first: {sum: [{name: c}, {type: identity}]}, second: {chain: "
            "[{name: a}, {sum: [{name: b}, {chain: [{weight: d, padding: 0}]}]}]}}",
            "c",
            ["c", "identity", "a", "b", "d"],
        ),
        ("{chain: [{type: pad, padding: 1}, {name: a}, {name: b}]}", "a", ["pad", "a", "b"]),
        ("{chain: [{type: scale, factor: 2}, {name: c}]}", "c", ["scale", "c"]),
        ("{chain: [{name: c}, {type: scale, shift: 2}]}", "c", ["c", "scale"]),
        ("{into: x, chain: [{weight: c.weight}, {name: a}]}", "x", ["c.weight", "a"]),
    ],
)
def test_entries(body: str, into: str, labels: list[str]) -> None:
    shapes = {**SHAPES, "d": (4, 8, 3, 3)}
    text = f"version: 1\npairs:\n  - {body}\n"
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
    plan = make_plan(manifest(text), from_state_dict(tensors), growth="allow")
    (merge,) = plan.merges
    assert merge.into == into
    assert [layer.label for layer in merge.layers] == labels
    assert merge.place == "pairs.yaml:3 pairs[0]"


def test_tensors_of_a_layer() -> None:
    """`<name>.weight` and, if present, `<name>.bias`; of a norm also its statistics and counter."""
    shapes = {**SHAPES, "n.num_batches_tracked": (), "a.other": (3,)}
    norm = {"name": "n", "type": "batch_norm", "eps": 0}
    data: dict[str, Any] = {
        "version": 1,
        "pairs": [{"chain": [{"name": "a"}, {"name": "b"}, norm]}],
    }
    (merge,) = planned(data, shapes).merges
    assert set(merge.consumed) == set(shapes) - {"c.weight", "a.other"}
    assert merge.weights_before == 4 * 8 + 8 + 4 * 8 * 9 + 4 * 4
    named = copy.deepcopy(data)
    named["pairs"][0]["chain"][0] = {"weight": "a.weight", "bias": "n.bias"}
    named["pairs"][0]["chain"].pop()
    named["pairs"][0]["into"] = "x"
    with pytest.raises(PlanError, match=r"n\.bias|8"):
        planned(named, shapes)


def test_yaml_is_read_as_version_1_2() -> None:
    """`1e-5` is a number there, `no`, `on` and `1_0` are names; anchors and merge keys work."""
    text = (
        "version: 1\n"
        "pairs:\n"
        "  - chain:\n"
        "      - &norm {name: no, type: batch_norm, eps: 1e-5}\n"
        "      - {<<: *norm, name: on}\n"
        "      - {name: 'yes', type: batch_norm, eps: 1}\n"
    )
    chain = manifest(text).document.pairs[0].chain  # type: ignore[union-attr]
    assert [layer.name for layer in chain] == ["no", "on", "yes"]
    assert [layer.eps for layer in chain] == [1e-5, 1e-5, 1.0]


def test_same_manifest_in_yaml_json_and_python(tmp_path: Path) -> None:
    for path in SAMPLES:
        read = load_manifest(path)
        data = read.to_data()
        again = manifest_from_data(data)
        assert again.document == read.document
        assert again.to_data() == data
        (tmp_path / "pairs.json").write_text(json.dumps(data))
        assert load_manifest(tmp_path / "pairs.json").document == read.document
        assert manifest_from_data(YAML(typ="safe").load(path)).document == read.document


def test_a_byte_order_mark_and_other_line_ends(tmp_path: Path) -> None:
    text = "version: 1\npairs:\n  - {first: {name: a}, second: {name: b}}\n"
    for content in (b"\xef\xbb\xbf" + text.encode(), text.replace("\n", "\r\n").encode()):
        (tmp_path / "pairs.yaml").write_bytes(content)
        assert load_manifest(tmp_path / "pairs.yaml").document == manifest(text).document


# Placeholders.


def expanded(data: Any, names: list[str]) -> Any:
    (entry,) = manifest_from_data({"version": 1, "pairs": [data]}).document.pairs
    return expand(entry, names)


PAIR = {
    "first": {"name": "blocks.{i}.conv1", "padding": 1},
    "second": {"name": "blocks.{i}.conv2"},
    "into": "blocks.{i}.conv",
}


def weights(*names: str) -> list[str]:
    return [f"{name}.weight" for name in names]


def test_placeholder_expands_over_every_match() -> None:
    names = weights(*(f"blocks.{i}.conv{k}" for i in (0, 1, 10) for k in (1, 2)))
    result = expanded(PAIR, names)
    assert [binding for binding, _ in result.entries] == [
        (("i", "0"),),
        (("i", "1"),),
        (("i", "10"),),
    ]
    assert [entry.into for _, entry in result.entries] == [f"blocks.{i}.conv" for i in (0, 1, 10)]
    assert [entry.first.padding for _, entry in result.entries] == [1, 1, 1]
    assert result.partial == ()


def test_two_placeholders_and_one_that_stands_twice() -> None:
    data = {
        "first": {"name": "{stage}.{i}.a"},
        "second": {"name": "{stage}.{i}.b"},
        "into": "{stage}.merged.{i}",
    }
    names = weights(*(f"{s}.{i}.{k}" for s in ("low", "high") for i in (0, 1) for k in "ab"))
    result = expanded(data, names)
    assert [entry.into for _, entry in result.entries] == [
        f"{s}.merged.{i}" for s in ("low", "high") for i in (0, 1)
    ]
    twice = {"first": {"name": "s{i}.a{i}"}, "second": {"name": "s{i}.b"}}
    names = weights("s1.a1", "s1.b", "s2.a1", "s2.b", "s3.a3", "s3.b")
    assert [entry.first.name for _, entry in expanded(twice, names).entries] == ["s1.a1", "s3.a3"]


def test_placeholders_of_two_layers_are_bound_apart() -> None:
    data = {"first": {"name": "a.{i}"}, "second": {"name": "b.{j}"}, "into": "c.{i}.{j}"}
    result = expanded(data, weights("a.0", "a.1", "b.x", "b.y"))
    assert [entry.into for _, entry in result.entries] == ["c.0.x", "c.0.y", "c.1.x", "c.1.y"]


def test_placeholder_is_one_dotted_component() -> None:
    data = {"first": {"name": "net.{i}"}, "second": {"name": "out"}}
    names = weights("net.0", "net.1.inner", "net", "xnet.2", "out", "net.3")
    result = expanded(data, [*names, "net.0.bias"])
    bound = [entry.first.name for _, entry in result.entries]
    assert bound[0] == "net.0"
    assert "net.3" in bound
    assert not any(name.startswith(("net.1.", "xnet")) for name in bound)
    inside = {"first": {"name": "net.conv{i}x"}, "second": {"name": "out"}}
    names = weights("net.conv1x", "net.conv22x", "net.convx", "net.conv3", "net.conv4xy", "out")
    bound = [entry.first.name for _, entry in expanded(inside, names).entries]
    assert bound == ["net.conv1x", "net.conv22x"]


def test_names_are_no_patterns() -> None:
    data = {"first": {"name": "a.+.{i}"}, "second": {"name": "b(.{i}"}}
    assert expanded(data, weights("a.+.0", "b(.0", "a...1", "axx.2")).entries[0][0] == (("i", "0"),)
    braces = {"first": {"name": "a{}"}, "second": {"name": "b{1}"}}
    assert expanded(braces, []).entries[0][0] == ()


def test_what_matches_in_part_is_noted_and_left_alone() -> None:
    names = weights("blocks.0.conv1", "blocks.0.conv2", "blocks.1.conv1", "blocks.2.conv2")
    result = expanded(PAIR, names)
    assert [entry.into for _, entry in result.entries] == ["blocks.0.conv"]
    assert set(result.partial) == {"blocks.1.conv1", "blocks.2.conv2"}
    shapes = dict.fromkeys(names, (2, 2, 1, 1))
    plan = planned({"version": 1, "pairs": [{**PAIR, "border": "interior"}]}, shapes)
    assert len(plan.merges) == 1
    assert all(
        any(name in note for note in plan.notes) for name in ("blocks.1.conv1", "blocks.2.conv2")
    )
    assert "blocks.0" not in " ".join(plan.notes)


def test_problems_of_expanded_entries_say_which() -> None:
    shapes = {
        "blocks.0.conv1.weight": (3, 2, 1, 1),
        "blocks.0.conv2.weight": (2, 3, 1, 1),
        "blocks.7.conv1.weight": (3, 2, 1, 1),
        "blocks.7.conv2.weight": (2, 4, 1, 1),
    }
    with pytest.raises(PlanError) as raised:
        planned({"version": 1, "pairs": [PAIR]}, shapes)
    (problem,) = raised.value.problems
    assert "i=7" in problem
    assert "blocks.7.conv2" in problem


@given(
    st.lists(
        st.lists(st.sampled_from(["a", "b", "0", "1", "12"]), min_size=1, max_size=4).map(".".join),
        unique=True,
        max_size=12,
    ),
    st.lists(st.sampled_from(["a", "b", "{i}", "{j}", "1"]), min_size=1, max_size=3).map(".".join),
    st.lists(st.sampled_from(["a", "b", "{i}", "{j}", "1"]), min_size=1, max_size=3).map(".".join),
)
@settings(max_examples=150, deadline=None)
def test_expansion_is_every_binding_under_which_all_layers_exist(
    layers: list[str], first: str, second: str
) -> None:
    """Held against the plain way: try every component for every placeholder.

    A layer has a tensor of its own; what lies deeper belongs to layers inside it.
    """
    names = weights(*layers)
    placeholders = sorted({p for p in ("i", "j") if f"{{{p}}}" in first + second})
    if not placeholders:
        return
    parts = sorted({part for name in names for part in name.split(".")})
    wanted = set()
    for values in itertools.product(parts, repeat=len(placeholders)):
        bound = [first, second]
        for placeholder, value in zip(placeholders, values, strict=True):
            bound = [name.replace(f"{{{placeholder}}}", value) for name in bound]
        holds = [any(n in (name, f"{name}.weight") for n in names) for name in bound]
        templated = ["{" in first, "{" in second]
        if all(h for h, t in zip(holds, templated, strict=True) if t):
            wanted.add(tuple(bound))
    data = {"first": {"name": first}, "second": {"name": second}}
    if not wanted:
        with pytest.raises(ManifestError, match="match"):
            expanded(data, names)
        return
    result = expanded(data, names)
    found = [(entry.first.name, entry.second.name) for _, entry in result.entries]
    assert set(found) == wanted
    assert len(found) == len(set(found))


# Places in messages.


def test_lines_and_keys_of_problems() -> None:
    text = """\
# a comment, then an empty line

version: 1
pairs:
  - into: stem
    chain:
      - name: stem.0
        strid: 2
      - name: stem.1
        type: batch_norm
  - sum:
      - {name: a}
      - chain:
          - name: b
            padding: [[1, 2],
                      [3, x]]
"""
    told = problems(text)
    assert len(told) == 3
    for where in (
        "pairs.yaml:8 pairs[0].chain[0].strid: ",
        "pairs.yaml:9 pairs[0].chain[1]: eps is missing",
        "pairs.yaml:15 pairs[1].sum[1].chain[0].padding: ",
    ):
        assert any(problem.startswith(where) for problem in told), (where, told)


def test_where_finds_the_nearest_key_that_has_a_line() -> None:
    read = manifest("version: 1\npairs:\n  - first: {name: a}\n    second:\n      name: b\n")
    assert read.where(0) == "pairs.yaml:3 pairs[0]"
    assert read.where(0, ("second",)) == "pairs.yaml:4 pairs[0].second"
    assert read.where(0, ("second", "name")) == "pairs.yaml:5 pairs[0].second.name"
    assert read.where(0, ("second", "stride")).startswith("pairs.yaml:4 ")
    assert manifest_from_data(read.to_data()).where(0) == "manifest pairs[0]"


def test_nearest_right_name() -> None:
    (told,) = problems("version: 1\npairs:\n  - {chain: [{name: a, dilatoin: 2}]}\n")
    assert "Did you mean dilation?" in told
    (told,) = problems("version: 1\npairs:\n  - {chain: [{name: a, type: conv2d}]}\n")
    assert "Did you mean conv" in told
    (told,) = problems("version: 1\npairs:\n  - {chain: [{name: a, qqq: 2}]}\n")
    assert "Known here: " in told
    assert all(key in told for key in ("stride", "padding_mode", "groups"))


def test_problem_is_told_once() -> None:
    told = problems("version: 1\npairs:\n  - {first: {name: a, padding: x}, second: {name: b}}\n")
    assert len(told) == 1


# The JSON Schema.


@pytest.fixture(scope="module")
def schema() -> jsonschema.Draft202012Validator:
    jsonschema.Draft202012Validator.check_schema(json_schema())
    return jsonschema.Draft202012Validator(json_schema())


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_schema_takes_the_samples(schema: jsonschema.Draft202012Validator, path: Path) -> None:
    schema.validate(YAML(typ="safe").load(path))


LAYERS_THAT_ARE: list[dict[str, Any]] = [
    {"name": "a"},
    {"name": "a", "type": "conv"},
    {"name": "a", "stride": [1, 2], "dilation": 3, "groups": 4, "padding_mode": "circular"},
    {"name": "a", "padding": "same"},
    {"name": "a", "padding": "valid"},
    {"name": "a", "padding": 1},
    {"name": "a", "padding": [1, 2]},
    {"name": "a", "padding": [[1, 2], [3, 4]]},
    {"weight": "a.kernel", "bias": "a.shift"},
    {"name": "a", "type": "conv_transpose", "output_padding": 1},
    {"name": "a", "type": "linear"},
    {"name": "a", "type": "batch_norm", "eps": 0.001},
    {"name": "a", "type": "batch_norm", "eps": 0},
    {"name": "a", "type": "scale"},
    {"type": "scale", "factor": 0.5},
    {"type": "scale", "weight": "gamma"},
    {"type": "scale", "shift": 0.5},
    {"type": "scale", "factor": -2, "shift": -1},
    {"name": "a", "type": "scale", "shift": 0},
    {"type": "avg_pool", "kernel_size": [2, 2], "stride": 1, "padding": [0, 1]},
    {"type": "identity"},
    {"type": "pad", "padding": [[-1, 0], [2, 2]], "padding_mode": "reflect"},
    {"chain": [{"name": "a"}, {"sum": [{"name": "b"}, {"type": "identity"}]}]},
]
LAYERS_THAT_ARE_NOT: list[Any] = [
    {},
    {"type": "conv"},
    {"type": "scale"},
    {"type": "scale", "shift": "0.5"},
    {"type": "scale", "shift": True},
    {"type": "scale", "shift": [0.5, 1]},
    {"type": "scale", "shift": None},
    {"name": "a", "shift": 0.5},
    {"type": "linear"},
    {"name": ""},
    {"name": 3},
    {"name": "a", "stride": 0},
    {"name": "a", "stride": []},
    {"name": "a", "stride": 1.5},
    {"name": "a", "stride": "2"},
    {"name": "a", "groups": 0},
    {"name": "a", "groups": True},
    {"name": "a", "padding": "full"},
    {"name": "a", "padding": [[1, 2, 3]]},
    {"name": "a", "padding": [1, [2, 3]]},
    {"name": "a", "padding": [True]},
    {"name": "a", "padding": []},
    {"name": "a", "padding": None},
    {"name": "a", "padding_mode": "constant"},
    {"name": "a", "padd": 1},
    {"name": "a", "type": "relu"},
    {"name": "a", "type": "batch_norm"},
    {"name": "a", "type": "batch_norm", "eps": -1},
    {"name": "a", "type": "batch_norm", "eps": "1e-5"},
    {"type": "batch_norm", "eps": 1},
    {"name": "a", "type": "linear", "stride": 2},
    {"type": "avg_pool"},
    {"type": "pad"},
    {"type": "identity", "padding": 1},
    {"chain": []},
    {"chain": [{"name": "a"}], "sum": [{"name": "a"}]},
    {"chain": [{"name": "a"}], "name": "b"},
    {"chain": {"name": "a"}},
    "a",
    None,
    ["a"],
]


def accepted(data: Any) -> bool:
    try:
        manifest_from_data(data)
    except ManifestError:
        return False
    return True


def around(layer: Any) -> list[dict[str, Any]]:
    """The layer at every kind of place that takes one."""
    return [
        {"version": 1, "pairs": [{"first": layer, "second": {"name": "z"}}]},
        {"version": 1, "pairs": [{"chain": [{"name": "z"}, layer]}]},
        {"version": 1, "pairs": [{"sum": [{"chain": [layer]}, {"type": "identity"}]}]},
    ]


@pytest.mark.parametrize("layer", LAYERS_THAT_ARE, ids=json.dumps)
def test_program_and_schema_take_the_layer(
    schema: jsonschema.Draft202012Validator, layer: Any
) -> None:
    for data in around(layer):
        assert accepted(data)
        schema.validate(data)


@pytest.mark.parametrize("layer", LAYERS_THAT_ARE_NOT, ids=json.dumps)
def test_program_and_schema_refuse_the_layer(
    schema: jsonschema.Draft202012Validator, layer: Any
) -> None:
    for data in around(layer):
        assert not accepted(data)
        assert not schema.is_valid(data)


def test_shifts_are_written_as_they_are_read() -> None:
    text = (
        "version: 1\n"
        "pairs:\n"
        "  - chain:\n"
        "      - {name: a}\n"
        "      - {type: scale, shift: -1e-20}\n"
        "      - {type: scale, factor: 0.1, shift: 3.0}\n"
        "      - {type: scale, factor: 2.0}\n"
    )
    document = manifest(text).document
    assert manifest_yaml(document) == text
    (entry,) = document.pairs
    _, *scales = entry.chain  # type: ignore[union-attr]
    numbers = [(one.factor, one.shift) for one in scales]  # type: ignore[union-attr]
    assert numbers == [(1.0, -1e-20), (0.1, 3.0), (2.0, 0.0)]


GOOD = {"version": 1, "pairs": [{"first": {"name": "a"}, "second": {"name": "b"}}]}


@pytest.mark.parametrize(
    ("change", "good"),
    [
        ({}, True),
        ({"border": "interior"}, True),
        ({"border": "corrrected"}, False),
        ({"version": 2}, False),
        ({"version": "1"}, False),
        ({"version": True}, False),
        ({"pairs": []}, False),
        ({"pairs": {}}, False),
        ({"pairs": [{}]}, False),
        ({"pairs": [{"first": {"name": "a"}}]}, False),
        ({"pairs": [{**GOOD["pairs"][0], "into": "c", "input": [3, 4], "drop": ["d"]}]}, True),  # type: ignore[index]
        ({"pairs": [{**GOOD["pairs"][0], "into": ""}]}, False),  # type: ignore[index]
        ({"pairs": [{**GOOD["pairs"][0], "input": [0]}]}, False),  # type: ignore[index]
        ({"pairs": [{**GOOD["pairs"][0], "input": 3}]}, False),  # type: ignore[index]
        ({"pairs": [{**GOOD["pairs"][0], "drop": "d"}]}, False),  # type: ignore[index]
        ({"pairs": [{**GOOD["pairs"][0], "chain": [{"name": "a"}]}]}, False),  # type: ignore[index]
        ({"extra": 1}, False),
    ],
    ids=str,
)
def test_program_and_schema_agree_on_the_rest(
    schema: jsonschema.Draft202012Validator, change: Any, good: bool
) -> None:
    data = {**GOOD, **change}
    assert accepted(data) is good
    assert schema.is_valid(data) is good


def test_schema_helps_an_editor() -> None:
    """Each layer kind is described and lists its fields; nothing is offered that is refused."""
    text = json.dumps(json_schema())
    for word in ("conv_transpose", "batch_norm", "padding_mode", "replicate", "into", "interior"):
        assert word in text
    definitions = json_schema()["$defs"]
    for kind in ("ConvLayer", "BatchNormLayer", "ChainEntry", "SumEntry", "PairEntry"):
        assert definitions[kind]["additionalProperties"] is False
    assert "eps" in definitions["BatchNormLayer"]["required"]


# Versions.


def test_a_manifest_of_a_later_version() -> None:
    """Both versions and what to do, and nothing of keys that this version cannot know."""
    text = "# later\nversion: 2\ngraph: .inf\npairs:\n  - {first: {name: a}, after: {name: b}}\n"
    assert problems(text) == (
        f"pairs.yaml:2 version: is 2, this program (convsqueeze {version('convsqueeze')}) reads "
        "version 1. Update convsqueeze, or write the manifest in version 1.",
    )
    with pytest.raises(
        ManifestError, match=r"^manifest version: is 3, this program .* version 1\.$"
    ):
        manifest_from_data({"version": 3})


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("0", "is 0, 1 was needed."),
        ("-1", "is -1, 1 was needed."),
        ("1.5", "is 1.5, 1 was needed."),
        ("'2'", "is '2', 1 was needed."),
        ("true", "is true, 1 was needed."),
        ("9" * 15, f"is {'9' * 15}, 1 was needed."),
        pytest.param(
            "9" * 3000,
            "is a number of 9966 bits, no layer has such. Write a smaller one.",
            id="3000 digits",
        ),
    ],
)
def test_what_is_no_later_version(written: str, told: str) -> None:
    assert problems(
        f"version: {written}\npairs:\n  - {{first: {{name: a}}, second: {{name: b}}}}\n"
    ) == (f"pairs.yaml:1 version: {told}",)


@pytest.mark.parametrize(
    "tagged", ["!foo [{name: a}]", "!foo {a: 1}", "!!python/object/apply:os.system [x]"]
)
def test_what_has_a_tag_is_refused_with_its_line(tmp_path: Path, tagged: str) -> None:
    path = tmp_path / "pairs.yaml"
    path.write_text(f"version: 1\npairs: {tagged}\n")
    with pytest.raises(ManifestError, match=r"pairs\.yaml:2 pairs: has the tag .*Write it without"):
        load_manifest(path)
