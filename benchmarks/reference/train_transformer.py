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

import torch
import torch.nn.functional as F
from diffusers import DiTTransformer2DModel
from torch import Tensor

from benchmarks.harness.options import Count, run_command
from benchmarks.reference.data import FILE_NAME, Latents, load_latents
from benchmarks.reference.models import TRANSFORMER_CONFIG, build_scheduler, build_transformer
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


def draw_timesteps(batch_size: int, num_timesteps: int) -> Tensor:
    """Draw one timestep from each of ``batch_size`` equal strata, in random order."""
    uniform = (torch.randperm(batch_size) + torch.rand(batch_size)) / batch_size
    return (uniform * num_timesteps).long().clamp(0, num_timesteps - 1)


def drop_labels(labels: Tensor, null_label: int) -> Tensor:
    """Replace a tenth of the labels by the null label, for classifier-free guidance."""
    is_dropped = torch.rand(len(labels)) < NULL_LABEL_RATE
    return torch.where(is_dropped, null_label, labels)


def compute_loss(
    transformer: DiTTransformer2DModel, latents: Tensor, labels: Tensor, alphas_cumprod: Tensor
) -> Tensor:
    """Return the squared error of the noise that the transformer predicts."""
    timesteps = draw_timesteps(len(latents), len(alphas_cumprod))
    noise = torch.randn_like(latents)
    alpha = alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    labels = drop_labels(labels, transformer.config.num_embeds_ada_norm)
    predicted = transformer(noisy, timestep=timesteps, class_labels=labels).sample
    return F.mse_loss(predicted, noise)


def train(
    data: Latents,
    options: TrainingOptions,
    *,
    build: Callable[[], DiTTransformer2DModel] = build_transformer,
) -> DiTTransformer2DModel | None:
    """Train a transformer; once the run is complete, write its average to ``options.out``.

    Args:
        data: The encoded training set.
        options: The options of the run.
        build: Builds the untrained transformer.

    Returns:
        The moving average in evaluation mode, or None if the session ended before the run.
    """
    torch.manual_seed(options.seed)
    transformer = build().train()
    ema = copy.deepcopy(transformer).eval().requires_grad_(False)
    alphas_cumprod = build_scheduler().alphas_cumprod

    def compute(index: Tensor) -> Tensor:
        return compute_loss(transformer, data.draw(index), data.labels[index], alphas_cumprod)

    # The scaling factor follows from every latent: it tells apart latents of different VAEs.
    identity = {"scaling_factor": data.scaling_factor}
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
    if train(data, options, build=build) is not None:
        print(f"wrote {options.out / 'transformer'}")


if __name__ == "__main__":
    sys.exit(main())
