"""The smallest denoiser with two attentions, and what it gives if some of them are not run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tests.helpers.models import Attention

if TYPE_CHECKING:
    from collections.abc import Callable

WIDTH, TOKENS, SITES = 4, 2, 2


class Tiny(nn.Module):
    """Reads two timesteps, a prompt and a residual; the second timestep and that may lack."""

    def __init__(self):
        super().__init__()
        self.attentions = nn.ModuleList(Attention(WIDTH) for _ in range(SITES))
        self.shift = nn.Linear(1, WIDTH)

    def forward(
        self, hidden_states, timestep, encoder_hidden_states, timestep_r=None, residual=None
    ):
        inputs = (hidden_states, timestep, encoder_hidden_states, timestep_r, residual)
        return self.walk(lambda _site, attention, x: attention(x), *inputs)

    def walk(
        self, attend: Callable[..., torch.Tensor], x, timestep, prompt, timestep_r, residual
    ):
        """Run all but the attentions, which ``attend(site, attention, x)`` stands for."""
        x = x + prompt
        for time in (timestep, timestep_r):
            if time is not None:
                x = x + self.shift(time.to(x.dtype)[:, None, None] / 1000)
        for site, attention in enumerate(self.attentions):
            x = x + attend(site, attention, x)
        return x if residual is None else x + residual * x


def make_tiny() -> Tiny:
    """Weights under which another prompt, latent or step is another output."""
    torch.manual_seed(0)
    tiny = Tiny()
    for parameter in tiny.parameters():
        nn.init.normal_(parameter, std=0.7)
    return tiny.eval().requires_grad_(False)


@torch.no_grad()
def run_with(
    tiny: Tiny, inputs: dict[str, Any], replaced: dict[int, torch.Tensor]
) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
    """What the model gives with some attentions' outputs replaced; and those of the others."""
    computed: dict[int, torch.Tensor] = {}

    def attend(site: int, attention: nn.Module, x: torch.Tensor) -> torch.Tensor:
        if site in replaced:
            return replaced[site]
        computed[site] = attention(x)
        return computed[site]

    order = ("hidden_states", "timestep", "encoder_hidden_states", "timestep_r", "residual")
    output = tiny.walk(attend, *(inputs.get(name) for name in order))
    return output, computed
