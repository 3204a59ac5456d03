"""Video: LTX, CogVideoX, HunyuanVideo, Mochi, Allegro and Latte."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AllegroPipeline,
    AllegroTransformer3DModel,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    LattePipeline,
    LatteTransformer3DModel,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    MochiPipeline,
    MochiTransformer3DModel,
)

from benchmarks.stock.stock import Stock
from benchmarks.stock.tiny import quiet, seeded, settled, unwarned

STEPS = 8
NUMPY_COPIES = "__array__ implementation doesn't accept a copy keyword"


def make_ltx() -> LTXPipeline:
    """LTX with two blocks of self and cross attention."""
    model = LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=2,
        caption_channels=32,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    return quiet(LTXPipeline(scheduler, None, None, None, settled(model)))


def call_ltx(pipe: LTXPipeline, seed: int) -> torch.Tensor:
    """One request of packed latents, guidance in the same batch."""
    text, mask = seeded(seed, 1, 7, 32), torch.ones(1, 7, dtype=torch.bool)
    return pipe(
        prompt_embeds=text,
        prompt_attention_mask=mask,
        negative_prompt_embeds=-text,
        negative_prompt_attention_mask=mask,
        latents=seeded(seed + 1, 1, 2 * 2 * 2, 8),
        height=64,
        width=64,
        num_frames=9,
        num_inference_steps=STEPS,
        output_type="latent",
    ).frames


SOLVER = {
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "snr_shift_scale": 3.0,
    "timestep_spacing": "trailing",
}


def _cogvideox(
    scheduler: CogVideoXDDIMScheduler | CogVideoXDPMScheduler, **more: Any
) -> CogVideoXPipeline:
    model = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=32,
        num_layers=2,
        sample_width=8,
        sample_height=8,
        sample_frames=9,
        max_text_seq_length=7,
        norm_elementwise_affine=False,
        **more,
    )
    return quiet(CogVideoXPipeline(None, None, None, settled(model), scheduler))


def make_cogvideox() -> CogVideoXPipeline:
    """CogVideoX 5B: rotary positions, a second-order solver with the scheduler's own loop."""
    return _cogvideox(CogVideoXDPMScheduler(**SOLVER), use_rotary_positional_embeddings=True)


def make_cogvideox_sincos() -> CogVideoXPipeline:
    """CogVideoX 2B: positions are added to the latents, DDIM."""
    return _cogvideox(CogVideoXDDIMScheduler(**SOLVER))


def call_cogvideox(pipe: CogVideoXPipeline, seed: int, size: int = 8) -> torch.Tensor:
    """One request of 3 latent frames, by default of the size that the model was made for."""
    text = seeded(seed, 1, 7, 32)
    return pipe(
        prompt_embeds=text,
        negative_prompt_embeds=-text,
        latents=seeded(seed + 1, 1, 3, 4, size, size),
        generator=torch.Generator().manual_seed(seed),
        height=8 * size,
        width=8 * size,
        num_frames=9,
        num_inference_steps=STEPS,
        max_sequence_length=7,
        output_type="latent",
    ).frames


def call_cogvideox_smaller(pipe: CogVideoXPipeline, seed: int) -> torch.Tensor:
    """One request at half the size that the model was made for."""
    return call_cogvideox(pipe, seed, size=4)


def make_hunyuan_video(dtype: torch.dtype = torch.float32) -> HunyuanVideoPipeline:
    """HunyuanVideo with a block of two streams and two of a single one."""
    model = HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=1,
        num_single_layers=2,
        num_refiner_layers=1,
        patch_size=1,
        text_embed_dim=16,
        pooled_projection_dim=8,
        rope_axes_dim=(2, 4, 4),
    )
    model = settled(model, dtype=dtype)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=7.0)
    return quiet(HunyuanVideoPipeline(None, None, model, None, scheduler, None, None))


def make_hunyuan_video_bf16() -> HunyuanVideoPipeline:
    """The same in bfloat16."""
    return make_hunyuan_video(torch.bfloat16)


def call_hunyuan_video(pipe: HunyuanVideoPipeline, seed: int, **more: Any) -> torch.Tensor:
    """One request with embedded guidance: one call per step; 5 of 7 text tokens count."""
    dtype = pipe.transformer.dtype
    mask = torch.ones(1, 7, dtype=torch.int64)
    mask[:, 5:] = 0
    given = {"num_inference_steps": STEPS, **more}
    return pipe(
        prompt_embeds=seeded(seed, 1, 7, 16).to(dtype),
        pooled_prompt_embeds=seeded(seed + 1, 1, 8).to(dtype),
        prompt_attention_mask=mask,
        latents=seeded(seed + 2, 1, 4, 2, 4, 4),
        height=32,
        width=32,
        num_frames=5,
        output_type="latent",
        **given,
    ).frames


