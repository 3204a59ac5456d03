"""How each input is made: a table by the names that models of diffusers share.

A maker is a shape, for random values, or a function of the `Geometry`. A model whose input of
some name is unlike that of others has it in `OF_CLASS`. None leaves an input out.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import torch

from .uncommon_inputs import OF_CLASS as UNCOMMON

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .geometry import Geometry

    Maker = str | Callable[[Geometry], Any]

VIDEO, FRAMES_FIRST = "B C F H W", "B F C H W"
LATENTS = (
    ("img_ids", "B N C"),
    ("img_shapes", "B N C"),
    ("num_frames", "B V C"),
)
"""An input that a model has beside its latent, and the latent's shape then."""


def latent(geometry: Geometry) -> torch.Tensor:
    """The latent: packed into tokens, a video, or a picture."""
    beside = (shape for name, shape in LATENTS if name in geometry.parameters)
    usual = VIDEO if "3D" in geometry.name else "B C H W"
    return geometry.normal(next(beside, usual))


def timestep(geometry: Geometry) -> torch.Tensor:
    """One timestep for each sample: a number of the scheduler's where it is embedded so."""
    is_index = geometry.config.get("num_embeds_ada_norm") is not None
    return geometry.full("B", 500, torch.long if is_index else torch.float32)


def when(entry: str, maker: Maker) -> Callable[[Geometry], Any]:
    """What makes an input of models alone whose config has something at an entry."""
    return lambda geometry: make(maker, geometry) if geometry.config.get(entry) else None


def mask(shape: str, dtype: torch.dtype = torch.long) -> Callable[[Geometry], torch.Tensor]:
    """What makes a mask that hides nothing."""
    return lambda geometry: geometry.full(shape, 1, dtype)


def packed_ids(geometry: Geometry) -> torch.Tensor:
    """Row and column of each packed token, at the second and third of several axes."""
    places = geometry.counting(*geometry.packed, dtype=geometry.dtype)
    first, axes = places.new_zeros(len(places), 1), geometry.shape("X")[0]
    last = places.new_zeros(len(places), axes - 3)
    return torch.cat([first, places, last], 1)


def picture_shapes(geometry: Geometry) -> list[list[tuple[int, int, int]]]:
    """Frames, rows and columns of packed tokens, of one picture for each sample."""
    return [[(1, *geometry.packed)] for _ in range(geometry.sizes.batch)]


def picture_sizes(geometry: Geometry) -> torch.Tensor:
    """Height and width of the picture in pixels."""
    sides = [geometry.full("B 1", 8 * side) for side in (geometry.height, geometry.width)]
    return torch.cat(sides, 1)


def added_conditions(geometry: Geometry) -> dict[str, Any] | None:
    """SDXL's text and sizes; PixArt's sizes, where the model was trained with them."""
    if geometry.config.get("addition_embed_type") == "text_time":
        width = geometry.config["addition_time_embed_dim"]
        text = geometry.config["projection_class_embeddings_input_dim"] - 6 * width
        return {
            "text_embeds": geometry.normal(f"B {text}"),
            "time_ids": geometry.full("B 6", 8 * geometry.height),
        }
    if "use_additional_conditions" not in geometry.config:
        return None
    asks = geometry.config["use_additional_conditions"]
    if asks is None:
        asks = geometry.config.get("sample_size") == 128
    if not asks:
        return {"resolution": None, "aspect_ratio": None}
    return {"resolution": picture_sizes(geometry), "aspect_ratio": geometry.full("B 1", 1)}


