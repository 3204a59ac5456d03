"""Files of other systems: SmoothCache's schedules, Learning-to-Cache's routers."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from dqar_fx.errors import ScheduleError
from dqar_fx.schedule.schedule import Schedule, check_at_least

from .cells import bits_of, check_number
from .rules_written import ByComponent, Routed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

KEY = re.compile(r"(?P<component>.+?)(?P<block>-\d+)?")
"""Of a SmoothCache schedule: ``attn1``, or ``attn1-3`` for that of block 3."""
UNREADABLE = (
    OSError,
    ValueError,
    TypeError,
    RuntimeError,
    EOFError,
    UnpicklingError,
    SafetensorError,
)
"""What loaders raise for a file that is no checkpoint."""


# ---- SmoothCache ---------------------------------------------------------------------------


def read_smoothcache(
    schedule: str | Path | Mapping[str, Any], *, names: Mapping[str, str] | None = None
) -> Schedule:
    """A SmoothCache schedule, as its calibration writes it.

    ``{"attn1": [1, 0, ...], "ff": [1, 1, ...]}``: per component, which is the last part of a
    module path, 1 where it computes and 0 where it reuses; ``"attn1-3"`` is that of block 3
    alone and goes before ``"attn1"``. What the schedule does not name is always computed. A
    calibration writes no other file: the errors that it measures are not kept.

    Args:
        schedule: The JSON file, or what is in it.
        names: What the model calls a component: ``{"attn": "attn1", "mlp": "ff"}`` for a
            schedule of the original DiT and a DiT of diffusers.

    Returns:
        A schedule for the sites whose paths end in these components.

    Raises:
        ScheduleError: The file cannot be read, an entry is not 0 or 1 or the first is 0,
            lengths differ, or a name is unknown; and a component without a site, when the
            table is made.

    Source:
        Liu et al. 2024, arXiv 2411.10510; Roblox/SmoothCache, smoothcache_schedules, and
        dit-smoothcache 0.1.1, smooth_cache_helper.py.
    """
    content = read_json(schedule)
    computes = {
        key: bits_of(f"component {key!r} of the SmoothCache schedule", content[key])
        for key in content
    }
    lengths = {key: len(bits) for key, bits in computes.items()}
    if len(set(lengths.values())) != 1:
        raise ScheduleError(
            f"components of a SmoothCache schedule need one length, found {lengths}"
        )
    renamed = rename(computes, names or {})
    components = dict.fromkeys(split_key(key)[0] for key in renamed)
    patterns = tuple(f"*.{component}" for component in components)
    rule = ByComponent(tuple(renamed.items()))
    return Schedule(next(iter(lengths.values())), rule, sites=patterns)


def read_json(schedule: str | Path | Mapping[str, Any]) -> Mapping[str, Any]:
    """What is in a file of components, or is given as such.

    Raises:
        ScheduleError: It is something else.
    """
    content: Any = schedule
    if not isinstance(schedule, Mapping):
        try:
            content = json.loads(Path(schedule).read_text())
        except (OSError, ValueError, TypeError) as error:
            raise ScheduleError(
                f"no SmoothCache schedule can be read from {schedule}: "
                f"{type(error).__name__}: {error}. Expected JSON: "
                '{"attn1": [1, 0, ...], ...}'
            ) from error
    if not isinstance(content, Mapping) or not content:
        raise ScheduleError(
            "a SmoothCache schedule has a list per component, "
            f'{{"attn1": [1, 0, ...], ...}}; found {content!r}'
        )
    return {str(key): value for key, value in content.items()}


def rename(
    computes: Mapping[str, tuple[bool, ...]], names: Mapping[str, str]
) -> dict[str, tuple[bool, ...]]:
    """By the model's own names.

    Raises:
        ScheduleError: A name is of no component, or two components get one.
    """
    components = dict.fromkeys(split_key(key)[0] for key in computes)
    unknown = [name for name in names if name not in components]
    if unknown:
        raise ScheduleError(
            f"names has {unknown[0]!r}, which is no component of the SmoothCache schedule; "
            f"its components are {', '.join(components)}"
        )
    renamed = {}
    for key, bits in computes.items():
        component, block = split_key(key)
        renamed[names.get(component, component) + block] = bits
    if len(renamed) < len(computes):
        raise ScheduleError(
            f"names={dict(names)!r} gives two components of the SmoothCache schedule one name"
        )
    return renamed


def split_key(key: str) -> tuple[str, str]:
    """Component and block of a key: ``("attn1", "-3")``; no block is an empty text."""
    found = KEY.fullmatch(key)
    return (key, "") if found is None else (found["component"], found["block"] or "")


# ---- Learning-to-Cache ---------------------------------------------------------------------


def read_learning_to_cache(
    router: str | Path | Mapping[str, Any], num_steps: int, *, threshold: float = 0.1
) -> Schedule:
    """The routers that Learning-to-Cache has trained for a DiT, one per step.

    A router has a logit for each layer: attention and feed-forward of each block, in turn.
    Routers are numbered by timestep, so that the last step has router 0. Those of even number
    decide: a layer computes whose score, the sigmoid of its logit, is above the threshold, the
    others reuse the step before, which has an odd number and computes everything. Routers of
    the U-ViT models are used in another way and are not for this.

    Args:
        router: The checkpoint, as torch or as safetensors, or what is in it:
            ``{"routers": {"0.prob": ..., "1.prob": ..., ...}}``.
        num_steps: Steps of the trajectory, as many as there are routers.
        threshold: Of the scores (its theta): 0.1 in its README for all but 512 pixels, which
            have 0.9; 0.5 in its code by default.

    Returns:
        A schedule for the ``"self"`` attention and ``"feed_forward"`` sites.

    Raises:
        ScheduleError: The checkpoint cannot be read, has other routers than one per step, or
            an argument is out of range; and a model of other layers, when the table is made.

    Source:
        Ma et al. 2024, arXiv 2406.01733; horseee/learning-to-cache, DiT/models/
        dynamic_models.py and router_models.py.
    """
    check_at_least(1, num_steps=num_steps)
    check_number(threshold=threshold)
    scores = scores_of(routers_of(router), num_steps)
    rule = Routed(scores, float(threshold))
    return Schedule(num_steps, rule, sites=("self", "feed_forward"))


def routers_of(router: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """Logits by key, ``"0.prob"`` and so on.

    Raises:
        ScheduleError: They cannot be read.
    """
    state: Any = router
    if not isinstance(router, Mapping):
        try:
            state = load(Path(router))
        except UNREADABLE as error:
            raise ScheduleError(
                f"no Learning-to-Cache router can be read from {router}: "
                f"{type(error).__name__}: {error}. Expected a checkpoint of torch or "
                "safetensors with routers.0.prob, routers.1.prob, ..."
            ) from error
    if isinstance(state, Mapping):
        state = state.get("routers", state)
    if not isinstance(state, Mapping):
        raise ScheduleError(
            'expected {"routers": {"0.prob": logits, ...}} of Learning-to-Cache, found '
            f"{type(state).__name__}"
        )
    return {str(key).removeprefix("routers."): value for key, value in state.items()}


def load(path: Path) -> Any:
    """A checkpoint; beside tensors it may hold the arguments that the training was given."""
    if path.suffix == ".safetensors":
        return load_file(path)
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True)


def scores_of(routers: Mapping[str, Any], num_steps: int) -> NDArray[np.float32]:
    """float32 ``[steps, layers]``: the sigmoid of each logit, first step first.

    Raises:
        ScheduleError: There is not one router per step, or they have other shapes.
    """
    keys = [f"{number}.prob" for number in reversed(range(num_steps))]
    if set(keys) != set(routers):
        raise ScheduleError(
            f"expected {num_steps} routers of Learning-to-Cache, one per step, 0.prob to "
            f"{keys[0]}; found {len(routers)} entries, such as {next(iter(routers), None)!r}"
        )
    logits = [torch.as_tensor(routers[key]).detach().float() for key in keys]
    shapes = sorted({tuple(each.shape) for each in logits})
    if len(shapes) > 1 or len(shapes[0]) != 1 or not shapes[0][0] or shapes[0][0] % 2:
        raise ScheduleError(
            "a router of Learning-to-Cache has two logits per block, attention and "
            f"feed-forward, in one row; found shapes {shapes}"
        )
    scores = torch.stack(logits).sigmoid()
    if scores.isnan().any():
        raise ScheduleError("a router of Learning-to-Cache has a logit that is no number")
    found: NDArray[np.float32] = scores.cpu().numpy()
    return found
