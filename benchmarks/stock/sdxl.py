"""Stable Diffusion XL, whose denoiser is a UNet."""

from __future__ import annotations

import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

from benchmarks.stock.stock import Stock
from benchmarks.stock.tiny import quiet, seeded, settled

POOLED = 16
PARTS = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")


def make() -> StableDiffusionXLPipeline:
    """A UNet of two levels, with two blocks of attention at the lower one."""
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=6 * 8 + POOLED,
        cross_attention_dim=16,
    )
    scheduler = EulerDiscreteScheduler(timestep_spacing="leading", steps_offset=1)
    parts = dict.fromkeys(PARTS)
    return quiet(StableDiffusionXLPipeline(unet=settled(unet), scheduler=scheduler, **parts))


def call(pipe: StableDiffusionXLPipeline, seed: int) -> torch.Tensor:
    """One picture, with guidance."""
    embeds, pooled = seeded(seed, 2, 7, 16), seeded(seed + 100, 2, POOLED)
    return pipe(
        prompt_embeds=embeds[:1],
        negative_prompt_embeds=embeds[1:],
        pooled_prompt_embeds=pooled[:1],
        negative_pooled_prompt_embeds=pooled[1:],
        latents=seeded(seed + 200, 1, 4, 8, 8),
        num_inference_steps=10,
        height=64,
        width=64,
        output_type="latent",
    ).images


STOCK = (Stock("SDXL", make, call, denoisers=("unet",)),)
