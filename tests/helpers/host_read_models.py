"""Small denoisers whose forwards read masks, lengths or positions on the host."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    HunyuanImageTransformer2DModel,
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoFramepackTransformer3DModel,
    Lumina2Transformer2DModel,
    OmniGenTransformer2DModel,
)

from tests.helpers.models import Case, seeded, settled


def mask_of(*lengths: int, size: int = 7) -> torch.Tensor:
    """A mask of prompts of these lengths."""
    return (torch.arange(size) < torch.tensor(lengths)[:, None]).long()


def make_lumina2(lengths: tuple[int, ...] = (5, 3)) -> Case:
    """Lumina 2: it takes the lengths of prompts out of the mask."""
    model = Lumina2Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        hidden_size=32,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(8, 4, 4),
        axes_lens=(64, 64, 64),
        cap_feat_dim=16,
    )
    batch = len(lengths)
    given = {
        "encoder_hidden_states": seeded(batch, 7, 16),
        "encoder_attention_mask": mask_of(*lengths),
    }
    return Case(settled(model), (batch, 4, 8, 8), given)


def make_hunyuan_video_15(lengths: tuple[int, ...] = (5,), *, image: bool = False) -> Case:
    """HunyuanVideo 1.5: whether there is an image, and valid tokens before others."""
    model = HunyuanVideo15Transformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_refiner_layers=1,
        text_embed_dim=16,
        text_embed_2_dim=8,
        image_embed_dim=12,
        rope_axes_dim=(4, 6, 6),
        target_size=8,
        task_type="t2v",
    )
    batch = len(lengths)
    given = {
        "encoder_hidden_states": seeded(batch, 7, 16),
        "encoder_attention_mask": mask_of(*lengths),
        "encoder_hidden_states_2": seeded(batch, 4, 8),
        "encoder_attention_mask_2": mask_of(*(2 for _ in lengths), size=4),
        "image_embeds": image * seeded(batch, 3, 12),
    }
    return Case(settled(model), (batch, 9, 1, 4, 4), given)


def make_hunyuan_image(lengths: tuple[int, ...] = (5,)) -> Case:
    """HunyuanImage 2.1: it selects valid tokens of two prompts by their masks."""
    model = HunyuanImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        text_embed_dim=16,
        text_embed_2_dim=8,
        rope_axes_dim=(8, 8),
    )
    batch = len(lengths)
    given = {
        "encoder_hidden_states": seeded(batch, 7, 16),
        "encoder_attention_mask": mask_of(*lengths),
        "encoder_hidden_states_2": seeded(batch, 4, 8),
        "encoder_attention_mask_2": mask_of(*(2 for _ in lengths), size=4),
    }
    return Case(settled(model), (batch, 4, 4, 4), given)


def make_framepack(lengths: tuple[int, ...] = (5,)) -> Case:
    """Framepack: it cuts the prompt to its length."""
    model = HunyuanVideoFramepackTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        patch_size=2,
        text_embed_dim=16,
        pooled_projection_dim=8,
        rope_axes_dim=(4, 6, 6),
        has_image_proj=True,
        image_proj_dim=12,
        has_clean_x_embedder=True,
    )
    batch = len(lengths)

    given = {
        "encoder_hidden_states": seeded(batch, 7, 16),
        "encoder_attention_mask": mask_of(*lengths),
        "pooled_projections": seeded(batch, 8),
        "image_embeds": seeded(batch, 3, 12),
        "indices_latents": torch.tensor([4, 5]),
        "guidance": torch.full((batch,), 6000.0),
        "latents_clean": seeded(batch, 4, 2, 8, 8),
        "indices_latents_clean": torch.tensor([0, 3]),
        "latents_history_2x": seeded(batch, 4, 2, 8, 8),
        "indices_latents_history_2x": torch.tensor([1, 2]),
        "latents_history_4x": seeded(batch, 4, 4, 8, 8),
        "indices_latents_history_4x": torch.tensor([6, 7, 8, 9]),
    }
    return Case(settled(model), (batch, 4, 2, 8, 8), given)


def make_omnigen(last: int = 40) -> Case:
    """OmniGen: its rotary embedding asks for the largest position."""
    model = OmniGenTransformer2DModel(
        in_channels=4,
        patch_size=2,
        hidden_size=32,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=32,
        num_layers=2,
        pad_token_id=0,
        vocab_size=50,
        max_position_embeddings=64,
        original_max_position_embeddings=32,
        rope_scaling={"long_factor": [2.0] * 8, "short_factor": [1.0] * 8},
        pos_embed_max_size=8,
    )
    tokens = 7 + 1 + 16
    positions = torch.arange(tokens)
    positions[-1] = last
    given: dict[str, Any] = {
        "input_ids": torch.arange(7)[None] + 1,
        "input_img_latents": [seeded(1, 4, 4, 4)],
        "input_image_sizes": {0: [[1, 5]]},
        "attention_mask": torch.ones(1, tokens, tokens),
        "position_ids": positions[None],
    }
    return Case(settled(model), (1, 4, 8, 8), given)


MODELS = {
    "Lumina2": make_lumina2,
    "HunyuanVideo15": make_hunyuan_video_15,
    "HunyuanImage": make_hunyuan_image,
    "Framepack": make_framepack,
    "OmniGen": make_omnigen,
}
