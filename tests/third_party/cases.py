"""What a scan has to find in each network, read off its package's code by hand.

A region is named by the modules that hold its layers' tensors, in the order in which they run; a
skip is "identity". Regions of one layer are left out.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import nn

from . import factories

Names = tuple[str, ...]


@dataclass(frozen=True)
class Left:
    """Two layers that look like a pair, and the kind of reason why they are none."""

    first: str
    second: str
    kind: str


@dataclass(frozen=True)
class Case:
    """A network, the shape of its input without the batch, and what is to be found in it.

    `weights` are the stored numbers of the whole network, before and after squeezing it with
    `border="exact"`.
    """

    name: str
    factory: Callable[[], nn.Module]
    shape: tuple[int, ...]
    regions: tuple[Names, ...]
    left: tuple[Left, ...]
    weights: tuple[int, int]


def _under(prefix: str, *names: str) -> Names:
    return tuple(f"{prefix}.{name}" for name in names)


def _autoencoder_kl() -> Case:
    down, up = "encoder.down_blocks.1.resnets.0", "decoder.up_blocks.1.resnets.0"
    return Case(
        "diffusers AutoencoderKL",
        factories.autoencoder_kl,
        (3, 32, 32),
        (("encoder.conv_out", "quant_conv"), ("post_quant_conv", "decoder.conv_in")),
        (
            Left("post_quant_conv", "decoder.conv_in", "border"),
            Left(f"{down}.conv1", f"{down}.conv2", "not linear"),
            Left(
                "encoder.down_blocks.0.downsamplers.0.conv", f"{down}.conv_shortcut", "not linear"
            ),
            Left("decoder.up_blocks.0.upsamplers.0.conv", f"{up}.conv_shortcut", "not linear"),
        ),
        (167_959, 167_887),
    )


RESNET = "base_model.model.resnet"
LORA = (
    f"{RESNET}.embedder.embedder",
    f"{RESNET}.encoder.stages.0.layers.0.layer.0",
    f"{RESNET}.encoder.stages.0.layers.0.layer.1",
    f"{RESNET}.encoder.stages.1.layers.0.layer.0",
    f"{RESNET}.encoder.stages.1.layers.0.layer.1",
    f"{RESNET}.encoder.stages.1.layers.0.shortcut",
)
LORA_LAYERS = (
    "convolution.base_layer",
    "convolution.lora_A.default",
    "convolution.lora_B.default",
    "normalization",
)


def _conv_lora() -> Case:
    block = f"{RESNET}.encoder.stages.1.layers.0.layer"
    return Case(
        "peft LoRA on transformers ResNet",
        factories.conv_lora,
        (3, 32, 32),
        tuple(_under(place, *LORA_LAYERS) for place in LORA),
        (
            Left(f"{block}.0.normalization", f"{block}.1.convolution.base_layer", "activation"),
            Left(f"{block}.0.normalization", f"{block}.1.convolution.lora_A.default", "activation"),
        ),
        (26_145, 21_605),
    )


def _lite_regions() -> Iterator[Names]:
    yield "_conv_stem", "_bn0"
    yield "_blocks.0._depthwise_conv", "_blocks.0._bn1"
    first = _under("_blocks.0", "_project_conv", "_bn2")
    yield (*first, *_under("_blocks.1", "_expand_conv", "_bn0"))
    for index in range(1, 16):
        block = f"_blocks.{index}"
        if index > 1:
            yield _under(block, "_expand_conv", "_bn0")
        yield _under(block, "_depthwise_conv", "_bn1")
        project = _under(block, "_project_conv", "_bn2")
        yield project if index < 15 else (*project, "_conv_head", "_bn1")


def _efficientnet_lite() -> Case:
    read_twice = (1, 3, 5, 8, 11)
    return Case(
        "efficientnet-lite-pytorch Lite0",
        factories.efficientnet_lite,
        (3, 224, 224),
        tuple(_lite_regions()),
        (
            Left("_bn0", "_blocks.0._depthwise_conv", "activation"),
            *(
                Left(f"_blocks.{i}._bn2", f"_blocks.{i + 1}._expand_conv", "read elsewhere")
                for i in read_twice
            ),
            Left("_blocks.0._bn2", "_blocks.1._expand_conv", "growth"),
            Left("_blocks.15._bn2", "_conv_head", "growth"),
        ),
        (4_694_024, 4_631_000),
    )


TEXT_NET_BRANCHES = (
    ("0.stage.0", ("main", "vertical", "horizontal"), True),
    ("0.stage.1", ("main", "vertical", "horizontal"), False),
    ("1.stage.0", ("main", "vertical"), False),
    ("1.stage.1", ("main", "horizontal"), True),
    ("2.stage.0", ("main", "vertical", "horizontal"), False),
    ("3.stage.0", ("main", "vertical", "horizontal"), False),
)
"""Of a kernel of one row or column one branch less; the input where neither size nor width change.

