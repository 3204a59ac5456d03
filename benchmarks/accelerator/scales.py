"""How large everything is: as published on an accelerator, tiny in a rehearsal."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.harness.geometry import Geometry


@dataclass(frozen=True)
class Scale:
    """Sizes of models and of runs.

    Attributes:
        name: What rows call it.
        dit: Class-conditional DiT by name; batches are given beside it.
        flux: Keywords of ``FluxTransformer2DModel``, and the tokens of picture and text.
        wan: Keywords of ``WanTransformer3DModel``, and the latent's frames, height and width.
        batches: Samples per call that DiTs are measured with; the first one answers the
            report's question.
        steps: Of a trajectory that is timed; 50 make 98 % of reuse with one computed step.
        repeats: Timed pairs at most.
        case_s: About how long the pairs of a case may take.
        dtype: Of weights and latents.
        layers: Numbers of layers whose compilation is measured.
        compiled: The model whose compilation is measured, but for its layers.
        resident: The model whose memory is measured.
        pipeline: Arguments of the main job.
        peers: Arguments of the comparison with peers.
        keywords: Of ``torch.compile``, in the place of those of a mode; None for the mode's.
        is_sample: Whether parts take few of many like cases: enough to run all code.
    """

    name: str
    dit: Mapping[str, Geometry]
    flux: Mapping[str, Any]
    wan: Mapping[str, Any]
    batches: tuple[int, ...]
    steps: int
    repeats: int
    case_s: float
    dtype: torch.dtype
    layers: tuple[int, int]
    compiled: Geometry
    resident: Geometry
    pipeline: tuple[str, ...]
    peers: tuple[str, ...]
    keywords: Mapping[str, Any] | None = None
    is_sample: bool = False

    def in_mode(self, keywords: Mapping[str, Any]) -> dict[str, Any]:
        """Keywords of ``torch.compile``: those of a mode, unless this scale has its own."""
        return dict(keywords if self.keywords is None else self.keywords)


FULL = Scale(
    name="full",
    dit={
        "DiT-XL/2-256": Geometry(28, 1152, 16, 256),
        "DiT-XL/2-512": Geometry(28, 1152, 16, 1024),
    },
    # width, heads, text and tokens of FLUX.1 at 1024 pixels; 12 of its 57 blocks
    flux={
        "num_layers": 4,
        "num_single_layers": 8,
        "num_attention_heads": 24,
        "attention_head_dim": 128,
        "in_channels": 64,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 768,
        "axes_dims_rope": (16, 56, 56),
        "tokens": 4096,
        "text": 512,
    },
    # width, heads and text of Wan 2.1 1.3B at 832 x 480 pixels; 8 of 30 blocks, 17 frames
    wan={
        "num_layers": 8,
        "num_attention_heads": 12,
        "attention_head_dim": 128,
        "in_channels": 16,
        "out_channels": 16,
        "text_dim": 4096,
        "freq_dim": 256,
        "ffn_dim": 8960,
        "latent": (5, 60, 104),
        "text": 512,
    },
    batches=(8, 2, 32),
    steps=50,
    repeats=7,
    case_s=10.0,
    dtype=torch.bfloat16,
    layers=(4, 12),
    compiled=Geometry(),
    resident=Geometry(28, 1152, 16, 256),
    pipeline=("--seeds", "8", "--repeats", "3", "--budget", "40"),
    peers=("--samples", "8", "--repeats", "3", "--images", "0", "--fewer", "20"),
)
"""What runs on an accelerator."""

SMALL = Scale(
    name="rehearsal",
    dit={
        "DiT-XL/2-256": Geometry(2, 32, 2, 16),
        "DiT-XL/2-512": Geometry(2, 32, 2, 64),
    },
    flux={
        "num_layers": 2,
        "num_single_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": 8,
        "joint_attention_dim": 20,
        "pooled_projection_dim": 12,
        "axes_dims_rope": (4, 6, 6),
        "tokens": 16,
        "text": 8,
    },
    wan={
        "num_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": 16,
        "freq_dim": 32,
        "ffn_dim": 32,
        "latent": (2, 4, 4),
        "text": 8,
    },
    batches=(2,),
    steps=8,
    repeats=2,
    case_s=0.3,
    dtype=torch.float32,
    layers=(1, 3),
    compiled=Geometry(3, 32, 2, 16),
    resident=Geometry(2, 64, 2, 16),
    pipeline=("--quick", "--steps", "6", "--seeds", "1"),
    peers=("--quick",),
    keywords={"backend": "eager"},
    is_sample=True,
)
"""What rehearses: the same code, some of the cases, and Dynamo without Inductor behind it."""


def choose_scale(device: torch.device, is_small: bool) -> Scale:
    """Full on an accelerator unless it is to be small."""
    return SMALL if is_small or device.type == "cpu" else FULL
