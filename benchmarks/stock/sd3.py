"""Stable Diffusion 3: from text, from a picture, with a mask, skipped layers, a ControlNet."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    SD3ControlNetModel,
    SD3Transformer2DModel,
    StableDiffusion3ControlNetPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline,
    StableDiffusion3Pipeline,
)

from benchmarks.stock.stock import Stock
from benchmarks.stock.tiny import quiet, seeded, seeded_draws, settled, tiny_vae

SIZE, CHANNELS = 8, 16
GEOMETRY: dict[str, Any] = {
    "sample_size": SIZE,
    "patch_size": 1,
    "in_channels": CHANNELS,
    "num_layers": 3,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "caption_projection_dim": 32,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 64,
    "out_channels": CHANNELS,
}


def make(kind: type[Any], **more: Any) -> Any:
    """An SD3 of three blocks, with a VAE that pictures pass."""
    model = settled(SD3Transformer2DModel(**GEOMETRY))
    parts = dict.fromkeys(f"{part}{n}" for part in ENCODERS for n in ("", "_2", "_3"))
    scheduler = FlowMatchEulerDiscreteScheduler()
    return quiet(
        kind(transformer=model, scheduler=scheduler, vae=tiny_vae(CHANNELS), **parts, **more)
    )


ENCODERS = ("text_encoder", "tokenizer")


def make_controlled() -> StableDiffusion3ControlNetPipeline:
    """The same with a ControlNet of three blocks."""
    controlnet = settled(SD3ControlNetModel(**GEOMETRY), seed=2)
    return make(StableDiffusion3ControlNetPipeline, controlnet=controlnet)


def call(pipe: Any, seed: int, **more: Any) -> torch.Tensor:
    """One picture, with guidance."""
    embeds, pooled = seeded(seed, 2, 7, 32), seeded(seed + 100, 2, 64)
    with seeded_draws(seed):
        return pipe(
            prompt_embeds=embeds[:1],
            negative_prompt_embeds=embeds[1:],
            pooled_prompt_embeds=pooled[:1],
            negative_pooled_prompt_embeds=pooled[1:],
            guidance_scale=5.0,
            num_inference_steps=10,
            height=SIZE,
            width=SIZE,
            output_type="latent",
            **more,
        ).images


def skip_layers(pipe: StableDiffusion3Pipeline, seed: int) -> torch.Tensor:
    """Steps 2 to 6 have a third stream, without the first block."""
    return call(
        pipe,
        seed,
        skip_guidance_layers=[0],
        skip_layer_guidance_start=0.15,
        skip_layer_guidance_stop=0.65,
    )


def change(pipe: StableDiffusion3Img2ImgPipeline, seed: int) -> torch.Tensor:
    """Begins at step 4 with a picture."""
    return call(pipe, seed, image=seeded(seed + 200, 1, 3, SIZE, SIZE).sigmoid(), strength=0.6)


def fill(pipe: StableDiffusion3InpaintPipeline, seed: int) -> torch.Tensor:
    """Begins at step 4 with a picture, half of which stays as it is."""
    mask = torch.zeros(1, 1, SIZE, SIZE)
    mask[..., : SIZE // 2] = 1
    image = seeded(seed + 200, 1, 3, SIZE, SIZE).sigmoid()
    return call(pipe, seed, image=image, mask_image=mask, strength=0.6)


def control(pipe: StableDiffusion3ControlNetPipeline, seed: int) -> torch.Tensor:
    """The ControlNet takes part at each step."""
    return call(pipe, seed, control_image=seeded(seed + 200, 1, 3, SIZE, SIZE).sigmoid())


STOCK = (
    Stock("SD3", partial(make, StableDiffusion3Pipeline), call),
    Stock("SD3, img2img", partial(make, StableDiffusion3Img2ImgPipeline), change),
    Stock("SD3, inpaint", partial(make, StableDiffusion3InpaintPipeline), fill),
    Stock("SD3, skip-layer guidance", partial(make, StableDiffusion3Pipeline), skip_layers),
    Stock("SD3, ControlNet", make_controlled, control),
)
