"""The ONNX model of squeezed layers computes what the layers before the merge compute.

Every row of the table goes through the real pipeline, and the oracle is the original layers, one
after the other in torch's own operators in float64: not the merged layer, and not the exporter.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, NodeProto, helper, numpy_helper
from torch import Tensor

from convsqueeze.algebra.apply import transposed_layout
from convsqueeze.algebra.geometry import PADDING_MODES, Axis, Geometry
from convsqueeze.checkpoint import Checkpoint, from_state_dict
from convsqueeze.errors import OutputError, VerificationError
from convsqueeze.export import OnnxLayers, build_model, check_model, newest_opset
from convsqueeze.export.opsets import OLDEST_OPSET
from convsqueeze.manifest import manifest_from_data
from convsqueeze.module import SqueezedConv, module_of
from convsqueeze.plan import Plan, make_plan
from convsqueeze.recipe import RecipeLayer
from convsqueeze.squeezing import recipe_of, squeeze
from convsqueeze.verify.probes import exhaustive_sizes, plain_sizes
from convsqueeze.verify.reference import reference, term_count


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny tensors: torch's threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Case:
    """A row: the shapes of the tensors, and the chain of layers that the manifest gives."""

    name: str
    shapes: Mapping[str, tuple[int, ...]]
    chain: tuple[dict[str, Any], ...]
    operators: tuple[str, ...] = field(default=("Conv",))
    dtype: torch.dtype = torch.float32


def conv(name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, **fields}


def transposed(name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "type": "conv_transpose", **fields}


def pad(amounts: list[list[int]], mode: str = "zeros") -> dict[str, Any]:
    return {"type": "pad", "padding": amounts, "padding_mode": mode}


ONE_BY_ONE = {"b.weight": (2, 4, 1, 1), "b.bias": (2,)}
LOOKED_UP = ("Shape", "Gather", "Conv")


def padded_by(mode: str) -> Case:
    shapes = {"a.weight": (4, 3, 3, 4), "a.bias": (4,), **ONE_BY_ONE}
    chain = (conv("a", padding=[[1, 2], [3, 0]], padding_mode=mode, stride=[1, 2]), conv("b"))
    return Case(mode, shapes, chain, LOOKED_UP)


def upsampled(name: str, *operators: str, after: dict[str, Any], **fields: Any) -> Case:
    """A transposed convolution 2 -> 4 of a 3x2 kernel, then `after`, then 1x1 with a bias."""
    shapes = {"a.weight": (2, 4, 3, 2), **ONE_BY_ONE}
    chain = (transposed("a", **fields), after, conv("b"))
    return Case(name, shapes, chain, operators)


def stored_as(dtype: torch.dtype) -> Case:
    """As many terms as make a dense half-precision bound useless: the sparse inputs must tell."""
    shapes = {"a.weight": (32, 64, 3, 3), "a.bias": (32,), "b.weight": (4, 32, 3, 3)}
    chain = (conv("a", padding=[[2, 1], [0, 3]]), conv("b"))
    return Case(str(dtype).removeprefix("torch."), shapes, chain, ("Conv",), dtype)


TABLE = [
    Case(
        "1-d, stride twice",
        {"a.weight": (4, 3, 5), "a.bias": (4,), "b.weight": (2, 4, 3)},
        (conv("a", padding=[[3, 1]], stride=2), conv("b", stride=3)),
    ),
    Case(
        "2-d, asymmetric pads, dilation",
        {"a.weight": (4, 3, 3, 2), "b.weight": (2, 4, 2, 3), "b.bias": (2,)},
        (conv("a", padding=[[0, 2], [3, 1]], dilation=2), conv("b", dilation=[1, 2])),
    ),
    Case(
        "3-d",
        {"a.weight": (3, 2, 2, 1, 3), "a.bias": (3,), "b.weight": (2, 3, 1, 2, 2)},
        (conv("a", padding=[[1, 0], [0, 0], [2, 1]]), conv("b", stride=[2, 1, 1])),
    ),
    Case(
        "groups 4 and 2",
        {"a.weight": (8, 1, 3, 3), "a.bias": (8,), "b.weight": (6, 4, 2, 2), "b.bias": (6,)},
        (conv("a", groups=4, padding=1), conv("b", groups=2)),
    ),
    Case(
        "depthwise",
        {"a.weight": (6, 1, 3, 3), "b.weight": (6, 1, 2, 1)},
        (conv("a", groups=6, padding=[[2, 0], [1, 1]]), conv("b", groups=6)),
    ),
    Case(
        "crop",
        {"a.weight": (4, 3, 2, 2), "a.bias": (4,)},
        (pad([[-1, -2], [0, -1]]), conv("a")),
        ("Pad", "Conv"),
    ),
    Case(
        "crop on one side, zeros on the other",
        {"a.weight": (4, 3, 2, 3), "a.bias": (4,)},
        (pad([[-2, 3], [1, 2]]), conv("a")),
        ("Pad", "Conv"),
    ),
    Case(
        "few outputs",  # at sizes just past the kernel a single one, where no stride shows
        {"a.weight": (4, 3, 5)},
        (pad([[-2, 0]]), conv("a", stride=3, dilation=2)),
        ("Pad", "Conv"),
    ),
    *(padded_by(mode) for mode in PADDING_MODES if mode != "zeros"),
    Case(
        "circular beside zeros",
        {"a.weight": (4, 3, 3, 3), "a.bias": (4,)},
        (pad([[2, 1], [0, 0]], "circular"), conv("a", padding=[[0, 0], [1, 2]])),
        LOOKED_UP,
    ),
    Case(
        "reflect, cropped on the other side",
        {"a.weight": (4, 3, 3), "a.bias": (4,)},
        (pad([[2, 0]], "reflect"), pad([[0, -1]]), conv("a")),
        ("Shape", "Gather", "Conv"),
    ),
    upsampled("transposed", "ConvTranspose", after=pad([[0, 0], [0, 0]]), stride=2, padding=1),
    upsampled(
        "output_padding",
        "ConvTranspose",
        after=pad([[0, 0], [0, 0]]),
        stride=[2, 3],
        padding=[1, 0],
        output_padding=[1, 2],
    ),
    upsampled("transposed, cropped", "ConvTranspose", after=pad([[-1, -2], [0, -1]]), stride=2),
    upsampled(
        "transposed, samples that no tap reaches",
        *("ConvTranspose", "Pad", "Reshape", "Add"),
        after=pad([[1, 0], [2, 3]]),
        stride=2,
    ),
    upsampled("one axis upsampled", "ConvTranspose", after=pad([[0, 0], [0, 0]]), stride=[2, 1]),
    upsampled(
        "output stride",
        *("ConvTranspose", "Slice"),
        after={"type": "avg_pool", "kernel_size": [3, 2], "stride": [3, 1]},
        stride=2,
        padding=[1, 0],
    ),
    Case(
        "transposed, grouped, 1-d",
        {"a.weight": (4, 3, 4), "b.weight": (6, 3, 1), "b.bias": (6,)},
        (transposed("a", stride=3, groups=2, padding=1), conv("b", groups=2)),
        ("ConvTranspose",),
    ),
    Case(
        "circular beside an upsampled axis",
        {"a.weight": (2, 3, 3, 3), "a.bias": (3,)},
        (pad([[0, 0], [1, 2]], "circular"), transposed("a", stride=[2, 1], padding=[1, 2])),
        ("Shape", "Gather", "ConvTranspose"),
    ),
    Case(
        "linear",
        {"a.weight": (7, 5), "a.bias": (7,), "b.weight": (3, 7), "b.bias": (3,)},
        ({"name": "a", "type": "linear"}, {"name": "b", "type": "linear"}),
        ("Gemm",),
    ),
    Case(
        "linear without bias",
        {"a.weight": (7, 5), "b.weight": (3, 7)},
        ({"name": "a", "type": "linear"}, {"name": "b", "type": "linear"}),
        ("Gemm",),
    ),
    *(stored_as(dtype) for dtype in (torch.float16, torch.bfloat16, torch.float64)),
    Case(
        "float64, transposed, grouped",
        {"a.weight": (4, 2, 3, 3), "a.bias": (4,), "b.weight": (4, 2, 1, 1)},
        (transposed("a", stride=2, groups=2, output_padding=1), conv("b", groups=2)),
        ("ConvTranspose",),
        torch.float64,
    ),
    Case(
        "float64 linear",
        {"a.weight": (7, 5), "a.bias": (7,), "b.weight": (3, 7), "b.bias": (3,)},
        ({"name": "a", "type": "linear"}, {"name": "b", "type": "linear"}),
        ("Gemm",),
        torch.float64,
    ),
]
BY_NAME = {case.name: case for case in TABLE}
every_case = pytest.mark.parametrize("case", TABLE, ids=lambda case: case.name)


def planned(case: Case) -> tuple[Plan, Checkpoint]:
    generator = torch.Generator().manual_seed(1)
    tensors = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(case.dtype)
        for name, shape in case.shapes.items()
    }
    checkpoint = from_state_dict(tensors)
    entry = {"into": "deep.layer", "chain": list(case.chain)}
    manifest = manifest_from_data({"version": 1, "pairs": [entry]})
    return make_plan(manifest, checkpoint, growth="allow"), checkpoint


def squeezed(case: Case) -> dict[str, SqueezedConv]:
    plan, checkpoint = planned(case)
    recipe = recipe_of(plan, checkpoint)
    merged = next(squeeze(plan, checkpoint.load))
    return {layer.name: module_of(layer, merged.tensors()) for layer in recipe.layers}


@every_case
def test_the_model_computes_what_the_original_layers_compute(case: Case) -> None:
    plan, checkpoint = planned(case)
    merge = plan.merges[0]
    runnable = OnnxLayers(build_model(squeezed(case)))
    computed = runnable["deep.layer"].computes_in
    storage, arithmetic = torch.finfo(case.dtype).eps, torch.finfo(computed).eps
    original = reference(merge.tree, checkpoint.load)
    magnitude = reference(merge.tree, checkpoint.load, magnitude=True)
    generator = torch.Generator().manual_seed(2)
    tree = merge.geometry_tree
    tried = ([*exhaustive_sizes(tree, None), *plain_sizes(tree)] * 3)[:3]
    for batch, size in enumerate(tried, start=1):
        shape = (batch, merge.geometry.in_channels, *size)
        x = torch.randn(shape, generator=generator, dtype=torch.float64).to(computed)
        expected = original(x.double())
        actual = runnable["deep.layer"](x)
        assert actual.shape == expected.shape
        # Half precision is computed by float32 kernels here, so its many terms cost little.
        rounding = storage + term_count(merge.tree) * min(arithmetic, 2.0**-23)
        error = (actual.double() - expected).abs()
        assert float(expected.abs().max()) > 0.1
        assert bool((error <= 2 * rounding * magnitude(x.double().abs())).all())


@every_case
def test_check_model_holds_with_room_and_says_what_it_ran(case: Case) -> None:
    layers = squeezed(case)
    (report,) = check_model(build_model(layers), layers, seed=5)
    stride = layers["deep.layer"].axes[0].stride if layers["deep.layer"].axes else 1
    assert report.name == "deep.layer"
    assert len(report.sizes) == 3
    assert report.inputs == 2 * (1 + 2 + 3)
    assert 0 < report.worst.error <= report.worst.bound
    assert report.worst.share < 0.6
    assert stride == 1 or report.sizes[1][0] % stride == 0 != report.sizes[2][0] % stride


@every_case
def test_the_graph_is_the_plain_one_with_named_dynamic_sizes(case: Case) -> None:
    layers = squeezed(case)
    model = build_model(layers)
    operators = [node.op_type for node in model.graph.node if node.op_type != "Constant"]
    assert set(case.operators) <= set(operators)
    assert operators.count("Conv") + operators.count("ConvTranspose") + operators.count("Gemm") == 1
    if len(case.operators) == 1:
        assert operators == list(case.operators)
    attributes = {a.name for node in model.graph.node for a in node.attribute}
    assert "auto_pad" not in attributes
    rank = len(layers["deep.layer"].axes)
    for value, channels in ((model.graph.input[0], "in"), (model.graph.output[0], "out")):
        dims = value.type.tensor_type.shape.dim
        assert dims[0].dim_param == "deep.layer.batch"
        assert dims[1].dim_value == getattr(
            planned(case)[0].merges[0].geometry, f"{channels}_channels"
        )
        assert all(dim.dim_param.startswith("deep.layer.") for dim in dims[2:])
        assert len({dim.dim_param for dim in dims[2:]}) == rank
    assert {tensor.name for tensor in model.graph.initializer} == {
        f"deep.layer.{key}" for key in layers["deep.layer"].state_dict()
    }


def test_asymmetric_pads_are_in_the_conv_as_they_are() -> None:
    (node,) = build_model(squeezed(BY_NAME["2-d, asymmetric pads, dilation"])).graph.node
    assert attribute(node, "pads").ints == [0, 3, 2, 1]
    assert attribute(node, "dilations").ints == [1, 2]


def test_output_padding_keeps_torchs_own_form() -> None:
    (node,) = build_model(squeezed(BY_NAME["output_padding"])).graph.node
    assert attribute(node, "pads").ints == [1, 0, 1, 0]
    assert attribute(node, "output_padding").ints == [1, 2]


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_may_be_wider_than_the_image(mode: str) -> None:
    geometry = Geometry(2, 2, (Axis(3, before=7, after=5, padding_mode=mode),), bias=True)
    layer = random_layer(geometry)
    runnable = OnnxLayers(build_model({"a": layer}))
    for size in (2, 3, 4):
        x = torch.randn(2, 2, size)
        with torch.no_grad():
            assert torch.allclose(runnable["a"](x), layer(x), atol=1e-5)


@pytest.mark.parametrize("opset", range(OLDEST_OPSET, newest_opset() + 1))
def test_every_supported_operator_set_gives_the_same_function(opset: int) -> None:
    names = ("reflect", "circular", "replicate", "crop", "output stride", "linear")
    layers = {name: squeezed(BY_NAME[name])["deep.layer"] for name in names}
    model = build_model(layers, opset=opset)
    reports = check_model(model, layers)
    assert [entry.version for entry in model.opset_import] == [opset]
    assert model.ir_version == helper.find_min_ir_version_for(model.opset_import)
    assert [report.name for report in reports] == list(names)
    assert max(report.worst.share for report in reports) < 0.6


@pytest.mark.parametrize("opset", [OLDEST_OPSET - 1, newest_opset() + 1])
def test_another_operator_set_is_refused_with_the_range(opset: int) -> None:
    with pytest.raises(OutputError, match=rf"opset {opset}: .* {OLDEST_OPSET} to {newest_opset()}"):
        build_model(squeezed(BY_NAME["linear"]), opset=opset)


def test_layers_of_different_dtypes_share_a_model_and_run_alone() -> None:
    names = ("float16", "float64", "bfloat16", "linear")
    layers = {name: squeezed(BY_NAME[name])["deep.layer"] for name in names}
    reports = {report.name: report for report in check_model(build_model(layers), layers)}
    assert [reports[name].dtype for name in names] == ["float16", "float64", "float32", "float32"]
    assert "a copy rounded to float32 was run" in " ".join(reports["float64"].notes)
    assert "stored as bfloat16, exported as float32" in " ".join(reports["bfloat16"].notes)
    assert reports["linear"].notes == reports["float16"].notes == ()
    assert reports["float16"].worst.bound < 0.1 > reports["bfloat16"].worst.bound


def test_no_layers_and_integer_layers_are_refused() -> None:
    layer = squeezed(BY_NAME["linear"])["deep.layer"]
    layer.weight = torch.nn.Parameter(torch.ones(3, 5, dtype=torch.int8), requires_grad=False)
    with pytest.raises(OutputError, match=r"deep.layer: is stored as torch.int8"):
        build_model({"deep.layer": layer})
    with pytest.raises(OutputError, match="no layer"):
        build_model({})


def test_a_grouped_linear_layer_stays_grouped() -> None:
    layer = random_layer(Geometry(6, 4, (), groups=2, bias=True))
    model = build_model({"a": layer})
    check_model(model, {"a": layer})
    x = torch.randn(5, 6)
    halves = zip(x.chunk(2, 1), layer.weight.chunk(2), layer.bias.chunk(2), strict=True)
    expected = torch.cat([torch.nn.functional.linear(*half) for half in halves], 1)
    assert torch.allclose(OnnxLayers(model)["a"](x), expected.detach(), atol=1e-5)
    assert list(model.graph.initializer[0].dims) == [4, 3]


def random_layer(geometry: Geometry, dtype: torch.dtype = torch.float32) -> SqueezedConv:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(geometry.weight_shape, generator=generator).to(dtype)
    bias = torch.randn(geometry.out_channels, generator=generator).to(dtype)
    if geometry.is_transposed:
        weight = transposed_layout(weight, geometry.groups).contiguous()
    recipe = RecipeLayer.of("a", geometry, sources=["x"], border="exact", weights_before=0)
    return SqueezedConv(recipe, weight, bias if geometry.bias else None)


@st.composite
def axes(draw: st.DrawFn, upsampling: bool) -> Axis:
    kernel, dilation = draw(st.integers(1, 4)), draw(st.integers(1, 2))
    before, after = draw(st.integers(-2, 4)), draw(st.integers(-2, 4))
    stride, upsample = draw(st.integers(1, 3)), draw(st.integers(1, 3)) if upsampling else 1
    if upsample > 1:
        reach = dilation * (kernel - 1)
        return Axis(kernel, 1, dilation, min(before, reach), min(after, reach), upsample)
    mode = draw(st.sampled_from(PADDING_MODES))
    return Axis(kernel, stride, dilation, before, after, 1, mode)


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    rank, groups, upsampling = draw(st.integers(0, 2)), draw(st.integers(1, 2)), draw(st.booleans())
    return Geometry(
        groups * draw(st.integers(1, 3)),
        groups * draw(st.integers(1, 3)),
        tuple(draw(axes(upsampling)) for _ in range(rank)),
        groups,
        draw(st.booleans()),
    )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(geometries(), st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
def test_any_layer_is_the_same_function(geometry: Geometry, dtype: torch.dtype) -> None:
    layers = {"a": random_layer(geometry, dtype)}
    (report,) = check_model(build_model(layers), layers)
    assert report.worst.share < 0.6


# Planted faults: the check must see each of them.


def attribute(node: NodeProto, name: str) -> onnx.AttributeProto:
    return next(one for one in node.attribute if one.name == name)


def node_of(model: ModelProto, *operators: str) -> NodeProto:
    return next(node for node in model.graph.node if node.op_type in operators)


def weights(model: ModelProto) -> onnx.TensorProto:
    return model.graph.initializer[0]


def one_ulp(model: ModelProto) -> None:
    values = torch.from_numpy(numpy_helper.to_array(weights(model)).copy())
    flat = values.view(-1).view({2: torch.int16, 4: torch.int32, 8: torch.int64}[values.itemsize])
    flat[len(flat) // 2] += 1
    weights(model).CopyFrom(numpy_helper.from_array(values.numpy(), weights(model).name))


def shifted_pads(model: ModelProto) -> None:
    """One sample more before, one less after: the output keeps its size."""
    pads = attribute(node_of(model, "Conv", "ConvTranspose"), "pads").ints
    source, target = (0, len(pads) // 2) if pads[0] > 0 else (len(pads) // 2, 0)
    pads[source] -= 1
    pads[target] += 1


def one_pad_more(model: ModelProto) -> None:
    attribute(node_of(model, "Conv", "ConvTranspose"), "pads").ints[0] += 1


def other_stride(model: ModelProto) -> None:
    attribute(node_of(model, "Conv", "ConvTranspose"), "strides").ints[0] += 1


def other_dilation(model: ModelProto) -> None:
    attribute(node_of(model, "Conv", "ConvTranspose"), "dilations").ints[0] += 1


def no_bias(model: ModelProto) -> None:
    del node_of(model, "Conv", "ConvTranspose", "Gemm").input[2]


def other_constant(index: int, change: int) -> Callable[[ModelProto], None]:
    def fault(model: ModelProto) -> None:
        constants = [node for node in model.graph.node if node.op_type == "Constant"]
        value = constants[index].attribute[0]
        if value.name == "value_int":
            value.i += change
        else:
            value.ints[-1] += change

    return fault


def other_operator(was: str, new: str) -> Callable[[ModelProto], None]:
    def fault(model: ModelProto) -> None:
        node_of(model, was).op_type = new

    return fault


def no_output(model: ModelProto) -> None:
    model.graph.output[0].name = "y"
    model.graph.node[-1].output[:] = ["y"]


def half_a_graph(model: ModelProto) -> None:
    del model.graph.node[0]


def wrong_type(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE


FAULTS: list[tuple[str, Callable[[ModelProto], None], str]] = [
    *((name, one_ulp, r"deep.layer.weight holds .* was needed") for name in
      ("3-d", "linear", "float16", "bfloat16", "float64", "output stride")),
    *((name, shifted_pads, r"differ by .* where at most .* is rounding") for name in
      ("3-d", "2-d, asymmetric pads, dilation", "depthwise", "float16", "bfloat16", "float64",
       "transposed")),
    ("3-d", one_pad_more, r"differ by"),
    ("transposed", one_pad_more, r"fails on a dense input of 1x2"),
    ("1-d, stride twice", other_stride, r"differ by|gives an output of shape"),
    ("few outputs", other_stride, r"differ by|gives an output of shape"),
    ("transposed", other_stride, r"differ by|gives an output of shape"),
    ("2-d, asymmetric pads, dilation", other_dilation, r"fails on a dense input of 4x3"),
    ("crop", other_constant(0, -1), r"fails on|gives an output of shape"),
    ("reflect", other_constant(0, 2), r"fails on|gives an output of shape|differ"),
    ("circular", other_constant(2, 1), r"gives an output of shape|differ"),
    ("reflect", other_operator("Min", "Max"), r"fails on|differ"),
    ("circular beside zeros", other_operator("Mod", "Min"), r"fails on|differ"),
    ("output stride", other_constant(3, 1), r"gives an output of shape"),
    ("groups 4 and 2", no_bias, r"deep.layer.bias is missing"),
    ("linear", no_bias, r"deep.layer.bias is missing"),
    ("linear", no_output, r"no layer of a squeezed file"),
    ("output stride", half_a_graph, r"not well-formed"),
    ("3-d", wrong_type, r"not well-formed"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "fault", "said"), FAULTS)
def test_a_planted_fault_is_seen(name: str, fault: Callable[[ModelProto], None], said: str) -> None:
    layers = squeezed(BY_NAME[name])
    model = build_model(layers)
    check_model(model, layers)
    fault(model)
    with pytest.raises(VerificationError, match=said):
        check_model(model, layers, where="model.onnx")


def test_every_failure_is_told_with_its_layer_size_error_and_bound() -> None:
    layers = {name: squeezed(BY_NAME["3-d"])["deep.layer"] for name in ("one", "two", "three")}
    model = build_model(layers)
    for name in ("one", "three"):
        node = next(node for node in model.graph.node if node.output[0] == f"{name}.output")
        pads = attribute(node, "pads").ints
        pads[0], pads[3] = pads[3], pads[0]
    with pytest.raises(VerificationError) as caught:
        check_model(model, layers, where="model.onnx")
    first, second = caught.value.problems
    assert first.startswith("model.onnx: one: onnxruntime and torch differ by ")
    assert second.startswith("model.onnx: three: ")
    assert " where at most " in first
    assert " input of " in first
    assert "x" in first.split(" input of ")[1].split(",")[0]


def test_a_layer_that_the_model_lacks_is_a_failure() -> None:
    layer = squeezed(BY_NAME["linear"])["deep.layer"]
    with pytest.raises(VerificationError, match=r"two: is not in the model"):
        check_model(build_model({"one": layer}), {"one": layer, "two": layer})


def test_weights_that_are_no_numbers_fail_where_they_are_compared() -> None:
    layers = squeezed(BY_NAME["linear"])
    with torch.no_grad():
        layers["deep.layer"].weight[1, 2] = float("nan")
    with pytest.raises(VerificationError, match="differ by inf"):
        check_model(build_model(layers), layers)


def test_outputs_beyond_the_range_of_float16_are_not_held_against_it() -> None:
    layer = random_layer(Geometry(64, 2, (Axis(3),)), torch.float16)
    with torch.no_grad():
        layer.weight.mul_(20000)
    (report,) = check_model(build_model({"a": layer}), {"a": layer})
    assert 0 < report.worst.share < 0.6
    x = torch.full((1, 64, 3), 1.0)
    assert not bool(OnnxLayers(build_model({"a": layer}))["a"](x * 100).isfinite().all())


def test_a_tensor_of_another_dtype_is_rounded_to_the_layers() -> None:
    layers = squeezed(BY_NAME["linear"])
    runnable = OnnxLayers(build_model(layers))
    x = torch.randn(2, 5, dtype=torch.float64)
    y: Tensor = runnable["deep.layer"](x)
    assert y.dtype == runnable["deep.layer"].dtype == torch.float32
    assert torch.equal(y, runnable["deep.layer"](x.float()))
