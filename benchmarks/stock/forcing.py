"""SkyReels V2: diffusion forcing, where each frame has a timestep of its own."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    SkyReelsV2DiffusionForcingPipeline,
    SkyReelsV2Pipeline,
    SkyReelsV2Transformer3DModel,
    UniPCMultistepScheduler,
)

from benchmarks.stock.stock import Stock
from benchmarks.stock.tiny import quiet, seeded, settled

STEPS = 6


def _transformer(**more: Any) -> SkyReelsV2Transformer3DModel:
    return settled(
        SkyReelsV2Transformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=16,
            out_channels=16,
            text_dim=32,
            freq_dim=32,
            ffn_dim=32,
            num_layers=2,
            rope_max_seq_len=32,
            **more,
        )
    )


def _scheduler() -> UniPCMultistepScheduler:
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0
    )


def make_skyreels() -> SkyReelsV2Pipeline:
    """SkyReels V2 without forcing: all frames stand at one timestep, given once."""
    return quiet(SkyReelsV2Pipeline(None, None, _transformer(), None, _scheduler()))


def make_forcing() -> SkyReelsV2DiffusionForcingPipeline:
    """SkyReels V2 with diffusion forcing: a timestep, and a scheduler, for each frame."""
    return quiet(
        SkyReelsV2DiffusionForcingPipeline(
            None, None, _transformer(inject_sample_info=True), None, _scheduler()
        )
    )


def call_skyreels(pipe: SkyReelsV2Pipeline, seed: int, **more: Any) -> torch.Tensor:
    """One request of 4 latent frames of 4 x 4, guidance in a call of its own."""
    text = seeded(seed, 1, 16, 32)
    given = {"num_frames": 13, **more}
    return pipe(
        prompt=None,
        prompt_embeds=text,
        negative_prompt_embeds=-text,
        generator=torch.Generator().manual_seed(seed + 1),
        height=32,
        width=32,
        num_inference_steps=STEPS,
        output_type="latent",
        **given,
    ).frames


def call_asynchronous(pipe: SkyReelsV2DiffusionForcingPipeline, seed: int) -> torch.Tensor:
    """One request in which each frame is two steps behind the one before: 12 calls of 6."""
    return call_skyreels(pipe, seed, ar_step=2)


def call_causal(pipe: SkyReelsV2DiffusionForcingPipeline, seed: int) -> torch.Tensor:
    """One request in blocks of two frames that see no later block, three steps apart."""
    return call_skyreels(pipe, seed, ar_step=3, causal_block_size=2)


def call_long(pipe: SkyReelsV2DiffusionForcingPipeline, seed: int) -> torch.Tensor:
    """One request of 6 latent frames, 4 at a time: the second run begins with two done."""
    return call_skyreels(pipe, seed, num_frames=21, base_num_frames=13, overlap_history=5)


STOCK = (
    Stock("SkyReels V2", make_skyreels, call_skyreels),
    Stock("SkyReels V2 forcing", make_forcing, call_skyreels),
    Stock("SkyReels V2 forcing, asynchronous", make_forcing, call_asynchronous),
    Stock("SkyReels V2 forcing, causal blocks", make_forcing, call_causal),
    Stock("SkyReels V2 forcing, long", make_forcing, call_long),
)
