"""A model whose views would not be views any longer behind another layout."""

from __future__ import annotations

import torch
from diffusers import HunyuanVideoTransformer3DModel

import dqar_fx


def test_views_behind_conditioning_are_lowered_regionally():
    torch.manual_seed(0)
    model = HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        patch_size=1,
        patch_size_t=1,
        guidance_embeds=True,
        text_embed_dim=16,
        pooled_projection_dim=8,
        rope_axes_dim=(2, 4, 4),
        image_condition_type=None,
    ).eval()
    call = {
        "hidden_states": torch.randn(1, 4, 3, 2, 2),
        "timestep": torch.tensor([900.0]),
        "encoder_hidden_states": torch.randn(1, 16, 16),
        "encoder_attention_mask": torch.ones(1, 16, dtype=torch.long),
        "pooled_projections": torch.randn(1, 8),
        "guidance": torch.tensor([4500.0]),
    }
    compile = {"unit": "regional", "backend": lambda gm, _: gm.forward}
    denoiser = dqar_fx.transform(model, dqar_fx.Schedule.interval(4, 2), compile=compile)
    with torch.no_grad():
        torch.testing.assert_close(denoiser(**call).sample, model(**call).sample)