def rotary_embedding(geometry: Geometry) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Cosines and sines of angles, for models that are given them."""
    if not geometry.config.get("use_rotary_positional_embeddings"):
        return None
    shape = f"{prod(geometry.patches)} attention_head_dim"
    angles = geometry.normal(shape).float()
    return angles.cos(), angles.sin()


def num_time_ids(geometry: Geometry) -> int:
    """Numbers about the video, such as its frames per second, each embedded by itself."""
    width = geometry.entry("projection_class_embeddings_input_dim")
    return width // geometry.entry("addition_time_embed_dim")


def masked_channels(geometry: Geometry) -> int:
    """Channels of a latent beside a given one, and the mask that says where it counts."""
    return 2 * geometry.channels + 1


def enlarged(geometry: Geometry, convolutions: int) -> str:
    """Height and width of what so many convolutions, but for one, halve to the latent's."""
    sides = (geometry.height, geometry.width)
    return " ".join(str(side << convolutions - 1) for side in sides)


MAKERS: dict[str, Maker] = {
    "hidden_states": latent,
    "sample": latent,
    "audio_hidden_states": "B V audio_in_channels|in_audio_dim",
    "timestep": timestep,
    "timestep_r": when("use_meanflow", timestep),
    "class_labels": when("num_embeds_ada_norm", lambda g: g.full("B", 1, torch.long)),
    "encoder_hidden_states": "B L D",
    "encoder_hidden_states_1": lambda g: g.normal(
        f"B L {g.config['cross_attention_dim'][-1]}"
    ),
    "encoder_hidden_states_2": "B L text_embed_2_dim",
    "encoder_hidden_states_t5": "B L text_embed_dim_t5",
    "encoder_hidden_states_image": "B I image_dim",
    "audio_encoder_hidden_states": "B L D",
    "encoder_attention_mask": mask("B L"),
    "encoder_attention_mask_2": when("text_embed_2_dim", mask("B L")),
    "audio_encoder_attention_mask": mask("B L"),
    "encoder_hidden_states_mask": mask("B L", torch.bool),
    "text_encoder_layers": lambda g: [
        g.normal("B L text_encoder_dim")
        for _ in range(g.config["num_layers"] + g.config["num_single_layers"])
    ],
    "image_embeds": "B I image_embed_dim|image_proj_dim",
    "pooled_projections": "B pooled_projection_dim|in_text_dim2",
    "proj_embedding": "B D",
    "guidance": when("guidance_embeds", lambda g: g.full("B", 4)),
    "img_ids": packed_ids,
    "txt_ids": lambda g: g.full("L X", 0),
    "img_shapes": picture_shapes,
    "original_size": picture_sizes,
    "target_size": picture_sizes,
    "crop_coords": lambda g: g.full("B 2", 0),
    "added_cond_kwargs": added_conditions,
    "added_time_ids": lambda g: g.full(f"B {num_time_ids(g)}", 6),
    "image_rotary_emb": rotary_embedding,
    "fps": when("inject_sample_info", lambda g: g.full("B", 0, torch.long)),
    "ofs": when("ofs_embed_dim", lambda g: g.full("B", 2)),
    "num_frames": lambda g: g.frames,
    "height": lambda g: g.height,
    "width": lambda g: g.width,
    "audio_num_frames": lambda g: g.shape("V")[0],
    "padding_mask": when("concat_padding_mask", lambda g: g.full("1 1 H W", 0)),
    "control_hidden_states": "B vace_in_channels F H W",
    "text_bth": "B L D",
    "text_lens": lambda g: g.full("B", g.text_tokens, torch.long),
}
"""By name."""

