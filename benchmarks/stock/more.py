"""Pictures by models of less common make: CogView3, CogView4 and HiDream."""

from __future__ import annotations

import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogView3PlusPipeline,
    CogView3PlusTransformer2DModel,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    HiDreamImagePipeline,
    HiDreamImageTransformer2DModel,
)

from benchmarks.stock.stock import Stock
from benchmarks.stock.tiny import quiet, seeded, settled

STEPS = 8
COGVIEW = {
    "patch_size": 2,
    "in_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "out_channels": 4,
    "text_embed_dim": 32,
    "time_embed_dim": 8,
}
"""What both models of CogView have: two blocks of joint attention."""


def make_cogview3() -> CogView3PlusPipeline:
    """CogView3-Plus: two blocks of joint attention, DDIM without a step index."""
    model = CogView3PlusTransformer2DModel(
        **COGVIEW,
        condition_dim=2,
        pos_embed_max_size=8,
        sample_size=8,
    )
    scheduler = CogVideoXDDIMScheduler(
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )
    return quiet(CogView3PlusPipeline(None, None, None, settled(model), scheduler))


def make_cogview4() -> CogView4Pipeline:
    """CogView4: two blocks of joint attention with rotary positions."""
    model = CogView4Transformer2DModel(
        **COGVIEW,
        condition_dim=4,
        rope_axes_dim=(8, 8),
    )
    scheduler = FlowMatchEulerDiscreteScheduler(
        base_shift=0.25, max_shift=0.75, use_dynamic_shifting=True, time_shift_type="linear"
    )
    return quiet(CogView4Pipeline(None, None, None, settled(model), scheduler))


def call_cogview(pipe: CogView3PlusPipeline | CogView4Pipeline, seed: int) -> torch.Tensor:
    """One request of 8 x 8 latents with guidance."""
    text = seeded(seed, 1, 16, 32)
    return pipe(
        prompt_embeds=text,
        negative_prompt_embeds=-text,
        latents=seeded(seed + 1, 1, 4, 8, 8),
        height=64,
        width=64,
        num_inference_steps=STEPS,
        output_type="latent",
    ).images


def make_hidream() -> HiDreamImagePipeline:
    """HiDream: a block of two streams and one of a single stream, experts in each."""
    model = HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=[16, 16],
        text_emb_dim=16,
        num_routed_experts=2,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(8, 8),
        llama_layers=[0, 1],
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe = HiDreamImagePipeline(scheduler, None, *[None] * 8, settled(model))
    # The pipeline scales every request to the area of this many latents squared.
    pipe.default_sample_size = 8
    return quiet(pipe)


def call_hidream(pipe: HiDreamImagePipeline, seed: int) -> torch.Tensor:
    """One request of 8 x 8 latents, guidance in the same batch."""
    t5, llama, pooled = (
        seeded(seed, 1, 7, 16),
        seeded(seed + 1, 2, 1, 7, 16),
        seeded(seed + 2, 1, 16),
    )
    return pipe(
        prompt_embeds_t5=t5,
        negative_prompt_embeds_t5=-t5,
        prompt_embeds_llama3=llama,
        negative_prompt_embeds_llama3=-llama,
        pooled_prompt_embeds=pooled,
        negative_pooled_prompt_embeds=-pooled,
        latents=seeded(seed + 3, 1, 4, 8, 8),
        height=64,
        width=64,
        num_inference_steps=STEPS,
        output_type="latent",
    ).images


STOCK = (
    Stock("CogView3-Plus", make_cogview3, call_cogview),
    Stock("CogView4", make_cogview4, call_cogview),
    Stock("HiDream", make_hidream, call_hidream),
)