def call_hunyuan_video_guided(pipe: HunyuanVideoPipeline, seed: int) -> torch.Tensor:
    """One request with a negative prompt: two calls per step."""
    return call_hunyuan_video(
        pipe,
        seed,
        true_cfg_scale=3.0,
        negative_prompt_embeds=seeded(seed + 3, 1, 7, 16),
        negative_pooled_prompt_embeds=seeded(seed + 4, 1, 8),
        negative_prompt_attention_mask=torch.ones(1, 7, dtype=torch.int64),
    )


def call_hunyuan_video_long(pipe: HunyuanVideoPipeline, seed: int) -> torch.Tensor:
    """One request of 100 steps: in bfloat16 many have the timestep of the one before."""
    return call_hunyuan_video(pipe, seed, num_inference_steps=100)


def make_mochi() -> MochiPipeline:
    """Mochi, whose timesteps rise."""
    model = MochiTransformer3DModel(
        patch_size=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=12,
        text_embed_dim=32,
        time_embed_dim=4,
        max_sequence_length=16,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    return quiet(MochiPipeline(scheduler, None, None, None, settled(model)))


def call_mochi(pipe: MochiPipeline, seed: int) -> torch.Tensor:
    """One request of 2 latent frames of 4 x 4, guidance in the same batch."""
    text, mask = seeded(seed, 1, 16, 32), torch.ones(1, 16, dtype=torch.bool)
    # the model asks for autocast to float32, which a CPU does not have
    with unwarned("In CPU autocast"):
        return pipe(
            prompt_embeds=text,
            prompt_attention_mask=mask,
            negative_prompt_embeds=-text,
            negative_prompt_attention_mask=mask,
            latents=seeded(seed + 1, 1, 12, 2, 4, 4),
            height=32,
            width=32,
            num_frames=7,
            num_inference_steps=STEPS,
            output_type="latent",
        ).frames


def make_allegro() -> AllegroPipeline:
    """Allegro, which adds noise at each step (Euler ancestral)."""
    model = AllegroTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        cross_attention_dim=24,
        sample_width=4,
        sample_height=4,
        sample_frames=3,
        caption_channels=16,
    )
    with unwarned(NUMPY_COPIES):
        scheduler = EulerAncestralDiscreteScheduler()
    return quiet(AllegroPipeline(None, None, None, settled(model), scheduler))


def call_allegro(pipe: AllegroPipeline, seed: int) -> torch.Tensor:
    """One request of 3 latent frames of 4 x 4, guidance in the same batch."""
    text, mask = seeded(seed, 1, 7, 16), torch.ones(1, 7, dtype=torch.int64)
    with unwarned(NUMPY_COPIES):
        return pipe(
            prompt_embeds=text,
            prompt_attention_mask=mask,
            negative_prompt=None,
            negative_prompt_embeds=-text,
            negative_prompt_attention_mask=mask,
            latents=seeded(seed + 1, 1, 4, 3, 4, 4),
            generator=torch.Generator().manual_seed(seed),
            height=32,
            width=32,
            num_frames=9,
            num_inference_steps=STEPS,
            clean_caption=False,
            output_type="latent",
        ).frames


def make_latte() -> LattePipeline:
    """Latte: a block over space, then one over time, twice."""
    model = LatteTransformer3DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=16,
        in_channels=4,
        cross_attention_dim=16,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        video_length=3,
    )
    return quiet(LattePipeline(None, None, None, settled(model), DDIMScheduler()))


def call_latte(pipe: LattePipeline, seed: int) -> torch.Tensor:
    """One request of 3 frames of 8 x 8, guidance in the same batch."""
    text = seeded(seed, 1, 7, 16)
    return pipe(
        prompt_embeds=text,
        negative_prompt=None,
        negative_prompt_embeds=-text,
        latents=seeded(seed + 1, 1, 4, 3, 8, 8),
        video_length=3,
        height=64,
        width=64,
        num_inference_steps=STEPS,
        clean_caption=False,
        mask_feature=False,
        output_type="latent",
    ).frames


STOCK = (
    Stock("LTX", make_ltx, call_ltx),
    Stock("CogVideoX, DPM", make_cogvideox, call_cogvideox),
    Stock("CogVideoX, added positions", make_cogvideox_sincos, call_cogvideox),
    Stock(
        "CogVideoX, another size",
        make_cogvideox_sincos,
        call_cogvideox_smaller,
    ),
    Stock("HunyuanVideo", make_hunyuan_video, call_hunyuan_video),
    Stock("HunyuanVideo, true CFG", make_hunyuan_video, call_hunyuan_video_guided),
    Stock(
        "HunyuanVideo, bfloat16, 100 steps", make_hunyuan_video_bf16, call_hunyuan_video_long
    ),
    Stock("Mochi", make_mochi, call_mochi),
    Stock("Allegro", make_allegro, call_allegro),
    Stock("Latte", make_latte, call_latte),
)
