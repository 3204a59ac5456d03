"""Train the transformer of the reference pipeline on the latents that train_vae wrote.

Reads ``latents.safetensors`` in ``--out``; writes ``transformer/`` (the moving average of the
weights) and ``transformer.checkpoint.pt`` there. An interrupted run continues from its last
checkpoint when started again with the same options.
"""

import copy
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
import torch.nn.functional as F
from diffusers import DiTTransformer2DModel
from torch import Tensor

from benchmarks.harness.options import Count, one_of, run_command
from benchmarks.reference.data import FILE_NAME, Latents, load_latents
from benchmarks.reference.models import (
    PREDICTIONS,
    TRANSFORMER_CONFIG,
    build_scheduler,
    build_transformer,
)
from benchmarks.reference.training import Recipe, TrainingOptions

RECIPE = Recipe("transformer", peak=1.2e-3, warmup_steps=200, floor=0.02, weight_decay=0.0)
NULL_LABEL_RATE = 0.1


@dataclass(frozen=True)
class Options(TrainingOptions):
    """Options of this command."""

    COMMAND = "benchmarks.reference.train_transformer"

    steps: Count = 2664
    """Length of the run and its schedule."""
    batch_size: Count = 128
    """Images per step."""
    num_layers: Count = TRANSFORMER_CONFIG["num_layers"]
    """Of the model."""
    num_attention_heads: Count = TRANSFORMER_CONFIG["num_attention_heads"]
    """Of the model."""
    prediction: Annotated[str, one_of(tuple(PREDICTIONS))] = "epsilon"
    """What the model learns to give: noise, or the velocity of flow matching."""


def draw_uniform(batch_size: int) -> Tensor:
    """Draw one number from each of ``batch_size`` equal strata of [0, 1), in random order."""
    return (torch.randperm(batch_size) + torch.rand(batch_size)) / batch_size


def drop_labels(labels: Tensor, null_label: int) -> Tensor:
    """Replace a tenth of the labels by the null label, for classifier-free guidance."""
    is_dropped = torch.rand(len(labels)) < NULL_LABEL_RATE
    return torch.where(is_dropped, null_label, labels)


def compute_loss(
    transformer: DiTTransformer2DModel, latents: Tensor, labels: Tensor, alphas_cumprod: Tensor
) -> Tensor:
    """Return the squared error of the noise that the transformer predicts."""
    last = len(alphas_cumprod) - 1
    timesteps = (draw_uniform(len(latents)) * (last + 1)).long().clamp(0, last)
    noise = torch.randn_like(latents)
    alpha = alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    return F.mse_loss(predict(transformer, noisy, timesteps, labels), noise)


def compute_flow_loss(
    transformer: DiTTransformer2DModel, latents: Tensor, labels: Tensor, num_timesteps: int
) -> Tensor:
    """Return the squared error of the velocity that the transformer predicts.

    A sample lies on the line from data to noise, and the velocity is noise less data (Liu et
    al., "Flow Straight and Fast", 2022). Timesteps are ``num_timesteps`` times the share of
    noise, not rounded.
    """
    shares = draw_uniform(len(latents))
    noise = torch.randn_like(latents)
    noisy = torch.lerp(latents, noise, shares.view(-1, 1, 1, 1))
    predicted = predict(transformer, noisy, shares * num_timesteps, labels)
    return F.mse_loss(predicted, noise - latents)


def predict(
    transformer: DiTTransformer2DModel, noisy: Tensor, timesteps: Tensor, labels: Tensor
) -> Tensor:
    """Return what the transformer gives, a tenth of the labels left out."""
    labels = drop_labels(labels, transformer.config.num_embeds_ada_norm)
    return transformer(noisy, timestep=timesteps, class_labels=labels).sample


def train(
    data: Latents,
    options: TrainingOptions,
    *,
    build: Callable[[], DiTTransformer2DModel] = build_transformer,
    prediction: str = "epsilon",
) -> DiTTransformer2DModel | None:
    """Train a transformer; once the run is complete, write its average to ``options.out``.

    Args:
        data: The encoded training set.
        options: The options of the run.
        build: Builds the untrained transformer.
        prediction: What it learns to give, one of `PREDICTIONS`.

    Returns:
        The moving average in evaluation mode, or None if the session ended before the run.
    """
    torch.manual_seed(options.seed)
    transformer = build().train()
    ema = copy.deepcopy(transformer).eval().requires_grad_(False)
    scheduler = build_scheduler(prediction)

    def compute(index: Tensor) -> Tensor:
        batch = transformer, data.draw(index), data.labels[index]
        if prediction == "flow":
            return compute_flow_loss(*batch, len(scheduler))
        return compute_loss(*batch, scheduler.alphas_cumprod)

    # The scaling factor follows from every latent: it tells apart latents of different VAEs.
    identity = {"scaling_factor": data.scaling_factor, "is_flow": prediction == "flow"}
    if not RECIPE.fit(transformer, compute, len(data.labels), options, ema=ema, **identity):
        return None
    ema.save_pretrained(options.out / "transformer")
    return ema


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    return run_command(Options, run, argv)


def run(options: Options) -> None:
    """Train and write."""
    build = partial(
        build_transformer,
        num_layers=options.num_layers,
        num_attention_heads=options.num_attention_heads,
    )
    config = build().config
    data = load_latents(
        options.out / FILE_NAME, num_channels=config.in_channels, size=config.sample_size
    )
    if train(data, options, build=build, prediction=options.prediction) is not None:
        print(f"wrote {options.out / 'transformer'}")


if __name__ == "__main__":
    sys.exit(main())
