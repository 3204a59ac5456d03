"""The three parts of the reference pipeline, as they are before training.

The builders of networks take overrides of their configuration, so that tests can train toys by
the same code.
"""

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
)
from torch import nn

VAE_CONFIG: dict[str, Any] = {
    "in_channels": 1,
    "out_channels": 1,
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (16, 32, 64),
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 8,
    "sample_size": 28,
    "mid_block_add_attention": False,
}

TRANSFORMER_CONFIG: dict[str, Any] = {
    "num_attention_heads": 4,
    "attention_head_dim": 32,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 12,
    "sample_size": 7,
    "patch_size": 1,
    # Not the number of classes: DiTPipeline has 1000 fixed as the label of "no class".
    "num_embeds_ada_norm": 1000,
    "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False,
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
}


def build_vae(**overrides: Any) -> AutoencoderKL:
    """Build the untrained VAE: 28x28 grey images to 4x7x7 latents.

    Channels last, which convolutions on a CPU prefer.
    """
    vae = AutoencoderKL(**(VAE_CONFIG | overrides))
    return vae.to(memory_format=torch.channels_last)


def build_transformer(**overrides: Any) -> DiTTransformer2DModel:
    """Build the untrained transformer, initialised as the DiT paper does.

    Peebles and Xie, "Scalable Diffusion Models with Transformers" (2023): every block starts
    as the identity (adaLN-zero), and the network predicts zero.
    """
    transformer = DiTTransformer2DModel(**(TRANSFORMER_CONFIG | overrides))
    for name, parameter in transformer.named_parameters():
        initialise(name, parameter)
    for block in transformer.transformer_blocks:
        set_to_zero(block.norm1.linear)
    set_to_zero(transformer.proj_out_1)
    set_to_zero(transformer.proj_out_2)
    return transformer


def build_scheduler(
    prediction: str = "epsilon",
) -> DDIMScheduler | DPMSolverMultistepScheduler:
    """Build the scheduler of a model, whose noise levels the training reads too.

    For flow matching it is DPM-Solver++ of first order, whose steps are Euler's. `DiTPipeline`
    scales what the denoiser is given by the scheduler, which diffusers'
    ``FlowMatchEulerDiscreteScheduler`` does not offer.
    """
    return PREDICTIONS[prediction]()


def build_ddim() -> DDIMScheduler:
    """Build the scheduler of a model that predicts noise."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="linear",
        beta_start=1e-4,
        beta_end=2e-2,
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="leading",
    )


def build_euler() -> DPMSolverMultistepScheduler:
    """Build the scheduler of a model of flow matching."""
    return DPMSolverMultistepScheduler(
        num_train_timesteps=1000,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=1.0,
        algorithm_type="dpmsolver++",
        solver_order=1,
        final_sigmas_type="zero",
    )


PREDICTIONS = {"epsilon": build_ddim, "flow": build_euler}
"""What a model may learn to give: noise, or the velocity of flow matching; with the function
that builds its scheduler."""


def initialise(name: str, parameter: nn.Parameter) -> None:
    """Initialise one parameter of the transformer by its name; leave convolutions alone."""
    if parameter.ndim == 2 and ("embedding_table" in name or "timestep_embedder" in name):
        nn.init.normal_(parameter, std=0.02)
    elif parameter.ndim == 2:
        nn.init.xavier_uniform_(parameter)
    elif name.endswith("bias"):
        nn.init.zeros_(parameter)


def set_to_zero(linear: nn.Linear) -> None:
    """Set weight and bias to zero."""
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
