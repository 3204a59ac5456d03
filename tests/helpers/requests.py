"""Requests to one small denoiser: loops of calls that can stop between any two of them."""

from __future__ import annotations

import torch

from tests.helpers.models import seeded
from tests.helpers.toy_pipeline import TOKENS, WIDTH

STEPS = 6


def prompt(seed, batch=2):
    return seeded(batch, 1, WIDTH) + seed


def request(denoiser, seed, *, streams=2, steps=STEPS, batch=2, names=None, first=0):
    """A generator of the latents after each step; it stops after each call, too, with None."""
    generator = torch.Generator().manual_seed(seed)
    latent = torch.randn(batch, TOKENS, WIDTH, generator=generator)
    texts = [prompt(seed + 10 * stream, batch) for stream in range(streams)]
    for t in torch.linspace(900, 100, steps)[first:]:
        outputs = []
        for stream, text in enumerate(texts):
            outputs.append(ask(denoiser, latent, t, text, names and names[stream]))
            yield None
        latent = latent - 0.2 * torch.stack(outputs).mean(0)
        yield latent


@torch.no_grad()
def ask(denoiser, latent, t, text, name=None):
    """One call."""
    if name is None:
        return denoiser(latent, t.expand(len(latent)), encoder_hidden_states=text)
    with denoiser.cache_context(name):
        return denoiser(latent, t.expand(len(latent)), encoder_hidden_states=text)


def ask_each(denoiser, latents, texts, top=900.0, low=100.0):
    """One call for each latent and text, at falling timesteps; what they gave."""
    timesteps = torch.linspace(top, low, max(len(texts), STEPS))
    return [
        ask(denoiser, x, t, text)
        for x, t, text in zip(latents, timesteps, texts, strict=False)
    ]


def finish(calls):
    """All latents of a request that goes on to its end."""
    return [latent for latent in calls if latent is not None]


def run(denoiser, seed, **given):
    """The latents of a whole request."""
    return finish(request(denoiser, seed, **given))


def are_equal(found, wanted):
    """Whether two requests gave the same latents bit for bit."""
    return len(found) == len(wanted) and all(map(torch.equal, found, wanted))


def slot_bytes(denoiser):
    """Bytes of all kept outputs of a denoiser."""
    return sum(
        stream.slots.nbytes
        for program in denoiser.captured_programs()
        for stream in program.streams.values()
    )
