"""Small denoisers with random weights, and inputs for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import (
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
)
from torch import nn

from benchmarks.harness.sized_models import seeded, settled


@dataclass
class Case:
    """A model, its constant inputs, and how its timestep is written."""

    model: nn.Module
    latent_shape: tuple[int, ...]
    given: dict[str, Any]
    top: float = 900.0
    fall: float = 10.0
    dtype: torch.dtype = field(default=torch.float32)
    has_halves: bool = False
    """Whether the second half of the batch denoises what the first does, as in guidance."""

    def inputs(self, step: int, seed: int = 0) -> dict[str, Any]:
        """Keyword arguments of the call at a step of the trajectory with this seed."""
        generator = torch.Generator().manual_seed(1000 * seed + step)
        latent = torch.randn(self.latent_shape, generator=generator).to(self.dtype)
        if self.has_halves:
            latent = torch.cat([latent[: len(latent) // 2]] * 2)
        timestep = torch.full((self.latent_shape[0],), self.top - self.fall * step)
        return {"hidden_states": latent, "timestep": timestep, **self.given}

    def to(self, dtype: torch.dtype) -> Case:
        """The case in another dtype."""
        self.model.to(dtype)
        self.dtype = dtype
        self.given = {
            name: value.to(dtype)
            if isinstance(value, torch.Tensor) and value.is_floating_point()
            else value
            for name, value in self.given.items()
        }
        return self


def make_dit(
    batch: int = 2, layers: int = 5, heads: int = 3, head_dim: int = 20, size: int = 12
) -> Case:
    """Class-conditional DiT, of an odd geometry if left as it is: 12 x 12 latents."""
    model = DiTTransformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=head_dim,
        in_channels=4,
        out_channels=8,
        num_layers=layers,
        sample_size=size,
        patch_size=2,
        num_embeds_ada_norm=10,
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
        activation_fn="gelu-approximate",
        attention_bias=True,
    )
    labels = torch.arange(batch) % 10
    return Case(settled(model), (batch, 4, size, size), {"class_labels": labels})


def make_pixart(batch: int = 2) -> Case:
    """PixArt: self and cross attention in each block."""
    model = PixArtTransformer2DModel(
        num_attention_heads=3,
        attention_head_dim=20,
        in_channels=4,
        out_channels=8,
        num_layers=3,
        cross_attention_dim=60,
        sample_size=12,
        patch_size=2,
        caption_channels=32,
        use_additional_conditions=False,
    )
    given = {
        "encoder_hidden_states": seeded(batch, 7, 32),
        "encoder_attention_mask": torch.ones(batch, 7),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }
    return Case(settled(model), (batch, 4, 12, 12), given)


def make_sd3(batch: int = 2) -> Case:
    """SD3: joint attention, dual attention in the first block, no text output in the last."""
    model = SD3Transformer2DModel(
        sample_size=12,
        patch_size=2,
        in_channels=4,
        num_layers=4,
        attention_head_dim=16,
        num_attention_heads=3,
        joint_attention_dim=32,
        caption_projection_dim=48,
        pooled_projection_dim=24,
        out_channels=4,
        pos_embed_max_size=16,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    given = {
        "encoder_hidden_states": seeded(batch, 7, 32),
        "pooled_projections": seeded(batch, 24),
    }
    return Case(settled(model), (batch, 4, 12, 12), given)


def make_flux(batch: int = 2) -> Case:
    """Flux: joint blocks, then single-stream blocks; rotary embedding, guidance input."""
    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    )
    given = {
        "encoder_hidden_states": seeded(batch, 7, 32),
        "pooled_projections": seeded(batch, 32),
        "img_ids": torch.arange(48.0).reshape(16, 3),
        "txt_ids": torch.zeros(7, 3),
        "guidance": torch.full((batch,), 3.5),
    }
    return Case(settled(model), (batch, 16, 4), given, top=0.9, fall=0.01)


MAKERS = {"dit": make_dit, "pixart": make_pixart, "sd3": make_sd3, "flux": make_flux}


class Attention(nn.Module):
    """Self attention of one head."""

    def __init__(self, width):
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)

    def forward(self, x):
        q, k, v = self.qkv(x).unsqueeze(1).chunk(3, dim=-1)
        return nn.functional.scaled_dot_product_attention(q, k, v).squeeze(1)


class Optional(nn.Module):
    """Attention, and inputs that may be left out or come in a dict."""

    def __init__(self):
        super().__init__()
        self.attention = Attention(16)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x, timestep, a=None, b=None, more=None):
        x = self.attention(x) * timestep.reshape(-1, 1, 1)
        x = x if a is None else x + a
        x = x if b is None else x * b
        return x if more is None else x + more["one"] - 2 * more["two"]
