"""Inputs that a single model has: sequences of many kinds of tokens, lists, caches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from .geometry import Geometry

long, boolean = torch.long, torch.bool
FRAMEPACK_HISTORY = {"clean": 2, "history_2x": 2, "history_4x": 16}
"""Frames of the past that Framepack's pipeline gives, by their name."""
SEEN, MADE = 3, 2
"""How Ideogram 4 marks tokens of text, and those of the picture."""


def far_timesteps(geometry: Geometry) -> torch.Tensor:
    """A timestep for each frame."""
    return geometry.full("B F", 500, torch.float32)


def text_then_packed(geometry: Geometry) -> torch.Tensor:
    """Places of text tokens and, after them, of packed ones, at three axes."""
    text = geometry.counting(geometry.text_tokens).expand(-1, 3)
    picture = geometry.counting(*geometry.packed) + geometry.text_tokens
    first = torch.full_like(picture[:, :1], geometry.text_tokens)
    return torch.cat([text, torch.cat([first, picture], 1)])


def kinds_of_tokens(geometry: Geometry) -> torch.Tensor:
    """Ideogram's marks of text and of the picture."""
    text = geometry.full("B L", SEEN, long)
    return torch.cat([text, geometry.full("B N", MADE, long)], 1)


def in_sequence(geometry: Geometry, maker: Callable[[int], Any]) -> Any:
    """What is made for as many tokens as text and packed picture have."""
    return maker(geometry.text_tokens + geometry.packed_tokens)


def history(name: str) -> dict[str, Any]:
    """Framepack's latents of one part of the past, and their places."""
    count = FRAMEPACK_HISTORY[name]
    return {
        f"latents_{name}": f"B C {count} H W",
        f"indices_latents_{name}": lambda g: g.counting(count).flatten(),
    }


def patches_of(geometry: Geometry) -> torch.Tensor:
    """JoyImage's latent: patches, one after another, each of them whole."""
    return geometry.normal(f"B {geometry.packed_tokens} C 1 2 2")


def per_sample(shape: str) -> Callable[[Geometry], list[torch.Tensor]]:
    """What makes a list of tensors, one for each sample."""
    return lambda g: [g.normal(shape) for _ in range(g.sizes.batch)]


def animation_cache(geometry: Geometry) -> Any:
    """The cache that WanAnimate 2 keeps a reference picture in, empty."""
    from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache

    return WanAnimate2KVCache(geometry.entry("num_layers"))


def camera_rotary(geometry: Geometry) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotary embedding of SANA-WM's refiner, made by the model itself."""
    model: Any = geometry.model
    found: tuple[torch.Tensor, torch.Tensor] = model.build_rotary_emb_for_absolute_positions(
        geometry.sizes.batch,
        [*range(geometry.frames)],
        geometry.height,
        geometry.width,
        geometry.device,
        fps=16.0,
    )
    return found


def cosmos_sizes(geometry: Geometry) -> tuple[int, int, int]:
    """Frames, rows and columns of Cosmos's video tokens."""
    patch = geometry.entry("latent_patch_size")
    return geometry.frames, geometry.height // patch, geometry.width // patch


def cosmos_tokens(geometry: Geometry) -> torch.Tensor:
    """Places of the video's tokens in Cosmos's sequence, which begins with the text."""
    frames, rows, columns = cosmos_sizes(geometry)
    places = geometry.counting(frames * rows * columns).flatten()
    return places + geometry.text_tokens


def h3_sizes(geometry: Geometry) -> tuple[int, int, int]:
    """Tokens of text, of the video and of its sound, in MiniMax-H3's sequence."""
    frames, rows, columns = geometry.patches
    return geometry.text_tokens, frames * rows * columns, geometry.frames


def h3_places(part: int) -> Callable[[Geometry], torch.Tensor]:
    """What makes the places of one of these parts in the sequence."""

    def places(geometry: Geometry) -> torch.Tensor:
        sizes = h3_sizes(geometry)
        return geometry.counting(sizes[part]).flatten() + sum(sizes[:part])

    return places


def h3_per_token(values: tuple[int, int, int]) -> Callable[[Geometry], torch.Tensor]:
    """What makes a number for each token of the sequence, by its part."""

    def numbers(geometry: Geometry) -> torch.Tensor:
        parts = zip(h3_sizes(geometry), values, strict=True)
        return torch.cat([geometry.full(str(size), value, long) for size, value in parts])

    return numbers


