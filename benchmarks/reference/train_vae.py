"""Train the VAE of the reference pipeline and encode the training set with it.

Writes ``vae/``, ``latents.safetensors`` and ``vae.checkpoint.pt`` to ``--out``. An interrupted
run continues from its last checkpoint when started again with the same options.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from benchmarks.harness.options import Count, run_command
from benchmarks.reference.data import FILE_NAME, Latents, Split, load_split, save_latents
from benchmarks.reference.models import build_vae
from benchmarks.reference.training import Recipe, TrainingOptions

RECIPE = Recipe("vae", peak=1.5e-3, warmup_steps=100)


@dataclass(frozen=True)
class Options(TrainingOptions):
    """Options of this command."""

    COMMAND = "benchmarks.reference.train_vae"

    steps: Count = 5000
    """Length of the run and its schedule."""
    batch_size: Count = 32
    """Images per step."""


def compute_loss(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Return squared error + 0.2 absolute error + a slight pull towards Gaussian latents."""
    posterior = vae.encode(images).latent_dist
    decoded = vae.decode(posterior.sample()).sample
    num_positions = posterior.mean.shape[-2] * posterior.mean.shape[-1]
    kl = posterior.kl().mean() / num_positions
    return F.mse_loss(decoded, images) + 0.2 * F.l1_loss(decoded, images) + 1e-4 * kl


def train(
    data: Split, options: TrainingOptions, *, build: Callable[[], AutoencoderKL] = build_vae
) -> AutoencoderKL | None:
    """Train a VAE; once the run is complete, write it and the encoded data to ``options.out``.

    Args:
        data: The training set.
        options: The options of the run.
        build: Builds the untrained VAE.

    Returns:
        The trained VAE in evaluation mode, or None if the session ended before the run.
    """
    torch.manual_seed(options.seed)
    vae = build().train()
    if not RECIPE.fit(
        vae, lambda index: compute_loss(vae, data.images[index]), len(data.images), options
    ):
        return None
    vae.eval().to(memory_format=torch.contiguous_format)
    export(vae, data, options)
    return vae


@torch.no_grad()
def export(vae: AutoencoderKL, data: Split, options: TrainingOptions) -> None:
    """Set the VAE's scaling factor from the data, then write the VAE and the encoded data."""
    posteriors = [vae.encode(batch).latent_dist for batch in data.images.split(1000)]
    moments = torch.cat([torch.cat([each.mean, each.logvar], dim=1) for each in posteriors])
    scaling_factor = 1 / moments.chunk(2, dim=1)[0].std().item()
    vae.register_to_config(scaling_factor=scaling_factor)
    vae.save_pretrained(options.out / "vae")
    save_latents(options.out / FILE_NAME, Latents(moments, data.labels, scaling_factor))


@torch.no_grad()
def measure_psnr_db(vae: AutoencoderKL, images: Tensor) -> float:
    """Return the PSNR of decoding the most likely latents; the images span [-1, 1]."""
    decoded = [
        vae.decode(vae.encode(batch).latent_dist.mode()).sample for batch in images.split(250)
    ]
    return (10 * torch.log10(4 / F.mse_loss(torch.cat(decoded), images))).item()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    return run_command(Options, run, argv)


def run(options: Options) -> None:
    """Train, write and tell the PSNR."""
    data, test = load_split("train"), load_split("test")
    vae = train(data, options)
    if vae is None:
        return
    images = test.images[:1000]
    psnr_db = measure_psnr_db(vae, images)
    print(f"wrote {options.out / 'vae'}: {psnr_db:.2f} dB PSNR on {len(images)} test images")


if __name__ == "__main__":
    sys.exit(main())