OF_CLASS: dict[str, Mapping[str, Maker]] = {
    "AceStepTransformer1DModel": {
        "hidden_states": "B H audio_acoustic_hidden_dim",
        "timestep_r": timestep,
        "context_latents": lambda g: g.normal(
            f"B H {g.entry('in_channels') - g.entry('audio_acoustic_hidden_dim')}"
        ),
    },
    "BriaFibo2Transformer2DModel": {
        "encoder_hidden_states": lambda g: g.normal(
            f"B {1 + len(g.config['injection_layer_ids'])} L D"
        ),
        "encoder_attention_mask": mask("B L", torch.bool),
    },
    "CogVideoXTransformer3DModel": {"hidden_states": FRAMES_FIRST},
    "ConsisIDTransformer3DModel": {
        "hidden_states": FRAMES_FIRST,
        "id_cond": when("is_train_face", "B LFE_id_dim"),
        "id_vit_hidden": when(
            "is_train_face",
            lambda g: [g.normal("B I LFE_vit_dim") for _ in range(g.config["LFE_num_scale"])],
        ),
    },
    "I2VGenXLUNet": {
        "sample": VIDEO,
        "fps": lambda g: g.full("B", 16),
        "image_latents": VIDEO,
        "image_embeddings": "B cross_attention_dim",
    },
    "Kandinsky5Transformer3DModel": {
        "hidden_states": "B F H W C",
        "visual_rope_pos": lambda g: [g.counting(size).flatten() for size in g.patches],
        "text_rope_pos": lambda g: g.counting(g.text_tokens).flatten(),
    },
    "Kandinsky6SRTransformer3DModel": {
        "hidden_states": lambda g: g.normal(f"B F H W {masked_channels(g)}")
    },
    "Kandinsky6Transformer3DModel": {
        "hidden_states": lambda g: g.normal(
            f"B F H W {masked_channels(g) if g.config['visual_cond'] else g.channels}"
        ),
        "encoder_attention_mask": mask("B L", torch.bool),
    },
    "LatteTransformer3DModel": {"encoder_attention_mask": lambda g: None},
    "LongCatAudioDiTTransformer": {
        "hidden_states": "B H latent_dim",
        "encoder_attention_mask": mask("B L", torch.bool),
        "latent_cond": when("use_latent_condition", "B H latent_dim"),
    },
    "MiniMaxMusic3Transformer1DModel": {
        "hidden_states": "B C H",
        "encoder_hidden_states": "B H condition_dim",
    },
    "PriorTransformer": {
        "hidden_states": "B C",
        "encoder_hidden_states": "B num_embeddings D",
    },
    "StableCascadeUNet": {
        "timestep_ratio": timestep,
        "clip_text_pooled": "B 1 clip_text_pooled_in_channels",
        "clip_text": "B L clip_text_in_channels",
        "clip_img": "B 1 clip_image_in_channels",
        "effnet": "B effnet_in_channels H W",
    },
    "TransformerTemporalModel": {
        "hidden_states": lambda g: g.normal(f"{g.sizes.batch * g.frames} C H W"),
        "encoder_hidden_states": lambda g: None,
    },
    "UNet1DModel": {"sample": "B C H"},
    "UNetControlNetXSModel": {
        "sample": "B 4 H W",
        "controlnet_cond": lambda g: g.normal(
            "B ctrl_conditioning_channels "
            + enlarged(g, len(g.config["ctrl_conditioning_embedding_out_channels"]))
        ),
    },
    "UNetMotionModel": {
        "sample": VIDEO,
        "encoder_hidden_states": lambda g: g.normal(f"{g.sizes.batch * g.frames} L D"),
    },
    "UNetSpatioTemporalConditionModel": {
        "sample": FRAMES_FIRST,
        "encoder_hidden_states": "B 1 D",
    },
    "WanAnimateTransformer3DModel": {
        "pose_hidden_states": lambda g: g.normal(f"B latent_channels {g.frames - 1} H W"),
        "face_pixel_values": lambda g: g.normal(
            f"B 3 {4 * (g.frames - 1)} motion_encoder_size motion_encoder_size"
        ),
    },
    **UNCOMMON,
}
"""By a model's class, then by name."""


def make(maker: Maker, geometry: Geometry) -> Any:
    """What a maker gives.

    Raises:
        NoSizeError: The config does not tell a size that it needs.
    """
    return geometry.normal(maker) if isinstance(maker, str) else maker(geometry)


def find_maker(name: str, geometry: Geometry) -> Maker | None:
    """The maker of an input; None if its name is not known."""
    own = OF_CLASS.get(geometry.name, {})
    return own[name] if name in own else MAKERS.get(name)
