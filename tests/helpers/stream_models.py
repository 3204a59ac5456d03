"""Small models whose residual stream is cast, gated, split or given by several lists."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    AceStepTransformer1DModel,
    AnyFlowTransformer3DModel,
    ChronoEditTransformer3DModel,
    HeliosTransformer3DModel,
    Kandinsky5Transformer3DModel,
    SkyReelsV2Transformer3DModel,
    WanAnimateTransformer3DModel,
    WanTransformer3DModel,
    WanVACETransformer3DModel,
)
from torch import nn

from tests.helpers.models import Case, seeded, settled


@dataclass
class StreamCase(Case):
    """A model with a timestep of its own dtype, or for each frame.

    Attributes:
        frames: How many frames have a timestep each; None for one per sample.
        casts_time: Whether the timestep has the dtype of the latent.
        num_blocks: How many blocks it has that read the latent.
    """

    frames: int | None = None
    casts_time: bool = False
    num_blocks: int = 3

    def inputs(self, step: int, seed: int = 0) -> dict[str, Any]:
        """Keyword arguments of the call at a step."""
        given = super().inputs(step, seed)
        if self.frames is not None:
            given["timestep"] = given["timestep"][:, None].expand(-1, self.frames)
        if self.casts_time:
            given["timestep"] = given["timestep"].to(self.dtype)
        return given

    def to(self, dtype: torch.dtype) -> Case:
        """The case in another dtype, but for what the model keeps in float32."""
        for name, parameter in self.model.named_parameters():
            apart = getattr(self.model, "_keep_in_fp32_modules", None) or ()
            if not set(apart) & set(name.split(".")):
                parameter.data = parameter.data.to(dtype)
        kept, self.model = self.model, nn.Identity()
        super().to(dtype)
        self.model = kept
        return self


WAN = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 3,
    "rope_max_seq_len": 32,
}
LATENT = (1, 4, 2, 8, 8)


def make_wan(layers: int = 3) -> StreamCase:
    """Wan 2.1: self attention, attention to text, feed-forward."""
    model = WanTransformer3DModel(**WAN | {"num_layers": layers})
    return StreamCase(settled(model), LATENT, {"encoder_hidden_states": seeded(1, 5, 16)})


def make_vace() -> StreamCase:
    """Wan VACE: blocks of a second list give two values, of which one adds to nothing."""
    model = WanVACETransformer3DModel(**WAN, vace_layers=[0, 1, 2], vace_in_channels=8)
    given = {
        "encoder_hidden_states": seeded(1, 5, 16),
        "control_hidden_states": seeded(1, 8, *LATENT[2:]),
        "control_hidden_states_scale": torch.tensor([1.0, 0.5, 2.0]),
    }
    return StreamCase(settled(model), LATENT, given, num_blocks=6)


def make_wan_animate() -> StreamCase:
    """Wan Animate: an adapter for faces adds to the stream between blocks."""
    model = WanAnimateTransformer3DModel(
        **WAN | {"in_channels": 12, "num_layers": 4},
        latent_channels=4,
        image_dim=16,
        motion_encoder_channel_sizes={"4": 16, "8": 16, "16": 16},
        motion_encoder_size=16,
        motion_style_dim=8,
        motion_dim=4,
        motion_encoder_dim=16,
        face_encoder_hidden_dim=16,
        face_encoder_num_heads=2,
        inject_face_latents_blocks=2,
    )
    given = {
        "encoder_hidden_states": seeded(1, 5, 16),
        "encoder_hidden_states_image": seeded(1, 3, 16),
        "pose_hidden_states": seeded(1, 4, 1, 8, 8),
        "face_pixel_values": seeded(1, 3, 1, 16, 16),
    }
    return StreamCase(settled(model), (1, 12, *LATENT[2:]), given, num_blocks=4)


def make_chrono_edit() -> StreamCase:
    """ChronoEdit: Wan with other positions."""
    model = ChronoEditTransformer3DModel(**WAN)
    return StreamCase(settled(model), LATENT, {"encoder_hidden_states": seeded(1, 5, 16)})


def make_sky_reels() -> StreamCase:
    """SkyReels V2."""
    model = SkyReelsV2Transformer3DModel(**WAN)
    return StreamCase(settled(model), LATENT, {"encoder_hidden_states": seeded(1, 5, 16)})


def make_any_flow() -> StreamCase:
    """AnyFlow: a second timestep."""
    given = {"encoder_hidden_states": seeded(1, 5, 16), "r_timestep": torch.zeros(1, 2)}
    return StreamCase(
        settled(AnyFlowTransformer3DModel(**WAN)), (1, 2, 4, 8, 8), given, frames=2
    )


def make_helios() -> StreamCase:
    """Helios: tokens of earlier frames beside those that are denoised."""
    geometry = {key: value for key, value in WAN.items() if key != "rope_max_seq_len"}
    model = HeliosTransformer3DModel(**geometry, rope_dim=(4, 4, 4), rope_theta=100.0)
    given = {
        "encoder_hidden_states": seeded(1, 5, 16),
        "indices_hidden_states": torch.arange(2, 4)[None],
        "indices_latents_history_short": torch.arange(2)[None],
        "latents_history_short": seeded(*LATENT),
    }
    return StreamCase(settled(model), LATENT, given)


def make_kandinsky() -> StreamCase:
    """Kandinsky 5: blocks of the text, then those of the video."""
    model = Kandinsky5Transformer3DModel(
        in_text_dim=16,
        in_text_dim2=8,
        time_dim=16,
        model_dim=24,
        ff_dim=32,
        num_text_blocks=2,
        num_visual_blocks=3,
        axes_dims=(4, 4, 4),
    )
    given = {
        "encoder_hidden_states": seeded(1, 5, 16),
        "pooled_projections": seeded(1, 8),
        "visual_rope_pos": tuple(map(torch.arange, (2, 4, 4))),
        "text_rope_pos": torch.arange(5),
    }
    return StreamCase(settled(model), (1, 2, 8, 8, 4), given)


def make_ace_step() -> StreamCase:
    """ACE-Step: sound, a second timestep, windows of attention."""
    model = AceStepTransformer1DModel(
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=12,
        in_channels=12,
        audio_acoustic_hidden_dim=4,
        sliding_window=4,
    )
    given = {
        "timestep_r": torch.zeros(1),
        "encoder_hidden_states": seeded(1, 5, 24),
        "context_latents": seeded(1, 12, 8),
    }
    return StreamCase(settled(model), (1, 12, 4), given, top=0.9, fall=0.01, casts_time=True)


STREAM_MAKERS = {
    "wan": make_wan,
    "vace": make_vace,
    "wan_animate": make_wan_animate,
    "chrono_edit": make_chrono_edit,
    "sky_reels": make_sky_reels,
    "any_flow": make_any_flow,
    "helios": make_helios,
    "kandinsky": make_kandinsky,
    "ace_step": make_ace_step,
}
