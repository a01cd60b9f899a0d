"""The manifests of the published networks, as a user writes them.

Networks whose blocks differ in their groups are written out block by block: a placeholder stands
for a name, not for a number.
"""

from collections.abc import Sequence


def pair(first: str, second: str) -> str:
    return f"version: 1\npairs:\n  - first: {first}\n    second: {second}\n"


SESR_BLOCK = pair('{name: "{i}.conv_expand", padding: 2}', '{name: "{i}.conv_squeeze"}')

SESR_RESIDUAL_BLOCK = """
version: 1
pairs:
  - into: "{i}"
    sum:
      - chain: [{name: "{i}.conv_expand", padding: 1}, {name: "{i}.conv_squeeze"}]
      - {type: identity}
"""

SESR = """
version: 1
pairs:
  - first: {name: head.conv_expand, padding: 2}
    second: {name: head.conv_squeeze}
  - into: "body.{i}"
    sum:
      - chain: [{name: "body.{i}.conv_expand", padding: 1}, {name: "body.{i}.conv_squeeze"}]
      - {type: identity}
  - first: {name: tail.conv_expand, padding: 2}
    second: {name: tail.conv_squeeze}
"""

SPAN = """
version: 1
pairs:
  - into: "block_{i}.{conv}.eval_conv"
    drop: ["block_{i}.{conv}.eval_conv"]
    sum:
      - chain:
          - {type: pad, padding: 1}
          - {name: "block_{i}.{conv}.conv.0"}
          - {name: "block_{i}.{conv}.conv.1"}
          - {name: "block_{i}.{conv}.conv.2"}
      - {name: "block_{i}.{conv}.sk"}
"""


def ecbsr(blocks: int, channels: int) -> str:
    widths = [*[channels] * (blocks + 1), 4]
    return "version: 1\npairs:" + "".join(_edge_block(i, width) for i, width in enumerate(widths))


def _edge_block(index: int, channels: int) -> str:
    name = f"backbone.{index}"
    edges = "".join(
        f"""
      - chain:
          - {{type: pad, padding: 1}}
          - {{weight: {name}.conv1x1_{edge}.k0, bias: {name}.conv1x1_{edge}.b0}}
          - {{weight: {name}.conv1x1_{edge}.mask, groups: {channels}}}
          - {{type: scale, weight: {name}.conv1x1_{edge}.scale,
             bias: {name}.conv1x1_{edge}.bias}}"""
        for edge in ("sbx", "sby", "lpl")
    )
    return f"""
  - into: {name}.conv3x3
    sum:
      - {{name: {name}.conv3x3, padding: 1}}
      - chain:
          - {{type: pad, padding: 1}}
          - {{weight: {name}.conv1x1_3x3.k0, bias: {name}.conv1x1_3x3.b0}}
          - {{weight: {name}.conv1x1_3x3.k1, bias: {name}.conv1x1_3x3.b1}}{edges}"""


DIVERSE_BRANCH_BLOCK = """
version: 1
pairs:
  - into: "0"
    sum:
      - chain: [{name: 0.dbb_origin.conv, padding: 1},
                {name: 0.dbb_origin.bn, type: batch_norm, eps: 1.0e-3}]
      - chain: [{name: 0.dbb_1x1.conv}, {name: 0.dbb_1x1.bn, type: batch_norm, eps: 1.0e-3}]
      - chain:
          - {type: pad, padding: 1}
          - sum: [{name: 0.dbb_1x1_kxk.idconv1}, {type: identity}]
          - {name: 0.dbb_1x1_kxk.bn1.bn, type: batch_norm, eps: 1.0e-3}
          - {name: 0.dbb_1x1_kxk.conv2}
          - {name: 0.dbb_1x1_kxk.bn2, type: batch_norm, eps: 1.0e-3}
      - chain:
          - {type: pad, padding: 1}
          - {name: 0.dbb_avg.conv}
          - {name: 0.dbb_avg.bn.bn, type: batch_norm, eps: 1.0e-3}
          - {type: avg_pool, kernel_size: 3, stride: 1}
          - {name: 0.dbb_avg.avgbn, type: batch_norm, eps: 1.0e-3}
"""