A kernel 1x3 has the branch that is called vertical, of 1x1; a kernel 3x1 the horizontal one.
"""


def _text_net() -> Case:
    place = "textnet.encoder.stages"
    regions = [
        (
            *(f"{place}.{at}.{b}_{kind}" for b in branches for kind in ("conv", "batch_norm")),
            *([f"{place}.{at}.rbr_identity"] if skips else []),
        )
        for at, branches, skips in TEXT_NET_BRANCHES
    ]
    return Case(
        "transformers TextNet",
        factories.text_net,
        (3, 64, 64),
        (("textnet.stem.conv", "textnet.stem.batch_norm"), *regions),
        (
            Left("textnet.stem.batch_norm", f"{place}.0.stage.0.main_conv", "activation"),
            Left(f"{place}.0.stage.0.rbr_identity", f"{place}.0.stage.1.main_conv", "activation"),
        ),
        (9_053, 5_273),
    )


def _rep_layer(place: str, *, skips: bool, small: bool) -> Names:
    """A sum of branches, then its factor and summand."""
    branches = ["conv_small_symmetric"] if small else []
    branches += ["conv_symmetric.0", "conv_symmetric.1"]
    layers = [f"{b}.{leaf}" for b in branches for leaf in ("convolution", "normalization")]
    return _under(place, *(["identity"] if skips else []), *layers, "lab")


LCNET_SKIPS = ((True, True), (False, False), (False, True), (True, True), (True, False))
"""For each block, whether its depthwise and its pointwise sum have a branch for the input."""
LCNET_ACTIVE = (True, False, False, True, True)
"""Whether there is an activation behind the depthwise sum: not at stride 2."""
LCNET_GATES = (False, False, True, False, True)
"""Whether squeeze and excitation stands between the two sums."""


def _lcnet_regions() -> Iterator[Names]:
    yield "encoder.convolution.convolution", "encoder.convolution.normalization"
    blocks = zip(LCNET_SKIPS, LCNET_ACTIVE, LCNET_GATES, strict=True)
    for index, (skips, active, gate) in enumerate(blocks):
        place = f"encoder.blocks.{index}.layers.0"
        depthwise, pointwise = f"{place}.depthwise_convolution", f"{place}.pointwise_convolution"
        first = _rep_layer(depthwise, skips=skips[0], small=True)
        second = _rep_layer(pointwise, skips=skips[1], small=False)
        if active or gate:
            yield first
            yield (f"{depthwise}.act.lab", *second) if active and not gate else second
        else:
            yield (*first, *second)


def _lcnet() -> Case:
    block = "encoder.blocks.0.layers.0"
    return Case(
        "transformers PP-LCNetV3",
        factories.lcnet,
        (3, 64, 64),
        tuple(_lcnet_regions()),
        (
            Left(
                "encoder.convolution.normalization",
                f"{block}.depthwise_convolution.conv_symmetric.0.convolution",
                "hook",
            ),
        ),
        (12_524, 5_604),
    )


def _depth_anything() -> Case:
    assemble, fuse = "neck.reassemble_stage.layers", "neck.fusion_stage.layers"
    layers = [f"backbone.encoder.layer.{i}" for i in range(4)]
    return Case(
        "transformers Depth Anything",
        factories.depth_anything,
        (3, 70, 70),
        (
            (f"{assemble}.0.projection", f"{assemble}.0.resize", "neck.convs.0"),
            (f"{assemble}.1.projection", f"{assemble}.1.resize", "neck.convs.1"),
            (f"{assemble}.2.projection", "neck.convs.2"),
            (f"{assemble}.3.projection", f"{assemble}.3.resize", "neck.convs.3"),
            (f"{fuse}.3.projection", "head.conv1"),
            *((f"{layer}.mlp.fc2", f"{layer}.layer_scale2") for layer in layers),
        ),
        (
            Left(f"{assemble}.0.projection", f"{assemble}.0.resize", "not one convolution"),
            Left(f"{assemble}.0.resize", "neck.convs.0", "growth"),
            Left(f"{assemble}.2.projection", "neck.convs.2", "border"),
            Left(f"{assemble}.3.resize", "neck.convs.3", "growth"),
            Left(f"{fuse}.3.projection", "head.conv1", "border"),
            Left("head.conv1", "head.conv2", "not linear"),
            Left("head.conv2", "head.conv3", "activation"),
        ),
        (136_577, 136_449),
    )


def _efficient_loftr() -> Case:
    pair = ("conv1.conv", "conv1.norm", "conv2.conv", "conv2.norm")
    return Case(
        "transformers EfficientLoFTR backbone",
        factories.efficient_loftr,
        (1, 32, 32),
        (
            _under("stages.0.blocks.0", *pair),
            _under("stages.1.blocks.0", *pair),
            (*_under("stages.1.blocks.1", *pair), "stages.1.blocks.1.identity"),
        ),
        (Left("stages.0.blocks.0.conv2.norm", "stages.1.blocks.0.conv1.conv", "activation"),),
        (4_304, 3_568),
    )


UNET_NORMED = (
    "model.0.conv.unit0",
    "model.1.submodule.0.conv.unit0",
    "model.1.submodule.1.submodule.conv.unit0",
    "model.1.submodule.2.0",
    "model.1.submodule.2.1.conv.unit0",
    "model.2.0",
)


def _unet_3d() -> Case:
    last = "model.2.1.conv.unit0.conv"
    return Case(
        "monai UNet, 3-d",
        factories.unet_3d,
        (1, 16, 16, 16),
        (*(_under(place, "conv", "adn.N") for place in UNET_NORMED), (last, "identity")),
        (
            Left("model.2.0.adn.N", last, "activation"),
            Left(
                "model.1.submodule.2.0.adn.N", "model.1.submodule.2.1.conv.unit0.conv", "activation"
            ),
        ),
        (24_190, 23_958),
    )


def _autoencoder_kl_1d() -> Case:
    mean, decode = "autoencoder.quant_conv_mu.conv", "autoencoder.decoder.blocks.0.conv"
    return Case(
        "monai AutoencoderKL, 1-d",
        factories.autoencoder_kl_1d,
        (1, 64),
        ((mean, "autoencoder.post_quant_conv.conv", decode),),
        (
            Left("autoencoder.encoder.blocks.5.conv", mean, "read elsewhere"),
            Left("autoencoder.post_quant_conv.conv", decode, "border"),
        ),
        (5_513, 5_493),
    )


RESTORMER_BLOCKS = ("encoder_levels.0.0", "latent.0", "decoder_levels.0.0", "refinement.0")


def _restormer() -> Case:
    pairs = tuple(
        _under(place, *pair)
        for place in RESTORMER_BLOCKS
        for pair in (
            ("attn.qkv.conv", "attn.qkv_dwconv.conv"),
            ("ffn.project_in.conv", "ffn.dwconv.conv"),
        )
    )
    return Case(
        "monai Restormer",
        factories.restormer,
        (3, 16, 16),
        pairs,
        tuple(Left(first, second, "growth") for first, second in pairs),
        (20_886, 20_886),
    )


def _audio_codec() -> Case:
    return Case(
        "transformers DAC",
        factories.audio_codec,
        (1, 64),
        (),
        (Left("encoder.conv2", "quantizer.quantizers.0.in_proj", "read elsewhere"),),
        (23_862, 23_862),
    )


CASES = (
    _autoencoder_kl(),
    _conv_lora(),
    _efficientnet_lite(),
    _text_net(),
    _lcnet(),
    _depth_anything(),
    _efficient_loftr(),
    _unet_3d(),
    _autoencoder_kl_1d(),
    _restormer(),
    _audio_codec(),
)
