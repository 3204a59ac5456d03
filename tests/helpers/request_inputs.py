"""What a request passes to a denoiser: latents, timesteps, prompts, and data of each step."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING

import torch

from tests.helpers.tiny_denoiser import TOKENS, WIDTH

if TYPE_CHECKING:
    from tests.helpers.request_programs import Request, Stream


def text(prompt: int, batch: int) -> torch.Tensor:
    """A prompt, the same in all samples, as a new object."""
    values = torch.randn(1, TOKENS, WIDTH, generator=torch.Generator().manual_seed(prompt))
    return values.repeat(batch, 1, 1)


@dataclass
class Shared:
    """Tensors that several requests pass.

    Attributes:
        prompts: By number and batch.
        latents: By batch.
        numbers: What seeds the numbers of each request.
    """

    prompts: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)
    latents: dict[int, torch.Tensor] = field(
        default_factory=lambda: {n: torch.zeros(n, TOKENS, WIDTH) for n in (1, 2)}
    )
    numbers: count = field(default_factory=lambda: count(1))

    def prompt(self, prompt: int, batch: int) -> torch.Tensor:
        """The object that all requests share which have this prompt."""
        if (prompt, batch) not in self.prompts:
            self.prompts[prompt, batch] = text(prompt, batch)
        return self.prompts[prompt, batch]


class Inputs:
    """What one request passes.

    Args:
        request: The request.
        shared: What others pass, too.
        is_alone: Whether no other request runs at the same time.
    """

    def __init__(self, request: Request, shared: Shared, *, is_alone: bool) -> None:
        self.request, self.shared, self.is_alone = request, shared, is_alone
        self.seeds = count(1 if request.repeats else 1000 * next(shared.numbers))
        self.own: dict[int, torch.Tensor] = {}  # prompts of its own, by stream

    def random(self, batch: int) -> torch.Tensor:
        """Other numbers at each call."""
        generator = torch.Generator().manual_seed(next(self.seeds))
        return torch.randn(batch, TOKENS, WIDTH, generator=generator)

    def batch_at(self, step: int) -> int:
        """How many samples there are."""
        request = self.request
        is_resized = request.resize is not None and step >= request.resize
        return 3 - request.batch if is_resized else request.batch

    def latent_at(self, batch: int, before: torch.Tensor | None) -> torch.Tensor:
        """The latent of a step, maybe written to that of the step before."""
        made = self.random(batch)
        if self.request.latents == "shared" and self.is_alone:
            return self.shared.latents[batch].copy_(made)
        if self.request.latents != "new" and before is not None and len(before) == batch:
            return before.copy_(made)
        return made

    def value_at(self, step: int) -> float:
        """A timestep that no scheduler gives."""
        request = self.request
        step -= request.equal is not None and 0 < request.equal <= step
        return 100.0 + 100 * step if request.rises else 900.0 - 100 * step

    def times_at(self, step: int, values: torch.Tensor) -> torch.Tensor:
        """The timesteps of a call."""
        request = self.request
        if request.samples == "one":
            time = values[step].reshape(1)
            return (
                time if request.clock != "value" and request.times == "step" else time.clone()
            )
        other = torch.zeros(()) if request.samples == "frames" else values[step] / 3
        return torch.stack([other.to(values.dtype), values[step]])

    def prompt_number(self, place: int, step: int) -> tuple[Stream, int, int]:
        """Whose prompt a stream has at a step: the stream, its place, the prompt's number."""
        request = self.request
        if request.swap is not None and step >= request.swap and len(request.streams) > 1:
            place = 1 - place if place < 2 else place
        stream = request.streams[place]
        number, is_changed = stream.prompt, stream.change is not None and step >= stream.change
        if is_changed:
            number += 10 * (place + 1) + (100 * step if stream.how == "travels" else 0)
        return stream, place, number

    def prompt_at(self, place: int, step: int, batch: int) -> torch.Tensor:
        """The prompt of a stream at a step."""
        stream, place, number = self.prompt_number(place, step)
        if stream.is_renewed:
            return text(number, batch)
        if stream.how == "in place" and stream.change is not None:
            own = self.own.get(place)
            if own is None or len(own) != batch:
                own = self.own[place] = text(number, batch)
            wanted = text(number, batch)
            return own if torch.equal(own, wanted) else own.copy_(wanted)
        return self.shared.prompt(number, batch)

    def data_at(self, step: int, batch: int) -> dict[str, torch.Tensor]:
        """A second timestep and a residual."""
        kind = self.request.data
        if kind == "none" or (kind == "ends" and step >= self.request.length // 2):
            return {}
        varied = 0 if kind == "constant" else step - (kind == "mostly" and step >= 2)
        generator = torch.Generator().manual_seed(77 + varied)
        residual = torch.randn(batch, TOKENS, WIDTH, generator=generator)
        return {"timestep_r": torch.full((1,), 50.0 * varied), "residual": residual}