OF_CLASS: dict[str, dict[str, str | Callable[[Geometry], Any]]] = {
    "AnyFlowTransformer3DModel": {
        "hidden_states": "B F C H W",
        "timestep": far_timesteps,
        "r_timestep": far_timesteps,
    },
    "AnyFlowFARTransformer3DModel": {
        "hidden_states": "B F C H W",
        "timestep": far_timesteps,
        "r_timestep": far_timesteps,
        "chunk_partition": lambda g: list(g.config["chunk_partition"]),
    },
    "Cosmos3OmniTransformer": {
        "input_ids": lambda g: g.counting(g.text_tokens).flatten(),
        "text_indexes": lambda g: g.counting(g.text_tokens).flatten(),
        "position_ids": lambda g: g.counting(
            g.text_tokens + len(cosmos_tokens(g)), dtype=torch.float32
        ).T.expand(3, -1),
        "und_len": lambda g: g.text_tokens,
        "sequence_length": lambda g: g.text_tokens + len(cosmos_tokens(g)),
        "vision_tokens": lambda g: [g.normal("1 latent_channel F H W")],
        "vision_token_shapes": lambda g: [cosmos_sizes(g)],
        "vision_sequence_indexes": cosmos_tokens,
        "vision_mse_loss_indexes": cosmos_tokens,
        "vision_timesteps": lambda g: g.full(str(len(cosmos_tokens(g))), 500, torch.float32),
        "vision_noisy_frame_indexes": lambda g: [g.counting(g.frames).flatten()],
    },
    "GlmImageTransformer2DModel": {
        "prior_token_id": lambda g: g.counting(g.packed_tokens).T.expand(g.sizes.batch, -1),
        "prior_token_drop": lambda g: g.full("B N", 0, boolean),
    },
    "HiDreamImageTransformer2DModel": {
        "timesteps": lambda g: g.full("B", 500, torch.float32),
        "encoder_hidden_states_t5": "B L caption_channels",
        "encoder_hidden_states_llama3": lambda g: g.normal(
            f"{len(g.config['llama_layers'])} B L {g.config['caption_channels'][1]}"
        ),
        "pooled_embeds": "B text_emb_dim",
        "hidden_states": "B C H W",
        "img_ids": lambda g: None,
    },
    "HunyuanVideoFramepackTransformer3DModel": {
        "indices_latents": lambda g: g.counting(g.frames).flatten(),
        **history("clean"),
        **history("history_2x"),
        **history("history_4x"),
    },
    "Ideogram4Transformer2DModel": {
        "hidden_states": lambda g: in_sequence(g, lambda n: g.normal(f"B {n} C")),
        "encoder_hidden_states": lambda g: in_sequence(g, lambda n: g.normal(f"B {n} D")),
        "position_ids": lambda g: text_then_packed(g).expand(g.sizes.batch, -1, -1),
        "segment_ids": lambda g: in_sequence(g, lambda n: g.full(f"B {n}", 1, long)),
        "indicator": kinds_of_tokens,
    },
    "JoyImageEditPlusTransformer3DModel": {
        "hidden_states": patches_of,
        "shape_list": lambda g: [[(1, *g.packed)] for _ in range(g.sizes.batch)],
    },
    "Krea2Transformer2DModel": {
        "hidden_states": "B N C",
        "encoder_hidden_states": "B L num_text_layers text_hidden_dim",
        "position_ids": text_then_packed,
        "encoder_attention_mask": lambda g: g.full("B L", 1, boolean),
    },
    "MiniMaxH3Transformer3DModel": {
        "hidden_states": lambda g: g.normal(
            f"1 {h3_sizes(g)[1]} {4 * g.entry('in_channels')}"
        ),
        "audio_hidden_states": "1 F audio_in_channels",
        "encoder_hidden_states": "1 L D",
        "timestep": lambda g: g.full("1", 500, torch.float32),
        "timestep_indices": h3_per_token((0, 0, 0)),
        "token_tags": h3_per_token((0, 1, 2)),
        "position_ids": lambda g: g.counting(sum(h3_sizes(g))).expand(-1, 3),
        "text_indices": h3_places(0),
        "video_indices": h3_places(1),
        "audio_indices": h3_places(2),
    },
    "OmniGenTransformer2DModel": {
        "input_ids": lambda g: g.full("B L", 1, long),
        "input_img_latents": lambda g: [],
        "input_image_sizes": lambda g: {},
        "attention_mask": lambda g: in_sequence(
            g, lambda n: g.full(f"B {n + 1} {n + 1}", 1, long)
        ),
        "position_ids": lambda g: in_sequence(
            g, lambda n: g.counting(n + 1).T.expand(g.sizes.batch, -1)
        ),
    },
    "QwenImage21Transformer2DModel": {
        "img_mask": lambda g: torch.cat(
            [g.full("B L", 0, boolean), g.full(f"B {g.packed_tokens // 4}", 1, boolean)], 1
        ),
    },
    "RFD4ProteinaTransformer": {
        "bb_ca": "B H 3",
        "local_latents": "B H latent_dim",
        "bb_ca_time": lambda g: g.full("B", 0.5),
        "local_latents_time": lambda g: g.full("B", 0.5),
        "padding_mask": lambda g: g.full("B H", 1, boolean),
        "token_type": lambda g: g.full("B H", 1, long),
        "conditioning": lambda g: {
            "is_in_context_conditioning": g.full("B H", 0, boolean),
            "supports_local_latent": g.full("B H", 1, boolean),
        },
    },
    "SanaWMLTX2RefinerTransformer3DModel": {
        "hidden_states": "B V C",
        "video_rotary_emb": camera_rotary,
    },
    "SanaWMTransformer3DModel": {
        "encoder_hidden_states": "B 1 L D",
        "encoder_attention_mask": lambda g: g.full("B 1 1 L", 1),
        "timestep": lambda g: g.full("B 1 F", 500, torch.float32),
    },
    "WanAnimate2Transformer3DModel": {
        "hidden_states": per_sample("out_dim F H W"),
        "encoder_hidden_states": per_sample("L text_dim"),
        "condition_latents": lambda g: [
            g.normal(f"{g.entry('in_dim') - g.entry('out_dim')} F H W")
            for _ in range(g.sizes.batch)
        ],
        "kv_cache": animation_cache,
        "kv_cache_mode": lambda g: "extract",
        "seq_len": lambda g: g.frames * g.packed_tokens,
        "encoder_hidden_states_image": "B I 1280",
        "offset_grid_sizes": lambda g: torch.tensor([[g.frames, *g.packed]]),
    },
    "ZImageTransformer2DModel": {
        "x": per_sample("C 1 H W"),
        "t": lambda g: g.full("B", 0.5, torch.float32),
        "cap_feats": per_sample("L D"),
    },
}
"""By a model's class, then by name; see `input_table`."""
