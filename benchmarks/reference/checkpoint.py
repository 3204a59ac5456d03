"""Checkpoints that continue a training run exactly.

A file holds all that the next step depends on: model, moving average, optimiser, the state of
PyTorch's CPU random numbers and the step. So N steps equal K steps, a restart, and N - K more,
bit for bit, on the same machine with the same number of threads. It also holds the identity of
its run (seed, batch size, number of steps, ...): no other run may continue from it.
"""

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.harness.errors import InputError
from benchmarks.harness.store import Identity, describe_difference

_KEYS = frozenset(("identity", "step", "rng", "model", "optimiser", "ema"))


@dataclass
class TrainingState:
    """What training changes."""

    model: nn.Module
    optimiser: torch.optim.Optimizer
    ema: nn.Module | None = None
    step: int = 0


@contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it replaces ``path`` at once.

    A process that is killed while it writes leaves the former file as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save_checkpoint(path: Path, state: TrainingState, identity: Identity) -> None:
    """Write the state, atomically."""
    content = {
        "identity": dict(identity),
        "step": state.step,
        "rng": torch.get_rng_state(),
        "model": state.model.state_dict(),
        "optimiser": state.optimiser.state_dict(),
        "ema": state.ema.state_dict() if state.ema is not None else None,
    }
    with replace_atomically(path) as temporary:
        torch.save(content, temporary)


def load_checkpoint(path: Path, state: TrainingState, identity: Identity) -> None:
    """Put the saved state into ``state`` and into PyTorch's random numbers.

    Raises:
        InputError: If the file cannot be read or belongs to a run of another identity.
    """
    content = _read(path)
    if content["identity"] != identity:
        difference = describe_difference(content["identity"], identity)
        raise InputError(
            f"checkpoint {path} belongs to another run ({difference}). Repeat the options of "
            "that run, choose another --out, or pass --no-resume to start over."
        )
    state.model.load_state_dict(content["model"])
    state.optimiser.load_state_dict(content["optimiser"])
    if state.ema is not None:
        state.ema.load_state_dict(content["ema"])
    state.step = content["step"]
    torch.set_rng_state(content["rng"])


def _read(path: Path) -> dict[str, Any]:
    restart = "Delete it or pass --no-resume to start from the beginning."
    try:
        content = torch.load(path, weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise InputError(f"checkpoint {path} cannot be read ({error}). {restart}") from error
    if not isinstance(content, dict) or content.keys() != _KEYS:
        raise InputError(f"{path} is not a checkpoint of these scripts. {restart}")
    return content
