"""The loop that all trainers share: learning rate, step, moving average, checkpoints."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.reference.checkpoint import (
    Identity,
    TrainingState,
    load_checkpoint,
    save_checkpoint,
)

_EMA_EVERY = 2
_EMA_MAX_DECAY = 0.999


@dataclass(frozen=True)
class Options:
    """What the command line decides."""

    out: Path
    steps: int
    batch_size: int
    seed: int = 0
    checkpoint_every: int = 200
    resume: bool = True
    stop_at: int | None = None
    show_progress: bool = True
    shape: dict[str, int] = field(default_factory=dict)
    """Sizes of the model that differ from the reference's."""

    @property
    def last_step(self) -> int:
        """The step at which this session ends; the run itself ends at ``steps``."""
        return self.steps if self.stop_at is None else min(self.stop_at, self.steps)


@dataclass(frozen=True)
class LearningRate:
    """A linear warm-up to ``peak``, times a half cosine that falls from 1 to ``floor``."""

    peak: float
    warmup_steps: int
    floor: float = 0.0

    def at(self, step: int, num_steps: int) -> float:
        """Return the learning rate of one step, counted from 0. It depends on nothing else."""
        warmup = min(1.0, (step + 1) / self.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * step / num_steps))
        return self.peak * warmup * (self.floor + (1 - self.floor) * cosine)


def fit(
    state: TrainingState,
    compute_loss: Callable[[], Tensor],
    learning_rate: LearningRate,
    options: Options,
    *,
    checkpoint: Path,
    identity: Identity,
) -> bool:
    """Train up to ``options.last_step``, from the checkpoint if there is one.

    Args:
        state: What is trained. Changed in place.
        compute_loss: Draws a batch from PyTorch's random numbers and returns its loss.
        learning_rate: The schedule.
        options: The options of the run.
        checkpoint: File to continue from, and to write as often as the options say.
        identity: What a run must share with a checkpoint in order to continue from it.

    Returns:
        Whether the run is complete.
    """
    identity = {"steps": options.steps, **identity}
    if options.resume and checkpoint.exists():
        load_checkpoint(checkpoint, state, identity)
    steps = range(state.step, options.last_step)
    mean_loss = None
    with tqdm(
        steps, initial=state.step, total=options.steps, disable=not options.show_progress
    ) as bar:
        for step in bar:
            loss = take_step(state, compute_loss, learning_rate.at(step, options.steps))
            mean_loss = loss if mean_loss is None else 0.99 * mean_loss + 0.01 * loss
            bar.set_postfix(loss=f"{mean_loss:.4f}", refresh=False)
            if state.step % options.checkpoint_every == 0 or state.step == options.last_step:
                save_checkpoint(checkpoint, state, identity)
    return state.step == options.steps


def take_step(state: TrainingState, compute_loss: Callable[[], Tensor], lr: float) -> float:
    """Take one optimiser step and return the loss before it."""
    for group in state.optimiser.param_groups:
        group["lr"] = lr
    loss = compute_loss()
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
