"""Each kind of layer as a `Conv` is the layer that torch runs, number for number."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

from convsqueeze import layers
from convsqueeze.algebra import Conv
from convsqueeze.algebra.apply import apply_linear
from convsqueeze.errors import GeometryError

from .drawn import MODES, channel_counts, law, per_axis, ranks, seeds, sides, whole

pytestmark = pytest.mark.quick

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CONV_MODULE = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
AVG_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def drawn_size(data: st.DataObject, rank: int) -> tuple[int, ...]:
    return data.draw(per_axis(rank, st.integers(1, 12 if rank < 3 else 6)))


def torch_or_none(run: Any, *args: Any, **kwargs: Any) -> Tensor | None:
    """What torch gives, None where it refuses."""
    try:
        return run(*args, **kwargs)
    except RuntimeError:
        return None


def assert_same(conv: Conv, x: Tensor, expected: Tensor | None) -> None:
    """`conv` takes what torch takes and gives what torch gives."""
    takes = conv.geometry.accepts(x.shape[2:])
    assert takes == (expected is not None and expected.numel() > 0)
    if takes:
        assert torch.equal(conv(x), expected)
        assert conv.geometry.output_size(x.shape[2:]) == tuple(expected.shape[2:])


@law(150)
@given(st.data(), ranks, channel_counts(), st.sampled_from(MODES), st.booleans())
def test_a_convolution_with_its_own_padding_on_each_side(
    data: st.DataObject, rank: int, channels: tuple[int, int, int], mode: str, has_bias: bool
) -> None:
    given_channels, out, groups = channels
    kernel = data.draw(per_axis(rank, st.integers(1, 4 if rank < 3 else 3)))
    pairs = data.draw(sides(rank, 3))
    weight = whole(1, out, given_channels // groups, *kernel)
    bias = whole(2, out) if has_bias else None
    steps = {
        "stride": data.draw(per_axis(rank, st.integers(1, 3))),
        "dilation": data.draw(per_axis(rank, st.integers(1, 3))),
        "groups": groups,
    }
    x = whole(data.draw(seeds), 2, given_channels, *drawn_size(data, rank))
    amounts = [amount for pair in reversed(pairs) for amount in pair]
    padded = torch_or_none(F.pad, x, amounts, mode="constant" if mode == "zeros" else mode)
    expected = None if padded is None else torch_or_none(CONV[rank], padded, weight, bias, **steps)
    conv = layers.convolution(weight, bias, padding=pairs, padding_mode=mode, **steps)
    assert_same(conv, x, expected)


@law(120)
@given(st.data(), ranks, channel_counts(), st.sampled_from(MODES), st.booleans())
def test_a_convolution_as_torch_builds_it(
    data: st.DataObject, rank: int, channels: tuple[int, int, int], mode: str, has_bias: bool
) -> None:
    """`nn.Conv` itself: `same`, `valid`, an int or one number an axis, in every padding mode."""
    given_channels, out, groups = channels
    widths = per_axis(rank, st.integers(0, 3))
    padding = data.draw(st.one_of(st.sampled_from(("same", "valid", 0, 1, 2)), widths))
    steps: dict[str, Any] = {
        "stride": 1 if padding == "same" else data.draw(st.integers(1, 3)),
        "dilation": data.draw(per_axis(rank, st.integers(1, 3))),
        "groups": groups,
        "padding": padding,
        "padding_mode": mode,
    }
    kernel = data.draw(per_axis(rank, st.integers(1, 4 if rank < 3 else 3)))
    module = CONV_MODULE[rank](
        given_channels, out, kernel, bias=has_bias, dtype=torch.float64, **steps
    ).requires_grad_(False)
    module.weight.copy_(whole(1, *module.weight.shape))
    if has_bias:
        module.bias.copy_(whole(2, out))
    x = whole(data.draw(seeds), 2, given_channels, *drawn_size(data, rank))
    conv = layers.convolution(module.weight, module.bias, **steps)
    assert_same(conv, x, torch_or_none(module, x))


@law(120)
@given(st.data(), ranks, channel_counts(), st.booleans())
def test_a_transposed_convolution(
    data: st.DataObject, rank: int, channels: tuple[int, int, int], has_bias: bool
) -> None:
    given_channels, out, groups = channels
    kernel = data.draw(per_axis(rank, st.integers(1, 4 if rank < 3 else 2)))
    stride = data.draw(per_axis(rank, st.integers(1, 3)))
    dilation = data.draw(per_axis(rank, st.integers(1, 3 if rank < 3 else 2)))
    padding = data.draw(st.one_of(st.integers(0, 3), per_axis(rank, st.integers(0, 3))))
    extras = tuple(
        data.draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)
    )
    weight = whole(1, given_channels, out // groups, *kernel)
    bias = whole(2, out) if has_bias else None
    x = whole(data.draw(seeds), 2, given_channels, *drawn_size(data, rank))
    steps = {"stride": stride, "padding": padding, "output_padding": extras, "groups": groups}
    expected = torch_or_none(TRANSPOSED[rank], x, weight, bias, dilation=dilation, **steps)
    assert_same(layers.transposed(weight, bias, dilation=dilation, **steps), x, expected)


@law(40)
@given(st.integers(0, 3), channel_counts(), st.booleans(), seeds)
def test_a_linear_layer(
    rank: int, channels: tuple[int, int, int], has_bias: bool, seed: int
) -> None:
    given_channels, out, _ = channels
    weight = whole(seed, out, given_channels)
    bias = whole(seed + 1, out) if has_bias else None
    x = whole(seed + 2, 2, given_channels, *(3, 2, 4)[:rank])
    expected = F.linear(x.movedim(1, -1), weight, bias).movedim(-1, 1)
    assert torch.equal(layers.linear(weight, bias, rank=rank)(x), expected)


@law(40)
@given(channel_counts(), st.integers(0, 2), st.booleans(), seeds)
def test_a_linear_layer_in_groups(
    channels: tuple[int, int, int], more: int, has_bias: bool, seed: int
) -> None:
    """Channels come last, whatever comes before them; each group is a linear layer of its own."""
    given_channels, out, groups = channels
    weight = whole(seed, out, given_channels // groups)
    bias = whole(seed + 1, out) if has_bias else None
    x = whole(seed + 2, *(3, 2, 4)[: more + 1], given_channels)
    expected = torch.cat(
        [
            F.linear(part, own)
            for part, own in zip(x.chunk(groups, -1), weight.chunk(groups), strict=True)
        ],
        -1,
    )
    expected = expected if bias is None else expected + bias
    assert torch.equal(apply_linear(x, weight, bias, groups), expected)
    assert torch.equal(Conv(weight, bias, (), groups)(x), expected)


@law(60)
@given(st.integers(0, 3), st.integers(1, 6), st.booleans(), st.booleans(), seeds)
def test_a_batch_norm_in_eval_mode(
    rank: int, channels: int, has_weight: bool, has_bias: bool, seed: int
) -> None:
    """Variances that are zero included, and an `eps` that is not torch's default."""
    generator = torch.Generator().manual_seed(seed)
    mean, weight, bias = torch.randn(3, channels, generator=generator, dtype=torch.float64)
    variance = torch.rand(channels, generator=generator, dtype=torch.float64)
    variance[seed % channels] = 0.0
    x = torch.randn(2, channels, *(3, 2, 4)[:rank], generator=generator, dtype=torch.float64)
    weight, bias = weight if has_weight else None, bias if has_bias else None
    expected = F.batch_norm(x, mean, variance, weight, bias, training=False, eps=1e-3)
    conv = layers.batch_norm(mean, variance, weight, bias, eps=1e-3, rank=rank)
    torch.testing.assert_close(conv(x), expected, rtol=1e-13, atol=1e-13)
    assert conv.groups == channels
    assert conv.geometry.bias


