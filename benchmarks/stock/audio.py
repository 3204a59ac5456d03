"""Sound: Stable Audio, ACE-Step, and LTX-2, which denoises a video and its sound together."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AceStepPipeline,
    AceStepTransformer1DModel,
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    AutoencoderOobleck,
    EDMDPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
    StableAudioDiTModel,
    StableAudioPipeline,
    StableAudioProjectionModel,
)
from diffusers.pipelines.ace_step import AceStepConditionEncoder
from diffusers.pipelines.ltx2 import LTX2TextConnectors

from benchmarks.stock.stock import Stock
from benchmarks.stock.tiny import quiet, seeded, settled, unwarned

STEPS = 8


def make_stable_audio() -> StableAudioPipeline:
    """Stable Audio: two blocks, a second-order solver whose timesteps become negative."""
    model = StableAudioDiTModel(
        sample_size=12,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        num_key_value_attention_heads=1,
        out_channels=4,
        cross_attention_dim=8,
        time_proj_dim=8,
        global_states_input_dim=16,
        cross_attention_input_dim=8,
    )
    # The pipeline asks the VAE how many samples a latent stands for.
    with unwarned("`torch.nn.utils.weight_norm` is deprecated"):
        vae = AutoencoderOobleck(
            encoder_hidden_size=4,
            downsampling_ratios=[1, 2],
            channel_multiples=[1, 1],
            decoder_channels=4,
            decoder_input_channels=4,
            sampling_rate=4,
        )
    scheduler = EDMDPMSolverMultistepScheduler(
        sigma_min=0.3, sigma_max=500.0, sigma_data=1.0, prediction_type="v_prediction"
    )
    projection = StableAudioProjectionModel(8, 8, min_value=0, max_value=32)
    return quiet(
        StableAudioPipeline(
            settled(vae), None, settled(projection, 2), None, settled(model), scheduler
        )
    )


def call_stable_audio(pipe: StableAudioPipeline, seed: int) -> torch.Tensor:
    """One request of 12 latents, guidance in the same batch."""
    text, mask = seeded(seed, 1, 7, 8), torch.ones(1, 7, dtype=torch.int64)
    return pipe(
        prompt_embeds=text,
        attention_mask=mask,
        negative_prompt_embeds=-text,
        negative_attention_mask=mask,
        latents=seeded(seed + 1, 1, 4, 12),
        num_inference_steps=STEPS,
        output_type="latent",
    ).audios


class _AceStepOfEmbeddings(AceStepPipeline):
    """ACE-Step takes texts alone: this one reads its prompt as the seed of embeddings."""

    def encode_prompt(
        self, prompt: str, **_: object
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Text [1, 5, 16] and lyrics [1, 6, 16], float32, each with its mask."""
        seed = int(prompt)
        texts = (seeded(seed + i, 1, 5 + i, 16) for i in range(2))
        text, lyrics = ((t, torch.ones(t.shape[:2], dtype=torch.bool)) for t in texts)
        return *text, *lyrics


def make_ace_step() -> AceStepPipeline:
    """ACE-Step: two blocks, one of them attends within a window; two timesteps per call."""
    shared = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "sliding_window": 4,
    }
    model = AceStepTransformer1DModel(
        **shared, num_hidden_layers=2, in_channels=12, audio_acoustic_hidden_dim=4
    )
    settled(model)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.add_(1)  # scales lie around one: attention, scaled twice, counts
    condition = AceStepConditionEncoder(
        **shared,
        text_hidden_dim=16,
        timbre_hidden_dim=4,
        num_lyric_encoder_hidden_layers=1,
        num_timbre_encoder_hidden_layers=1,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0)
    return quiet(
        _AceStepOfEmbeddings(None, None, None, model, settled(condition, 2), scheduler)
    )


