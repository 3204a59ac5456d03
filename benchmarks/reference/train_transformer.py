"""Train the transformer of the reference pipeline on the latents that train_vae wrote.

Reads ``latents.safetensors`` in ``--out``; writes ``transformer/`` (the moving average of the
weights) and ``transformer.checkpoint.pt`` there. An interrupted run continues from its last
checkpoint when started again with the same options.
"""

import copy
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from diffusers import DiTTransformer2DModel
from torch import Tensor

from benchmarks.reference.checkpoint import TrainingState
from benchmarks.reference.errors import report_input_errors
from benchmarks.reference.latents import FILE_NAME, Latents, load_latents
from benchmarks.reference.models import (
    TRANSFORMER_CONFIG,
    build_scheduler,
    build_transformer,
)
from benchmarks.reference.options import parse_training_options
from benchmarks.reference.training import LearningRate, Options, fit

LEARNING_RATE = LearningRate(peak=1.2e-3, warmup_steps=200, floor=0.02)
DEFAULT_STEPS = 2664
DEFAULT_BATCH_SIZE = 128
NULL_LABEL_RATE = 0.1
SHAPE = ("num_layers", "num_attention_heads")
"""Sizes of the model that may be chosen."""


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
    options: Options,
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
    optimiser = torch.optim.AdamW(
        transformer.parameters(), LEARNING_RATE.peak, betas=(0.9, 0.99), weight_decay=0.0
    )
    alphas_cumprod = build_scheduler().alphas_cumprod

    def draw_loss() -> Tensor:
        index = torch.randint(len(data.labels), (options.batch_size,))
        return compute_loss(transformer, data.draw(index), data.labels[index], alphas_cumprod)

    complete = fit(
        TrainingState(transformer, optimiser, ema),
        draw_loss,
        LEARNING_RATE,
        options,
        checkpoint=options.out / "transformer.checkpoint.pt",
        identity={
            "seed": options.seed,
            "batch_size": options.batch_size,
            "num_images": len(data.labels),
            "num_parameters": transformer.num_parameters(),
            # Computed from every latent, so it tells apart latents of different VAEs.
            "scaling_factor": data.scaling_factor,
        },
    )
    if not complete:
        return None
    ema.save_pretrained(options.out / "transformer")
    return ema


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    options = parse_training_options(
        argv,
        description=__doc__ or "",
        steps=DEFAULT_STEPS,
        batch_size=DEFAULT_BATCH_SIZE,
        shape={name: TRANSFORMER_CONFIG[name] for name in SHAPE},
    )
    build = partial(build_transformer, **options.shape)
    config = build().config
    with report_input_errors():
        data = load_latents(
            options.out / FILE_NAME, num_channels=config.in_channels, size=config.sample_size
        )
        transformer = train(data, options, build=build)
    if transformer is None:
        print(f"stopped at step {options.last_step} of {options.steps}: run again to continue")
        return
    print(f"wrote {options.out / 'transformer'}")


if __name__ == "__main__":
    main()