@law(40)
@given(st.integers(0, 3), st.integers(1, 6), st.sampled_from(("one", "each", "map", None)), seeds)
def test_a_scale(rank: int, channels: int, spread: str | None, seed: int) -> None:
    shapes = {"one": (), "each": (channels,), "map": (channels, *(1,) * rank)}
    weight = None if spread is None else whole(seed, *shapes[spread])
    bias = whole(seed + 1, channels) if seed % 2 else None
    x = whole(seed + 2, 2, channels, *(3, 2, 4)[:rank])
    shape = (-1, *(1,) * rank)
    expected = 0.5 * x * (1 if weight is None else weight.reshape(shape))
    expected = expected if bias is None else expected + bias.reshape(shape)
    shift = seed % 5 - 2
    expected = expected + shift
    conv = layers.scale(weight, bias, channels=channels, factor=0.5, shift=shift, rank=rank)
    assert torch.equal(conv(x), expected)
    assert conv.geometry.bias == (bias is not None or shift != 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_scale_is_multiplied_out_in_float64(dtype: torch.dtype) -> None:
    weight = torch.tensor([1.0, 3.0], dtype=dtype)
    conv = layers.scale(weight, weight, channels=2, factor=0.1, shift=1e-9, rank=1)
    assert conv.weight.dtype == conv.bias.dtype == torch.float64
    assert conv.weight.flatten().tolist() == [0.1, 3 * 0.1]
    assert conv.bias.tolist() == [1.0 + 1e-9, 3.0 + 1e-9]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_batch_norm_is_computed_in_float64(dtype: torch.dtype) -> None:
    mean, variance, weight, bias = torch.tensor(
        [[1.0, -3.0], [2.0, 5.0], [7.0, 0.5], [1.0, -1.0]], dtype=dtype
    )
    low = layers.batch_norm(mean, variance, weight, bias, eps=1e-3, rank=2)
    stored = (one.double() for one in (mean, variance, weight, bias))
    high = layers.batch_norm(*stored, eps=1e-3, rank=2)
    assert low.weight.dtype == low.bias.dtype == torch.float64
    assert torch.equal(low.weight, high.weight)
    assert torch.equal(low.bias, high.bias)


@law(60)
@given(st.data(), ranks, st.integers(1, 4))
def test_an_average_pool(data: st.DataObject, rank: int, channels: int) -> None:
    kernel = data.draw(per_axis(rank, st.integers(1, 4)))
    padding = tuple(data.draw(st.integers(0, k // 2)) for k in kernel)
    stride = data.draw(st.one_of(st.none(), per_axis(rank, st.integers(1, 3))))
    x = whole(data.draw(seeds), 2, channels, *drawn_size(data, rank))
    expected = torch_or_none(AVG_POOL[rank], x, kernel, stride, padding)
    conv = layers.average_pool(channels, kernel_size=kernel, stride=stride, padding=padding)
    takes = conv.geometry.accepts(x.shape[2:])
    smaller = any(n < k for n, k in zip(x.shape[2:], kernel, strict=True))
    stricter = rank == 3 and smaller  # torch's 3-d pool looks at the image without its padding
    assert stricter or takes == (expected is not None)
    if expected is not None:
        torch.testing.assert_close(conv(x), expected, rtol=1e-14, atol=1e-13)
    assert conv.groups == channels


@law(150)
@given(st.data(), ranks, st.sampled_from(MODES))
def test_padding_alone_and_cropping(data: st.DataObject, rank: int, mode: str) -> None:
    """`F.pad` in every mode and of either sign; what is not one operator is refused."""
    amounts = st.integers(-2, 3)
    pairs = data.draw(st.tuples(*[st.tuples(amounts, amounts)] * rank))
    x = whole(data.draw(seeds), 2, 2, *drawn_size(data, rank))
    flat = [amount for pair in reversed(pairs) for amount in pair]
    expected = torch_or_none(F.pad, x, flat, mode="constant" if mode == "zeros" else mode)
    try:
        conv = layers.pad(2, padding=pairs, rank=rank, padding_mode=mode)
    except GeometryError:
        assert mode == "circular"
        assert any(min(pair) < 0 < max(pair) for pair in pairs)
        return
    assume(expected is not None and expected.numel() > 0)
    left = [
        n + min(low, 0) + min(high, 0) for n, (low, high) in zip(x.shape[2:], pairs, strict=True)
    ]
    assume(all(max(pair) <= n for pair, n in zip(pairs, left, strict=True)))
    assert torch.equal(conv(x), expected)


def test_circular_padding_on_one_side_and_cropping_on_the_other() -> None:
    """torch crops first and then wraps what is left: `[2, -1]` of 0 1 2 3 4 is 2 3 0 1 2 3."""
    x = torch.arange(5.0, dtype=torch.float64).view(1, 1, 5)
    expected = F.pad(x, (2, -1), mode="circular")
    assert expected.flatten().tolist() == [2, 3, 0, 1, 2, 3]
    try:
        conv = layers.pad(1, padding=[[2, -1]], rank=1, padding_mode="circular")
    except GeometryError:
        return
    assert torch.equal(conv(x), expected)


def test_a_crop_wider_than_the_image_beside_padding() -> None:
    """Two zeros before, the only sample away: `F.pad` takes it, and so must a strided merge."""
    pad = layers.pad(1, padding=[[2, -1]], rank=1)
    x = whole(0, 1, 1, 1)
    assert torch.equal(pad(x), F.pad(x, (2, -1)))
    step = layers.convolution(whole(1, 1, 1, 1), stride=3)
    assert torch.equal((pad @ step)(x), pad(step(x)))


def test_a_crop_wider_than_the_image_before_an_upsampling() -> None:
    pad = layers.pad(1, padding=[[1, -1]], rank=1)
    up = layers.transposed(whole(0, 1, 1, 1), stride=2)
    x = whole(1, 1, 1, 1)
    assert torch.equal((up @ pad)(x), up(pad(x)))


@pytest.mark.parametrize("rank", [0, 1, 2, 3])
def test_the_identity(rank: int) -> None:
    x = whole(0, 2, 3, *(3, 2, 4)[:rank])
    assert torch.equal(layers.identity(3, rank=rank)(x), x)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: layers.convolution(whole(0, 2, 2, 3), stride=2, padding="same"), "stride 1"),
        (
            lambda: layers.convolution(whole(0, 2, 2, 3, 3), stride=(1, 2), padding="same"),
            "stride 1",
        ),
        (lambda: layers.convolution(whole(0, 2, 2, 3), padding=-1), "negative"),
        (lambda: layers.convolution(whole(0, 2, 2, 3), padding=[[1, -1]]), "negative"),
        (lambda: layers.convolution(whole(0, 2, 2, 3), stride=(1, 1)), "2 numbers for 1 axes"),
        (lambda: layers.convolution(whole(0, 2, 2, 3), padding=[[1, 1, 1]]), "before, after"),
        (
            lambda: layers.convolution(whole(0, 2, 2, 3, 3), padding=[[1, 1], [1, 1, 1]]),
            "before, after",
        ),
        (lambda: layers.convolution(whole(0, 2, 2)), "3, 4 or 5 dimensions"),
        (lambda: layers.convolution(whole(0, 2, 2, 1, 1, 1, 1)), "3, 4 or 5 dimensions"),
        (lambda: layers.convolution(whole(0, 3, 1, 3), groups=2), "do not divide"),
        (lambda: layers.convolution(whole(0, 2, 2, 3), whole(0, 3)), "bias of shape"),
        (lambda: layers.convolution(whole(0, 2, 2, 3), stride=0), "at least 1"),
        (lambda: layers.pad(2, padding=1, rank=1, padding_mode="mirror"), "none of"),
        (lambda: layers.transposed(whole(0, 2, 2, 3), stride=2, output_padding=2), "smaller than"),
        (
            lambda: layers.transposed(whole(0, 2, 2, 3, 3), stride=2, output_padding=(0, 2)),
            "smaller than",
        ),
        (lambda: layers.transposed(whole(0, 2, 2, 3), output_padding=-1), "smaller than"),
        (lambda: layers.transposed(whole(0, 2, 2, 3), padding="same"), "ordinary convolutions"),
        (lambda: layers.transposed(whole(0, 3, 2, 3), groups=2), "do not divide"),
        (lambda: layers.transposed(whole(0, 2, 2, 3), groups=0), "do not divide"),
        (lambda: layers.convolution(whole(0, 2, 2, 3), groups=0), "do not divide"),
        (lambda: layers.average_pool(2, kernel_size=(3,), padding=2), "at most half"),
        (lambda: layers.average_pool(2, kernel_size=(3,), padding=[[0, 2]]), "at most half"),
        (lambda: layers.average_pool(2, kernel_size=(3, 5), padding=2), "at most half"),
        (lambda: layers.scale(whole(0, 3), channels=2, rank=1), "does not scale 2 channels"),
        (lambda: layers.scale(whole(0, 2, 2), channels=4, rank=1), "does not scale 4 channels"),
        (
            lambda: layers.batch_norm(*whole(0, 2, 4), whole(0, 3), eps=0.1, rank=1),
            r"weight of shape \(3,\) is not one number for each of 4",
        ),
        (lambda: layers.linear(whole(0, 3, 2, 1)), "2 dimensions"),
    ],
)
def test_a_layer_that_torch_would_not_build(call: Any, told: str) -> None:
    with pytest.raises(GeometryError, match=told):
        call()


def test_defaults_are_torchs_own() -> None:
    x = torch.randn(1, 4, 9, dtype=torch.float64)
    weight = torch.randn(4, 4, 3, dtype=torch.float64)
    scales = torch.randn(4, dtype=torch.float64)
    assert torch.allclose(layers.convolution(weight)(x), F.conv1d(x, weight))
    assert torch.allclose(layers.transposed(weight)(x), F.conv_transpose1d(x, weight))
    pool = layers.average_pool(4, kernel_size=(3,))
    assert torch.allclose(pool(x), F.avg_pool1d(x, 3))
    scale = layers.scale(scales, None, channels=4, rank=1)
    assert torch.allclose(scale(x), x * scales.view(1, -1, 1))
