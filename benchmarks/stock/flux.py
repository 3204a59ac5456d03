"""Flux: from text, with true guidance, from pictures, with control, and many steps in bf16."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxControlNetModel,
    FluxControlNetPipeline,
    FluxControlPipeline,
    FluxImg2ImgPipeline,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
)

from benchmarks.stock.stock import Stock
from benchmarks.stock.tiny import quiet, seeded, seeded_draws, settled, tiny_vae

GEOMETRY: dict[str, Any] = {
    "patch_size": 1,
    "num_layers": 1,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 32,
    "guidance_embeds": True,
    "axes_dims_rope": [4, 4, 8],
}
PARTS = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
LATENT, SIZE = 64, 64
"""Channels of packed latents, and height and width of a picture, without a VAE."""
VAE_LATENT, VAE_SIZE = 16, 8
"""The same with one."""


def make(
    kind: type[Any],
    channels: int = LATENT,
    dtype: torch.dtype = torch.float32,
    vae: Any = None,
    **more: Any,
) -> Any:
    """A Flux of one double and two single blocks."""
    model = FluxTransformer2DModel(in_channels=channels, **GEOMETRY)
    parts = {**dict.fromkeys(PARTS), "transformer": settled(model, dtype=dtype), "vae": vae}
    return quiet(kind(scheduler=make_scheduler(), **parts, **more))


def make_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """The one whose timesteps are those of 1024x1024 pixels, for 16 tokens."""
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_image_seq_len=16, base_shift=1.15
    )


def make_control() -> FluxControlPipeline:
    """A Flux whose tokens are those of the latent and of the control picture."""
    model = settled(
        FluxTransformer2DModel(in_channels=2 * VAE_LATENT, out_channels=VAE_LATENT, **GEOMETRY)
    )
    parts = {**dict.fromkeys(PARTS), "transformer": model, "vae": tiny_vae(VAE_LATENT // 4)}
    return quiet(FluxControlPipeline(scheduler=make_scheduler(), **parts))


def make_controlled() -> FluxControlNetPipeline:
    """A Flux with a ControlNet of the same size."""
    controlnet = settled(FluxControlNetModel(in_channels=VAE_LATENT, **GEOMETRY), seed=2)
    vae = tiny_vae(VAE_LATENT // 4)
    return make(FluxControlNetPipeline, VAE_LATENT, vae=vae, controlnet=controlnet)


def call(
    pipe: Any, seed: int, dtype: torch.dtype = torch.float32, size: int = SIZE, **more: Any
) -> torch.Tensor:
    """One picture."""
    given = {"num_inference_steps": 8, **more}
    with seeded_draws(seed):
        return pipe(
            prompt_embeds=seeded(seed, 1, 7, 32).to(dtype),
            pooled_prompt_embeds=seeded(seed + 100, 1, 32).to(dtype),
            height=size,
            width=size,
            output_type="latent",
            **given,
        ).images


def guide(pipe: FluxPipeline, seed: int) -> torch.Tensor:
    """Two calls per step, with names."""
    return call(
        pipe,
        seed,
        negative_prompt_embeds=seeded(seed + 200, 1, 7, 32),
        negative_pooled_prompt_embeds=seeded(seed + 300, 1, 32),
        true_cfg_scale=4.0,
    )


def change(pipe: FluxImg2ImgPipeline, seed: int) -> torch.Tensor:
    """Begins at step 4 of 10 with the latent of a picture."""
    image = seeded(seed + 400, 1, LATENT // 4, 8, 8)
    return call(pipe, seed, image=image, strength=0.6, num_inference_steps=10)


def edit(pipe: FluxKontextPipeline, seed: int) -> torch.Tensor:
    """The latent of a picture stands behind that of the result."""
    return call(pipe, seed, image=seeded(seed + 400, 1, LATENT // 4, 8, 8), max_area=SIZE**2)


def control(pipe: Any, seed: int) -> torch.Tensor:
    """One picture, with a control picture."""
    image = seeded(seed + 400, 1, 3, VAE_SIZE, VAE_SIZE).sigmoid()
    return call(pipe, seed, size=VAE_SIZE, control_image=image)


STOCK = (
    Stock("Flux", partial(make, FluxPipeline), call),
    Stock("Flux, true guidance", partial(make, FluxPipeline), guide),
    Stock("Flux, img2img", partial(make, FluxImg2ImgPipeline), change),
    Stock("Flux Kontext", partial(make, FluxKontextPipeline), edit),
    Stock("Flux, control", make_control, control),
    Stock("Flux, ControlNet", make_controlled, control),
    Stock(
        "Flux, bf16, 100 steps",
        partial(make, FluxPipeline, dtype=torch.bfloat16),
        partial(call, dtype=torch.bfloat16, num_inference_steps=100),
    ),
)
