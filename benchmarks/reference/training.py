"""What all trainers share: options, learning rate, step, moving average, checkpoints."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.harness.options import Command, Count, at_least, default_is
from benchmarks.reference import OUT
from benchmarks.reference.checkpoint import TrainingState, load_checkpoint, save_checkpoint

_EMA_EVERY = 2
_EMA_MAX_DECAY = 0.999


@dataclass(frozen=True)
class TrainingOptions(Command):
    """Options of a trainer; each has its own number of steps and size of batches."""

    out: Path = OUT
    """Folder that the scripts share."""
    steps: Count = 1
    """Length of the run and its schedule."""
    batch_size: Count = 1
    """Images per step."""
    seed: int = 0
    """Seed of weights, batches and noise."""
    checkpoint_every: Count = 200
    """Steps between checkpoints."""
    resume: bool = True
    """Continue from the checkpoint in --out if there is one."""
    stop_at: Annotated[int | None, at_least(1), default_is("the end of the run")] = None
    """End this session early, at this step."""
    threads: Count = 2
    """CPU threads; results depend on them."""

    @property
    def last_step(self) -> int:
        """The step at which this session ends; the run itself ends at ``steps``."""
        return self.steps if self.stop_at is None else min(self.stop_at, self.steps)

    def settle(self) -> Self:
        """The same; sets the threads."""
        torch.set_num_threads(self.threads)
        return super().settle()


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Its learning rate warms up linearly to ``peak``, times a half cosine that falls from 1 to
    ``floor``.

    Attributes:
        name: Of what is trained: ``{name}.checkpoint.pt`` is its checkpoint.
        peak: Highest learning rate.
        warmup_steps: Steps of the warm-up.
        floor: Share of the learning rate at the end.
        weight_decay: Of AdamW.
    """

    name: str
    peak: float
    warmup_steps: int
    floor: float = 0.0
    weight_decay: float = 0.01

    def learning_rate(self, step: int, num_steps: int) -> float:
        """Return the learning rate of one step, counted from 0. It depends on nothing else."""
        warmup = min(1.0, (step + 1) / self.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * step / num_steps))
        return self.peak * warmup * (self.floor + (1 - self.floor) * cosine)

    def fit(
        self,
        net: nn.Module,
        compute_loss: Callable[[Tensor], Tensor],
        num_images: int,
        options: TrainingOptions,
        *,
        ema: nn.Module | None = None,
        **identity: float,
    ) -> bool:
        """Train up to ``options.last_step``, from the checkpoint if there is one.

        Args:
            net: What is trained. Changed in place.
            compute_loss: Returns the loss of the images of a batch, by their numbers.
            num_images: Images that batches are drawn from, by PyTorch's random numbers.
            options: The options of the run.
            ema: The moving average of ``net``. Changed in place.
            **identity: What else a run must share with a checkpoint to continue from it.

        Returns:
            Whether the run is complete.
        """
        optimiser = torch.optim.AdamW(
            net.parameters(), self.peak, betas=(0.9, 0.99), weight_decay=self.weight_decay
        )
        state = TrainingState(net, optimiser, ema)
        checkpoint = options.out / f"{self.name}.checkpoint.pt"
        identity |= {
            "steps": options.steps,
            "seed": options.seed,
            "batch_size": options.batch_size,
            "num_images": num_images,
            "num_parameters": sum(parameter.numel() for parameter in net.parameters()),
        }
        if options.resume and checkpoint.exists():
            load_checkpoint(checkpoint, state, identity)
        steps = range(state.step, options.last_step)
        mean_loss = None
        with tqdm(steps, initial=state.step, total=options.steps) as bar:
            for step in bar:
                index = torch.randint(num_images, (options.batch_size,))
                rate = self.learning_rate(step, options.steps)
                loss = take_step(state, compute_loss(index), rate)
                mean_loss = loss if mean_loss is None else 0.99 * mean_loss + 0.01 * loss
                bar.set_postfix(loss=f"{mean_loss:.4f}", refresh=False)
                is_last = state.step == options.last_step
                if state.step % options.checkpoint_every == 0 or is_last:
                    save_checkpoint(checkpoint, state, identity)
        if state.step < options.steps:
            print(f"stopped at step {state.step} of {options.steps}: run again to continue")
        return state.step == options.steps


def take_step(state: TrainingState, loss: Tensor, learning_rate: float) -> float:
    """Take one optimiser step and return the loss before it."""
    for group in state.optimiser.param_groups:
        group["lr"] = learning_rate
    state.optimiser.zero_grad()
    loss.backward()
    # A checkpoint of a diverged run would be of no use: stop before it is written.
    torch.nn.utils.clip_grad_norm_(state.model.parameters(), 1.0, error_if_nonfinite=True)
    state.optimiser.step()
    state.step += 1
    update_ema(state)
    return loss.item()


@torch.no_grad()
def update_ema(state: TrainingState) -> None:
    """Move the average towards the model: every second step, with the decay of two steps."""
    if state.ema is None or state.step % _EMA_EVERY != 0:
        return
    decay = min(_EMA_MAX_DECAY, (1 + state.step) / (10 + state.step)) ** _EMA_EVERY
    pairs = zip(state.ema.parameters(), state.model.parameters(), strict=True)
    for average, parameter in pairs:
        average.lerp_(parameter, 1 - decay)
