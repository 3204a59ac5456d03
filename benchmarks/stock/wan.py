"""Wan 2.1, Wan 2.2 with its two transformers, with a timestep for each token, and VACE."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
    WanVACEPipeline,
    WanVACETransformer3DModel,
)

from benchmarks.stock.stock import Stock
from benchmarks.stock.tiny import quiet, seeded, settled

STEPS = 8
GEOMETRY = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "text_dim": 32,
    "freq_dim": 32,
    "ffn_dim": 32,
    "num_layers": 2,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 32,
}


def _transformer(channels: int = 16, seed: int = 1) -> WanTransformer3DModel:
    return settled(
        WanTransformer3DModel(**GEOMETRY, in_channels=channels, out_channels=channels), seed
    )


def _scheduler() -> UniPCMultistepScheduler:
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )


def _vae() -> AutoencoderKLWan:
    # Pipelines that begin with a picture or a video encode it: only the encoder is used.
    return settled(
        AutoencoderKLWan(base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    )


def make_wan() -> WanPipeline:
    """Wan 2.1, text to video: one transformer of two blocks."""
    return quiet(WanPipeline(None, None, None, _scheduler(), _transformer()))


def make_two_transformers() -> WanPipeline:
    """Wan 2.2: one transformer for much noise, another one below the boundary."""
    return quiet(
        WanPipeline(
            None,
            None,
            None,
            _scheduler(),
            _transformer(),
            transformer_2=_transformer(seed=2),
            boundary_ratio=0.875,
        )
    )


def make_per_token() -> WanPipeline:
    """Wan 2.2 of 5 billion: each token has a timestep, all equal in text to video."""
    return quiet(
        WanPipeline(None, None, None, _scheduler(), _transformer(), expand_timesteps=True)
    )


def make_first_frame() -> WanImageToVideoPipeline:
    """Wan 2.2 of 5 billion, image to video: tokens of the first frame stand at timestep 0."""
    return quiet(
        WanImageToVideoPipeline(
            None,
            None,
            _vae(),
            _scheduler(),
            transformer=_transformer(),
            expand_timesteps=True,
        )
    )


def make_vace() -> WanVACEPipeline:
    """Wan VACE: a control branch of two blocks beside the two of the transformer."""
    model = WanVACETransformer3DModel(
        **GEOMETRY,
        in_channels=16,
        out_channels=16,
        vace_layers=[0, 1],
        vace_in_channels=96,
    )
    return quiet(WanVACEPipeline(None, None, _vae(), _scheduler(), transformer=settled(model)))


def call_wan(pipe: WanPipeline, seed: int, **more: Any) -> torch.Tensor:
    """One request of eight steps: 3 latent frames of 4 x 4, guidance in a call of its own."""
    text = seeded(seed, 1, 16, 32)
    return pipe(
        prompt_embeds=text,
        negative_prompt_embeds=-text,
        latents=seeded(seed + 1, 1, 16, 3, 4, 4),
        height=32,
        width=32,
        num_frames=9,
        guidance_scale=6.0,
        num_inference_steps=STEPS,
        output_type="latent",
        **more,
    ).frames


def call_first_frame(pipe: WanImageToVideoPipeline, seed: int) -> torch.Tensor:
    """One request that begins with a random picture."""
    return call_wan(pipe, seed, image=seeded(seed + 2, 1, 3, 32, 32).sigmoid())


STOCK = (
    Stock("Wan 2.1", make_wan, call_wan),
    Stock(
        "Wan 2.2",
        make_two_transformers,
        call_wan,
        denoisers=("transformer", "transformer_2"),
    ),
    Stock("Wan 2.2, a timestep per token", make_per_token, call_wan),
    Stock("Wan 2.2, first frame at timestep 0", make_first_frame, call_first_frame),
    Stock("Wan VACE", make_vace, call_wan),
)
