"""Small UNets of four levels or three, with random weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    UNet2DConditionModel,
    UNet2DModel,
    UNet3DConditionModel,
    UNetMotionModel,
    UNetSpatioTemporalConditionModel,
)
from torch import nn

from tests.helpers.models import Case, seeded

WIDTHS = {"block_out_channels": (8, 16, 16), "norm_num_groups": 4, "layers_per_block": 1}


@dataclass
class UNetCase(Case):
    """A UNet, whose latent has another name.

    Attributes:
        levels: How many levels it has.
    """

    levels: int = 3

    def inputs(self, step: int, seed: int = 0) -> dict[str, Any]:
        """Keyword arguments of the call at a step."""
        given = super().inputs(step, seed)
        return {"sample": given.pop("hidden_states"), **given}


def steady(model: nn.Module) -> nn.Module:
    """Evaluation mode, with weights of convolutions and linears that let every part matter.

    Weights that need gradients have torch choose other kernels for products of what is not
    contiguous; a denoiser's need none.
    """
    torch.manual_seed(1)
    model.requires_grad_(False)
    for parameter in model.parameters():
        size = parameter[0].numel() if parameter.dim() > 1 else 4
        nn.init.normal_(parameter, std=size**-0.5)
    return model.eval()


def make_sd15() -> UNetCase:
    """Like Stable Diffusion 1.5: four levels, attention in all but the deepest."""
    cross, up = ("CrossAttnDownBlock2D",) * 3, ("CrossAttnUpBlock2D",) * 3
    model = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(8, 8, 16, 16),
        norm_num_groups=4,
        layers_per_block=2,
        down_block_types=(*cross, "DownBlock2D"),
        up_block_types=("UpBlock2D", *up),
        attention_head_dim=4,
        cross_attention_dim=16,
    )
    given = {"encoder_hidden_states": seeded(2, 5, 16)}
    return UNetCase(steady(model), (2, 4, 16, 16), given, levels=4)


def make_sdxl() -> UNetCase:
    """Like Stable Diffusion XL: no attention outside, two blocks at each attention inside."""
    model = UNet2DConditionModel(
        sample_size=8,
        **WIDTHS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2, 2),
        projection_class_embeddings_input_dim=64,
        cross_attention_dim=16,
    )
    added = {"text_embeds": seeded(2, 16), "time_ids": torch.arange(12.0).reshape(2, 6)}
    given = {"encoder_hidden_states": seeded(2, 5, 16), "added_cond_kwargs": added}
    return UNetCase(steady(model), (2, 4, 8, 8), given)


def make_controlled() -> UNetCase:
    """The same with what a ControlNet adds to skip connections and to the middle."""
    case = make_sdxl()
    shapes = [(8, 8), (8, 8), (8, 4), (16, 4), (16, 2), (16, 2)]  # channels, height
    case.given |= {
        "down_block_additional_residuals": tuple(seeded(2, c, h, h) for c, h in shapes),
        "mid_block_additional_residual": seeded(2, 16, 2, 2),
    }
    return case


def make_plain() -> UNetCase:
    """Without conditions, with attention at two levels."""
    model = UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        **WIDTHS,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
    )
    return UNetCase(steady(model), (2, 3, 8, 8), {})


def make_video() -> UNetCase:
    """ModelScope's UNet of videos."""
    model = UNet3DConditionModel(
        sample_size=8,
        **WIDTHS,
        down_block_types=("CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D", "CrossAttnUpBlock3D"),
        attention_head_dim=4,
        cross_attention_dim=16,
    )
    given = {"encoder_hidden_states": seeded(1, 5, 16)}
    return UNetCase(steady(model), (1, 4, 3, 8, 8), given)


def make_spatio_temporal() -> UNetCase:
    """Like Stable Video Diffusion."""
    attention = "CrossAttnDownBlockSpatioTemporal"
    model = UNetSpatioTemporalConditionModel(
        sample_size=8,
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        down_block_types=(attention, attention, "DownBlockSpatioTemporal"),
        up_block_types=(
            "UpBlockSpatioTemporal",
            *("CrossAttnUpBlockSpatioTemporal",) * 2,
        ),
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
        cross_attention_dim=16,
        num_attention_heads=(2, 4, 4),
        num_frames=2,
    )
    given = {
        "encoder_hidden_states": seeded(1, 1, 16),
        "added_time_ids": torch.tensor([[6.0, 127.0, 0.02]]),
    }
    return UNetCase(steady(model), (1, 2, 8, 8, 8), given)


def make_motion() -> UNetCase:
    """Like AnimateDiff's UNet."""
    model = UNetMotionModel(
        sample_size=8,
        **WIDTHS,
        down_block_types=(*("CrossAttnDownBlockMotion",) * 2, "DownBlockMotion"),
        up_block_types=("UpBlockMotion", *("CrossAttnUpBlockMotion",) * 2),
        num_attention_heads=2,
        motion_num_attention_heads=2,
        cross_attention_dim=16,
    )
    given = {"encoder_hidden_states": seeded(2, 5, 16)}  # for each frame
    return UNetCase(steady(model), (1, 4, 2, 8, 8), given)


UNET_MAKERS = {
    "sd15": make_sd15,
    "sdxl": make_sdxl,
    "controlled": make_controlled,
    "plain": make_plain,
    "video": make_video,
    "spatio_temporal": make_spatio_temporal,
    "motion": make_motion,
}
