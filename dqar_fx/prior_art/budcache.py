"""BudCache (arXiv 2606.13496), whose search writes down the steps that compute nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from dqar_fx.errors import ScheduleError
from dqar_fx.schedule.schedule import Schedule, check_at_least

from .learning_to_cache import UNREADABLE, load_checkpoint


def read_budcache(
    steps: str | Path | Mapping[str, Any] | Sequence[int],
    num_steps: int,
    *,
    sites: str | tuple[str, ...] = "span",
) -> Schedule:
    """Read the steps at which BudCache's search found that nothing need be computed.

    At these steps what all blocks of the model added at the last computed step is added
    again. Its search fixes how many steps compute, and looks for the steps by simulated
    annealing, then by hill climbing; timesteps that it has learned in a second stage are not
    in this file.

    Args:
        steps: The checkpoint of its first stage, or its content: ``{"cache_step": [2, 3, 5,
            ...]}``, or these numbers alone, counted from 0.
        num_steps: Steps of the trajectory, which the checkpoint does not tell.
        sites: Sites that the steps are for: all blocks as one.

    Returns:
        A schedule for the sites.

    Raises:
        ScheduleError: The checkpoint cannot be read, or a number is no step after the first.

    Source:
        Lei et al. 2026, arXiv 2606.13496; Westlake-AGI-Lab/BudCache,
        scripts/stage1_search_flux.py and src/flux/dit_forward.py.
    """
    check_at_least(1, num_steps=num_steps)
    cached = read_steps(steps)
    for step in cached:
        is_whole = isinstance(step, Integral) and not isinstance(step, bool)
        if not is_whole or not 0 < step < num_steps:
            raise ScheduleError(
                f"BudCache's cache_step has {step!r}: expected steps from 1 to "
                f"{num_steps - 1}, since the first of {num_steps} computes"
            )
    letters = "".join("R" if step in cached else "C" for step in range(num_steps))
    return replace(Schedule.from_actions(letters), sites=sites)


def read_steps(steps: str | Path | Mapping[str, Any] | Sequence[int]) -> list[Any]:
    """Return the numbers of a checkpoint or its content.

    Raises:
        ScheduleError: They cannot be read.
    """
    content: Any = steps
    if isinstance(steps, str | Path):
        try:
            content = load_checkpoint(Path(steps))
        except UNREADABLE as error:
            raise ScheduleError(
                f"no steps of BudCache can be read from {steps}: {type(error).__name__}: "
                f'{error}. Expected a checkpoint of torch: {{"cache_step": [2, 3, 5, ...]}}'
            ) from error
    if isinstance(content, Mapping):
        content = content.get("cache_step")
    if isinstance(content, np.ndarray):
        content = content.tolist()
    if not isinstance(content, Sequence) or isinstance(content, str):
        raise ScheduleError(
            f'expected BudCache\'s {{"cache_step": [2, 3, 5, ...]}}, found {content!r}'
        )
    return list(content)
