"""Learning-to-Cache (arXiv 2406.01733), whose trained routers score each layer of a DiT."""

from __future__ import annotations

import argparse
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from dqar_fx.errors import ScheduleError
from dqar_fx.schedule.measured import check_length
from dqar_fx.schedule.rules import AnyModelRule
from dqar_fx.schedule.schedule import Schedule, check_known_at_least

from .decisions import check_number

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dqar_fx.schedule.rules import Mask, Moment
    from dqar_fx.schedule.run import RunShape

UNREADABLE = (
    OSError,
    ValueError,
    TypeError,
    RuntimeError,
    EOFError,
    LookupError,
    struct.error,
    UnpicklingError,
    SafetensorError,
)
"""What loaders raise for a file that is no checkpoint."""


def read_learning_to_cache(
    router: str | Path | Mapping[str, Any],
    num_steps: int | None = None,
    *,
    threshold: float = 0.1,
) -> Schedule:
    """Read the routers that Learning-to-Cache has trained for a DiT, one per step.

    A router has a logit for each layer: attention and feed-forward of each block, in turn.
    Routers are numbered by timestep, so that the last step has router 0. Those of even number
    decide: a layer whose score, the sigmoid of its logit, is above the threshold computes;
    the others reuse the step before, which has an odd number and computes everything. Routers
    of the U-ViT models are used in another way and do not fit here.

    Args:
        router: The checkpoint, as torch or as safetensors, or its content:
            ``{"routers": {"0.prob": ..., "1.prob": ..., ...}}``.
        num_steps: Steps of the trajectory, which are as many as there are routers; None to
            count them.
        threshold: Limit of the scores (its theta): 0.1 in its README for all but 512 pixels,
            which have 0.9; 0.5 in its code by default.

    Returns:
        A schedule for the ``"self"`` attention and ``"feed_forward"`` sites.

    Raises:
        ScheduleError: The checkpoint cannot be read, does not have one router per step, or
            an argument is out of range; when the table is made, also a model of other layers.

    Source:
        Ma et al. 2024, arXiv 2406.01733; horseee/learning-to-cache, DiT/models/
        dynamic_models.py and router_models.py.
    """
    check_known_at_least(1, num_steps=num_steps)
    check_number(threshold=threshold)
    routers = read_routers(router)
    scores = compute_scores(routers, len(routers) if num_steps is None else num_steps)
    rule = RouterRule(scores, float(threshold))
    return Schedule(len(scores), rule, sites=("self", "feed_forward"))


@dataclass(frozen=True, eq=False)
class RouterRule(AnyModelRule):
    """Reuse at every other step the layers that a router scores low.

    Attributes:
        scores: float32 ``[steps, sites]``, in (0, 1).
        threshold: Sites with a score above it compute.
    """

    scores: NDArray[np.float32]
    threshold: float

    def for_run(self, run: RunShape) -> RouterRule:
        """Return the rule itself; raise `ScheduleError` for another number of steps."""
        check_length("the router of Learning-to-Cache", len(self.scores), run)
        return self

    def is_routed(self, step: int) -> bool:
        """Return whether a router decides: at the last step, and every other before it."""
        return (len(self.scores) - 1 - step) % 2 == 0

    def may_reuse(self, moment: Moment) -> Mask:
        """Allow each site that scores low, at the steps where a router decides."""
        self.refuse_other_sites(moment.sites)
        low = ~(self.scores[moment.step] > self.threshold)
        return np.asarray(low & self.is_routed(moment.step))

    def why(self, moment: Moment, site: int) -> str:
        """Compare the score with the threshold, or say that no router decides."""
        if not self.is_routed(moment.step):
            return "Learning-to-Cache computes everything at every other step"
        score = self.scores[moment.step, site]
        side = "above" if score > self.threshold else "not above"
        return f"router score {score:.3f} is {side} {self.threshold:.3g}"

    def refuse_other_sites(self, sites: tuple[str, ...]) -> None:
        """Check that sites are an attention and a feed-forward of each block, in turn.

        Raises:
            ScheduleError: They are something else.
        """
        blocks = [path.rpartition(".")[0] for path in sites]
        ends = [path.rpartition(".")[2] for path in sites]
        in_turn = blocks[::2] == blocks[1::2] and len({*ends[::2]}) == len({*ends[1::2]}) == 1
        if len(sites) != self.scores.shape[1] or not in_turn:
            raise ScheduleError(
                f"the router scores {self.scores.shape[1]} layers, attention and feed-forward "
                f"of {self.scores.shape[1] // 2} blocks in turn, but there are {len(sites)} "
                f"sites, {sites[0]} to {sites[-1]}. Use the model that the router was trained "
                "for, and leave sites to the schedule"
            )


def read_routers(router: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """Return the logits of a checkpoint by key, ``"0.prob"`` and so on.

    Raises:
        ScheduleError: The checkpoint cannot be read, or has no mapping of routers.
    """
    state: Any = router
    if not isinstance(router, Mapping):
        try:
            state = load_checkpoint(Path(router))
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


def load_checkpoint(path: Path) -> Any:
    """Load a checkpoint: tensors and, in torch's format, the arguments of the training."""
    if path.suffix == ".safetensors":
        return load_file(path)
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True)


def compute_scores(routers: Mapping[str, Any], num_steps: int) -> NDArray[np.float32]:
    """Return the sigmoid of each logit, float32 ``[steps, layers]``, first step first.

    Raises:
        ScheduleError: There is not one router per step, or a router has another shape or a
            logit that is no number.
    """
    keys = [f"{number}.prob" for number in reversed(range(num_steps))]
    if not keys or set(keys) != set(routers):
        raise ScheduleError(
            f"expected {num_steps} routers of Learning-to-Cache, one per step, 0.prob to "
            f"{max(num_steps, 1) - 1}.prob; found {len(routers)} entries, such as "
            f"{next(iter(routers), None)!r}"
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