DEPTHWISE_DIVERSE_BRANCH_BLOCK = """
version: 1
pairs:
  - into: "0"
    sum:
      - chain: [{name: 0.dbb_origin.conv, padding: 1, stride: 2, groups: 16},
                {name: 0.dbb_origin.bn, type: batch_norm, eps: 1.0e-5}]
      - chain:
          - {type: pad, padding: 1}
          - {name: 0.dbb_1x1_kxk.conv1, groups: 16}
          - {name: 0.dbb_1x1_kxk.bn1.bn, type: batch_norm, eps: 1.0e-5}
          - {name: 0.dbb_1x1_kxk.conv2, stride: 2, groups: 16}
          - {name: 0.dbb_1x1_kxk.bn2, type: batch_norm, eps: 1.0e-5}
      - chain:
          - {type: avg_pool, kernel_size: 3, stride: 2, padding: 1}
          - {name: 0.dbb_avg.avgbn, type: batch_norm, eps: 1.0e-5}
"""

REP_VGG = """
version: 1
pairs:
  - into: stage0.rbr_reparam
    sum:
      - chain: [{name: stage0.rbr_dense.conv, padding: 1, stride: 2},
                {name: stage0.rbr_dense.bn, type: batch_norm, eps: 1.0e-5}]
      - chain: [{name: stage0.rbr_1x1.conv, stride: 2},
                {name: stage0.rbr_1x1.bn, type: batch_norm, eps: 1.0e-5}]
  - into: stage1.0.rbr_reparam
    sum:
      - chain: [{name: stage1.0.rbr_dense.conv, padding: 1, stride: 2},
                {name: stage1.0.rbr_dense.bn, type: batch_norm, eps: 1.0e-5}]
      - chain: [{name: stage1.0.rbr_1x1.conv, stride: 2},
                {name: stage1.0.rbr_1x1.bn, type: batch_norm, eps: 1.0e-5}]
  - into: "stage1.{i}.rbr_reparam"
    sum:
      - chain: [{name: "stage1.{i}.rbr_dense.conv", padding: 1},
                {name: "stage1.{i}.rbr_dense.bn", type: batch_norm, eps: 1.0e-5}]
      - chain: [{name: "stage1.{i}.rbr_1x1.conv"},
                {name: "stage1.{i}.rbr_1x1.bn", type: batch_norm, eps: 1.0e-5}]
      - {name: "stage1.{i}.rbr_identity", type: batch_norm, eps: 1.0e-5}
"""


def mobile_one(stages: Sequence[tuple[int, int]], first: int) -> str:
    """`stages`: output channels and depthwise-pointwise pairs; `first`: channels of stage 0."""
    blocks = [_mobile_one_block("stage0", stride=2, padding=1, count=1)]
    width = first
    for stage, (channels, pairs) in enumerate(stages, start=1):
        for index in range(pairs):
            name, stride = f"stage{stage}", 2 if index == 0 else 1
            blocks += [
                _mobile_one_block(
                    f"{name}.{2 * index}",
                    stride=stride,
                    padding=1,
                    groups=width,
                    skip=stride == 1,
                ),
                _mobile_one_block(f"{name}.{2 * index + 1}", skip=width == channels),
            ]
            width = channels
    return "version: 1\npairs:" + "".join(blocks)


def _mobile_one_block(
    name: str,
    *,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
    count: int = 4,
    skip: bool = False,
) -> str:
    step = f"stride: {stride}, groups: {groups}"
    branches = [(f"{name}.rbr_conv.{index}", padding) for index in range(count)]
    if padding:
        branches.append((f"{name}.rbr_scale", 0))
    text = f"\n  - into: {name}.reparam_conv\n    sum:"
    for branch, padded in branches:
        text += f"""
      - chain: [{{name: {branch}.conv, padding: {padded}, {step}}},
                {{name: {branch}.bn, type: batch_norm, eps: 1.0e-5}}]"""
    if skip:
        text += f"\n      - {{name: {name}.rbr_skip, type: batch_norm, eps: 1.0e-5}}"
    return text


VAE_ENCODER = pair("{name: encoder.conv_out, padding: 1}", "{name: quant_conv}")
VAE_DECODER = pair("{name: post_quant_conv}", "{name: decoder.conv_in, padding: 1}")

RESTORMER = pair(
    '{name: "encoder_level1.{i}.attn.qkv"}',
    '{name: "encoder_level1.{i}.attn.qkv_dwconv", padding: 1, groups: 144}',
)

NAFNET = pair(
    '{name: "encoders.{i}.{j}.conv1"}',
    '{name: "encoders.{i}.{j}.conv2", padding: 1, groups: 64}',
)

X3D_STEM = pair(
    "{name: conv_t, stride: [1, 2, 2], padding: [0, 1, 1]}",
    "{name: conv_xy, padding: [2, 0, 0], groups: 24}",
)

XCEPTION = pair("{name: conv1, padding: 2, dilation: 2, groups: 64}", "{name: pointwise}")

DEEPLAB = """
version: 1
pairs:
  - chain:
      - {name: conv1, padding: 4, dilation: 4, groups: 64}
      - {name: bn, type: batch_norm, eps: 1.0e-3}
      - {name: pointwise}
"""