def call_ace_step(pipe: AceStepPipeline, seed: int, **more: Any) -> torch.Tensor:
    """One request of 8 latents, guidance in the same batch."""
    return pipe(
        prompt=str(seed),
        audio_duration=0.32,
        latents=seeded(seed + 2, 1, 8, 4),
        num_inference_steps=STEPS,
        output_type="latent",
        **more,
    ).audios


def call_ace_step_interval(pipe: AceStepPipeline, seed: int) -> torch.Tensor:
    """One request with guidance in the middle alone: the batch grows and shrinks again."""
    return call_ace_step(pipe, seed, cfg_interval_start=0.1, cfg_interval_end=0.5)


def make_ltx2(*, perturbs: bool = False) -> LTX2Pipeline:
    """LTX-2: two blocks of six attentions each, over a video, its sound and between them."""
    model = LTX2VideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=4,
        audio_cross_attention_dim=8,
        num_layers=2,
        caption_channels=16,
        rope_double_precision=False,
        perturbed_attn=perturbs,
    )
    connectors = LTX2TextConnectors(
        caption_channels=16,
        text_proj_in_factor=2,
        video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=8,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=None,
        audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=8,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=None,
        rope_double_precision=False,
    )
    # Latents are shifted and scaled by what the autoencoders know of them.
    vae = AutoencoderKLLTX2Video(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
    )
    audio_vae = AutoencoderKLLTX2Audio(
        base_channels=4,
        ch_mult=(1,),
        num_res_blocks=1,
        latent_channels=2,
        mel_bins=8,
        norm_type="pixel",
    )
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    return quiet(
        LTX2Pipeline(
            scheduler,
            settled(vae),
            settled(audio_vae),
            None,
            None,
            settled(connectors, 2),
            settled(model),
            None,
        )
    )


def make_ltx23() -> LTX2Pipeline:
    """LTX-2.3: guidance by perturbed attention leaves attentions out of the named blocks."""
    return make_ltx2(perturbs=True)


def call_ltx2(
    pipe: LTX2Pipeline, seed: int, stg: float = 0.0, modality: float = 1.0
) -> torch.Tensor:
    """One request, guidance in the same batch; the latents of both, flat, video first."""
    text, mask = seeded(seed, 1, 8, 32), torch.ones(1, 8, dtype=torch.int64)
    found = pipe(
        prompt_embeds=text,
        prompt_attention_mask=mask,
        negative_prompt_embeds=-text,
        negative_prompt_attention_mask=mask,
        latents=seeded(seed + 1, 1, 4, 2, 2, 2),
        audio_latents=seeded(seed + 2, 1, 2, 9, 2),
        height=64,
        width=64,
        num_frames=9,
        stg_scale=stg,
        audio_stg_scale=stg,
        modality_scale=modality,
        audio_modality_scale=modality,
        spatio_temporal_guidance_blocks=[1],
        num_inference_steps=STEPS,
        output_type="latent",
    )
    return torch.cat([found.frames.flatten(), found.audio.flatten()])


def call_ltx2_stg(pipe: LTX2Pipeline, seed: int) -> torch.Tensor:
    """One request with spatio-temporal guidance: a second call in each step."""
    return call_ltx2(pipe, seed, stg=1.0)


def call_ltx2_all(pipe: LTX2Pipeline, seed: int) -> torch.Tensor:
    """One request with all guidance, as is the default: three calls in each step."""
    return call_ltx2(pipe, seed, stg=1.0, modality=3.0)


STOCK = (
    Stock("Stable Audio", make_stable_audio, call_stable_audio),
    Stock("ACE-Step", make_ace_step, call_ace_step),
    Stock("ACE-Step, guidance in the middle", make_ace_step, call_ace_step_interval),
    Stock("LTX-2", make_ltx2, call_ltx2),
    Stock("LTX-2, spatio-temporal guidance", make_ltx2, call_ltx2_stg),
    Stock("LTX-2, all guidance", make_ltx2, call_ltx2_all),
    Stock("LTX-2.3, all guidance", make_ltx23, call_ltx2_all),
)
