"""Models whose blocks can be captured and whose forward cannot: it reads what it denoises."""

from __future__ import annotations

import torch
from torch import nn

from tests.helpers.models import Attention

WIDTH = 16


class Block(nn.Module):
    """Attention and feed-forward; returns a tuple with a None, and takes keywords."""

    def __init__(self):
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(WIDTH), Attention(WIDTH)
        self.ff = nn.Sequential(nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH))

    def forward(self, x, temb, *, scale=None, mask=None, cache=None):
        x = x + self.attn(self.norm(x)) * temb[:, None]
        if cache is not None:
            cache.append(len(cache))
        return x + self.ff(x) * (1.0 if scale is None else scale), mask


class WritingBlock(Block):
    """A block that writes to its input."""

    def forward(self, x, temb):
        x += 1.0
        return super().forward(x, temb)


class Cache:
    """No pytree, and no sequence."""

    def __init__(self):
        self.calls = []

    def append(self, number):
        self.calls.append(number)

    def __len__(self):
        return len(self.calls)


class Blocks(nn.Module):
    """Blocks that are called as a function says, after a read of what is denoised.

    Args:
        body: Calls the blocks: ``(blocks, x, temb, cache) -> x``.
        block: Their class.
    """

    def __init__(self, body, block=Block):
        super().__init__()
        torch.manual_seed(3)
        self.blocks = nn.ModuleList(block() for _ in range(3))
        self.proj, self.body = nn.Linear(WIDTH, WIDTH), body
        self.means = []

    def forward(self, x, timestep, cache=None):
        self.means.append(float(x.numpy().mean()))
        temb = torch.sin(timestep[:, None] * torch.arange(1.0, 1 + WIDTH))
        return self.proj(self.body(self.blocks, x, temb, cache))


def call_halving(blocks, x, temb, cache):
    """Python between the blocks that reads the latent."""
    for number, block in enumerate(blocks):
        x, nothing = block(x, temb, scale=1.0 + number % 2)
        assert nothing is None
        x = x * 0.5 if x.numpy().mean() > 0 else x
    return x


def call_twice(blocks, x, temb, cache):
    """Each block twice in a row."""
    for block in blocks:
        x, _ = block(*block(x, temb)[:1], temb)
    return x


def call_with_cache(blocks, x, temb, cache):
    """An object that no graph can take, in one of the blocks."""
    for number, block in enumerate(blocks):
        x, _ = block(x, temb, cache=cache if number == 1 else None)
    return x


def call_varying(blocks, x, temb, cache):
    """One of the blocks is left out while the first timestep is high."""
    for number, block in enumerate(blocks):
        if number != 1 or temb[0, 0] < 0:
            x, _ = block(x, temb)
    return x


def call_copies(blocks, x, temb, cache):
    """Each block on a copy of what it is given."""
    for block in blocks:
        x, _ = block(x.clone(), temb)
    return x


def inputs_at(step, batch=2, seed=0):
    """A call at a step: the sine of its timestep falls below zero at step 3."""
    generator = torch.Generator().manual_seed(100 * seed + step)
    x = torch.randn(batch, 5, WIDTH, generator=generator)
    return {"x": x, "timestep": torch.full((batch,), 0.9 + step)}
