"""Small denoisers whose inputs come in many sizes: samples, height, width, length of text."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    WanTransformer3DModel,
)
from torch import nn


def seeded(*shape: int) -> torch.Tensor:
    """Random numbers that are the same in every run."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


def settled(model: nn.Module) -> nn.Module:
    """Evaluation mode, with weights that let every part matter."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.8 / max(parameter.shape[-1], 1) ** 0.5)
    return model.eval()


@dataclass(frozen=True)
class Sized:
    """A model, and its keyword arguments at sizes."""

    model: nn.Module
    given: Callable[[int, int, int, int], dict[str, Any]]

    def inputs(
        self, batch: int, height: int, width: int, text: int, step: int = 0
    ) -> dict[str, Any]:
        """Keyword arguments of the call at a step; height and width are of tokens."""
        timestep = torch.full((batch,), 0.9 - 0.1 * step)
        return {"timestep": timestep, **self.given(batch, height, width, text)}


def sized_flux() -> Sized:
    """Flux with two double and two single blocks."""
    model = FluxTransformer2DModel(
        in_channels=8,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=20,
        pooled_projection_dim=12,
        axes_dims_rope=(4, 6, 6),
    )
    return Sized(
        settled(model),
        lambda b, h, w, t: {
            "hidden_states": seeded(b, h * w, 8),
            "encoder_hidden_states": seeded(b, t, 20),
            "pooled_projections": seeded(b, 12),
            "img_ids": seeded(h * w, 3),
            "txt_ids": torch.zeros(t, 3),
        },
    )


def sized_sd3() -> Sized:
    """SD3 with two blocks."""
    model = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=3,
        joint_attention_dim=20,
        caption_projection_dim=24,
        pooled_projection_dim=12,
        out_channels=4,
        pos_embed_max_size=32,
    )
    return Sized(
        settled(model),
        lambda b, h, w, t: {
            "hidden_states": seeded(b, 4, 2 * h, 2 * w),
            "encoder_hidden_states": seeded(b, t, 20),
            "pooled_projections": seeded(b, 12),
        },
    )


def sized_pixart() -> Sized:
    """PixArt with two blocks and a mask of the text."""
    model = PixArtTransformer2DModel(
        num_attention_heads=3,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=20,
        cross_attention_dim=24,
        caption_channels=20,
        norm_type="ada_norm_single",
        attention_bias=True,
        activation_fn="gelu-approximate",
        norm_elementwise_affine=False,
        use_additional_conditions=False,
    )
    return Sized(
        settled(model),
        lambda b, h, w, t: {
            "hidden_states": seeded(b, 4, 2 * h, 2 * w),
            "encoder_hidden_states": seeded(b, t, 20),
            "encoder_attention_mask": torch.ones(b, t),
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        },
    )


def sized_wan() -> Sized:
    """Wan with two blocks and two frames."""
    model = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
    )
    return Sized(
        settled(model),
        lambda b, h, w, t: {
            "hidden_states": seeded(b, 4, 2, 2 * h, 2 * w),
            "encoder_hidden_states": seeded(b, t, 16),
        },
    )


def sized_qwen() -> Sized:
    """Qwen-Image with two blocks, whose sizes come as numbers, too."""
    model = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=20,
        axes_dims_rope=(4, 6, 6),
    )
    return Sized(
        settled(model),
        lambda b, h, w, t: {
            "hidden_states": seeded(b, h * w, 16),
            "encoder_hidden_states": seeded(b, t, 20),
            "encoder_hidden_states_mask": torch.ones(b, t),
            "img_shapes": [(1, h, w)],
        },
    )


SIZED = {
    "flux": sized_flux,
    "sd3": sized_sd3,
    "pixart": sized_pixart,
    "wan": sized_wan,
    "qwen": sized_qwen,
}
