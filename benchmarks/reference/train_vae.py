"""Train the VAE of the reference pipeline and encode the training set with it.

Writes ``vae/``, ``latents.safetensors`` and ``vae.checkpoint.pt`` to ``--out``. An interrupted
run continues from its last checkpoint when started again with the same options.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from benchmarks.reference import latents
from benchmarks.reference.checkpoint import TrainingState
from benchmarks.reference.data import Split, load_split
from benchmarks.reference.errors import report_input_errors
from benchmarks.reference.models import build_vae
from benchmarks.reference.options import parse_training_options
from benchmarks.reference.training import LearningRate, Options, fit

LEARNING_RATE = LearningRate(peak=1.5e-3, warmup_steps=100)
DEFAULT_STEPS = 5000
DEFAULT_BATCH_SIZE = 32


def compute_loss(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Return squared error + 0.2 absolute error + a slight pull towards Gaussian latents."""
    posterior = vae.encode(images).latent_dist
    decoded = vae.decode(posterior.sample()).sample
    num_positions = posterior.mean.shape[-2] * posterior.mean.shape[-1]
    kl = posterior.kl().mean() / num_positions
    return F.mse_loss(decoded, images) + 0.2 * F.l1_loss(decoded, images) + 1e-4 * kl


def train(
    data: Split, options: Options, *, build: Callable[[], AutoencoderKL] = build_vae
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
    optimiser = torch.optim.AdamW(vae.parameters(), LEARNING_RATE.peak, betas=(0.9, 0.99))

    def draw_loss() -> Tensor:
        index = torch.randint(len(data.images), (options.batch_size,))
        return compute_loss(vae, data.images[index])

    complete = fit(
        TrainingState(vae, optimiser),
        draw_loss,
        LEARNING_RATE,
        options,
        checkpoint=options.out / "vae.checkpoint.pt",
        identity={
            "seed": options.seed,
            "batch_size": options.batch_size,
            "num_images": len(data.images),
            "num_parameters": vae.num_parameters(),
        },
    )
    if not complete:
        return None
    vae.eval().to(memory_format=torch.contiguous_format)
    export(vae, data, options)
    return vae


@torch.no_grad()
def export(vae: AutoencoderKL, data: Split, options: Options) -> None:
    """Set the VAE's scaling factor from the data, then write the VAE and the encoded data."""
    moments = torch.cat([encode_moments(vae, batch) for batch in data.images.split(1000)])
    scaling_factor = 1 / moments.chunk(2, dim=1)[0].std().item()
    vae.register_to_config(scaling_factor=scaling_factor)
    vae.save_pretrained(options.out / "vae")
    encoded = latents.Latents(moments, data.labels, scaling_factor)
    latents.save_latents(options.out / latents.FILE_NAME, encoded)


def encode_moments(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Return the mean and the log variance of each latent, as channels side by side."""
    posterior = vae.encode(images).latent_dist
    return torch.cat([posterior.mean, posterior.logvar], dim=1)


@torch.no_grad()
def measure_psnr_db(vae: AutoencoderKL, images: Tensor) -> float:
    """Return the PSNR of decoding the most likely latents; the images span [-1, 1]."""
    decoded = [
        vae.decode(vae.encode(batch).latent_dist.mode()).sample for batch in images.split(250)
    ]
    return (10 * torch.log10(4 / F.mse_loss(torch.cat(decoded), images))).item()


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    options = parse_training_options(
        argv, description=__doc__ or "", steps=DEFAULT_STEPS, batch_size=DEFAULT_BATCH_SIZE
    )
    with report_input_errors():
        data, test = load_split("train"), load_split("test")
        vae = train(data, options)
    if vae is None:
        print(f"stopped at step {options.last_step} of {options.steps}: run again to continue")
        return
    images = test.images[:1000]
    psnr_db = measure_psnr_db(vae, images)
    print(f"wrote {options.out / 'vae'}: {psnr_db:.2f} dB PSNR on {len(images)} test images")


if __name__ == "__main__":
    main()
