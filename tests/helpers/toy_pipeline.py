"""A small model with attention, and something like a pipeline around it."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from diffusers import DDIMScheduler
from torch import nn

from tests.helpers.models import Attention, seeded

WIDTH, TOKENS = 8, 6
QUIET = {"progress": False}


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(WIDTH), Attention(WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH)

    def forward(self, x, shift):
        x = x + self.attn(self.norm(x) + shift)
        return x + self.mix(x).tanh()


class Toy(nn.Module):
    """Two blocks; reads a timestep and a text."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.shift = nn.Linear(1, WIDTH)

    def forward(self, hidden_states, timestep, encoder_hidden_states):
        shift = self.shift(timestep.to(hidden_states.dtype)[:, None, None] / 1000)
        x = hidden_states + encoder_hidden_states
        for block in self.blocks:
            x = block(x, shift)
        return x


def make_toy(seed=0):
    torch.manual_seed(seed)
    toy = Toy()
    for name, parameter in toy.named_parameters():
        size = 2.0 if "qkv" in name else 1.0  # attention that is not all alike
        nn.init.normal_(parameter, std=size / parameter.shape[-1] ** 0.5)
    return toy.eval()


class Pipeline:
    """Denoises with one call of the transformer per stream and step.

    Args:
        streams: Names of the calls of each step.
        named: Whether it names them for the transformer.
        options: More arguments of ``set_timesteps``.
        kept_length: Steps that it takes, whatever it is asked.
    """

    def __init__(
        self, scheduler=None, streams=("cond",), *, named=True, kept_length=None, **options
    ):
        self.transformer = make_toy()
        self.scheduler = DDIMScheduler(clip_sample=False) if scheduler is None else scheduler
        self.streams, self.named, self.kept_length = streams, named, kept_length
        self.options, self.pictures, self.calls = options, [], []

    def __call__(self, labels, *, num_inference_steps, generator, gain=0.5):
        dtype = next(self.transformer.parameters()).dtype
        latent = torch.randn(len(labels), TOKENS, WIDTH, generator=generator).to(dtype)
        texts = self.texts(labels, dtype)
        self.scheduler.set_timesteps(self.kept_length or num_inference_steps, **self.options)
        for index, timestep in enumerate(self.scheduler.timesteps):
            answers = []
            for stream in self.streams:
                self.calls.append((index, stream))
                answers.append(self.ask(stream, latent, timestep, texts[stream]))
            answer = gain * torch.stack(answers).mean(0)
            latent = self.scheduler.step(answer, timestep, latent).prev_sample
        self.pictures.append(latent)

    def texts(self, labels, dtype):
        """A text per stream and label."""
        return {
            stream: torch.stack([seeded(1, WIDTH).roll(label + 3 * i) for label in labels]).to(
                dtype
            )
            for i, stream in enumerate(self.streams)
        }

    @torch.no_grad()
    def ask(self, stream, latent, timestep, text):
        with self.context(stream):
            times = timestep.expand(len(latent))
            return self.transformer(latent, times, encoder_hidden_states=text)

    def context(self, stream, **more):
        """What tells a denoiser the stream; the original knows of none."""
        if not self.named or not hasattr(self.transformer, "cache_context"):
            return nullcontext()
        return self.transformer.cache_context(stream, **more)