LOCON = """
version: 1
pairs:
  - into: conv
    sum:
      - {name: conv, padding: 1}
      - chain:
          - {name: lora.lora_down, padding: 1}
          - {name: lora.lora_up}
          - {type: scale, weight: lora.alpha, factor: 0.25}   # alpha / r with r = 4
"""

LOCON_TUCKER = """
version: 1
pairs:
  - into: conv
    sum:
      - {name: conv, padding: 1}
      - chain:
          - {name: lora.lora_down}
          - {name: lora.lora_mid, padding: 1}
          - {name: lora.lora_up}
          - {type: scale, weight: lora.alpha, factor: 0.25}   # alpha / r with r = 4
"""

OVERLAPPING_STEM = pair(
    "{name: stem.0, stride: 2, padding: 1}", "{name: stem.1, stride: 2, padding: 1}"
)

DEPTH_HEAD = pair(
    "{name: depth_head.projects.2}", "{name: depth_head.scratch.layer3_rn, padding: 1}"
)

TWICE_3X3 = pair('{name: "0", padding: 1}', '{name: "1", padding: 1}')


def large_kernel_attention(channels: int) -> str:
    """VAN's two depthwise layers."""
    return pair(
        f"{{name: conv0, padding: 2, groups: {channels}}}",
        f"{{name: conv_spatial, padding: 9, dilation: 3, groups: {channels}}}",
    )


def large_kernel_attention_whole(channels: int) -> str:
    """VAN's two depthwise layers and the 1x1 behind them."""
    return f"""
version: 1
pairs:
  - chain:
      - {{name: conv0, padding: 2, groups: {channels}}}
      - {{name: conv_spatial, padding: 9, dilation: 3, groups: {channels}}}
      - {{name: conv1}}
"""


def multi_scale_attention(channels: int, strips: Sequence[int]) -> str:
    """SegNeXt's depthwise layers: 5x5, and added to it pairs of strips of these lengths."""
    unit = "block1.{i}.attn.spatial_gating_unit"
    text = f"""
version: 1
pairs:
  - chain:
      - {{name: "{unit}.conv0", padding: 2, groups: {channels}}}
      - sum:
          - {{type: identity}}"""
    for index, length in enumerate(strips):
        text += f"""
          - chain:
              - {{name: "{unit}.conv{index}_1", padding: [0, {length // 2}], groups: {channels}}}
              - {{name: "{unit}.conv{index}_2", padding: [{length // 2}, 0], groups: {channels}}}"""
    return text + "\n"


def multi_scale_attention_whole(channels: int, strips: Sequence[int]) -> str:
    """SegNeXt's depthwise layers and the 1x1 behind them."""
    pointwise = '      - {name: "block1.{i}.attn.spatial_gating_unit.conv3"}\n'
    return multi_scale_attention(channels, strips) + pointwise


def efficientnet(depthwise: Sequence[tuple[int, int]], eps: str = "1.0e-3") -> str:
    """EfficientNet-Lite0, every convolution with its norm; groups and stride of each depthwise."""
    norm = f"type: batch_norm, eps: {eps}"
    text = f"""
version: 1
pairs:
  - first: {{name: _conv_stem, stride: 2}}
    second: {{name: _bn0, {norm}}}
  - first: {{name: "_blocks.{{i}}._expand_conv"}}
    second: {{name: "_blocks.{{i}}._bn0", {norm}}}
  - first: {{name: "_blocks.{{i}}._project_conv"}}
    second: {{name: "_blocks.{{i}}._bn2", {norm}}}
  - first: {{name: _conv_head}}
    second: {{name: _bn1, {norm}}}"""
    for index, (groups, stride) in enumerate(depthwise):
        text += f"""
  - first: {{name: _blocks.{index}._depthwise_conv, stride: {stride}, groups: {groups}}}
    second: {{name: _blocks.{index}._bn1, {norm}}}"""
    return text


EFFICIENTNET_ACROSS_BLOCKS = """
version: 1
pairs:
  - chain:
      - {name: _blocks.0._project_conv}
      - {name: _blocks.0._bn2, type: batch_norm, eps: 1.0e-3}
      - {name: _blocks.1._expand_conv}
      - {name: _blocks.1._bn0, type: batch_norm, eps: 1.0e-3}
  - chain:
      - {name: _blocks.15._project_conv}
      - {name: _blocks.15._bn2, type: batch_norm, eps: 1.0e-3}
      - {name: _conv_head}
      - {name: _bn1, type: batch_norm, eps: 1.0e-3}
"""
