"""One step that reuses everything, against the compiled untransformed step and the MACs.

The upper end of what reuse of attention can give, without a pipeline around it: a DiT with
random weights, one step each in turn (untransformed, reusing, untransformed, ...), every call
with a fresh latent and the next timestep.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

import dqar_fx
from benchmarks.command_line import Parser, at_least
from benchmarks.harness.geometry import Geometry, add_geometry, draw_timesteps, read_geometry
from benchmarks.harness.machine import can_compile, describe_machine, set_up_compiler
from benchmarks.harness.macs import count_trajectories

CPU = torch.device("cpu")
WARMUP_STEPS = 5
"""Steps of a trajectory that are not timed: the one that stores, and a few that reuse."""
NUM_FIRST_STEPS = 7
"""How often the first step of a trajectory is timed."""
MAX_PAIRS = 900
"""So that every step has a timestep of its own."""


@dataclass(frozen=True)
class Pairs:
    """Times of steps, taken in turn.

    Attributes:
        base_s: Of the compiled untransformed model.
        reuse_s: Of the step that reuses everything.
        ahead_s: What a trajectory's first step takes beyond an untransformed one: there the
            conditioning of all its steps is evaluated.
        num_steps: Steps of the trajectory.
    """

    base_s: tuple[float, ...]
    reuse_s: tuple[float, ...]
    ahead_s: float
    num_steps: int

    @property
    def ratios(self) -> list[float]:
        """Speed of each pair."""
        return [base / reuse for base, reuse in zip(self.base_s, self.reuse_s, strict=True)]

    @property
    def whole_ratio(self) -> float:
        """Speed by medians, with a step's share of what was done ahead."""
        share_s = self.ahead_s / self.num_steps
        return statistics.median(self.base_s) / (statistics.median(self.reuse_s) + share_s)


def steps_of(
    model: Callable[..., Any], geometry: Geometry, timesteps: torch.Tensor
) -> Iterator[float]:
    """Run a trajectory step by step, as stock pipelines call; the time of each step."""
    labels = geometry.labels()
    for timestep in timesteps:
        latent = geometry.draw_latent()
        start = time.perf_counter()
        model(latent, timestep=timestep.expand(geometry.batch), class_labels=labels)
        yield time.perf_counter() - start


def measure_pairs(
    base: Callable[..., Any], reusing: dqar_fx.Denoiser, geometry: Geometry, num_pairs: int
) -> Pairs:
    """Steps of one trajectory of both models in turn, after steps that are not timed."""
    num_steps = num_pairs + WARMUP_STEPS

    def begin(num_steps_run: int) -> list[tuple[float, float]]:
        reusing.reset()
        timesteps = draw_timesteps(num_steps)
        models = (steps_of(model, geometry, timesteps) for model in (base, reusing))
        pairs = islice(zip(*models, strict=True), num_steps_run)
        return list(tqdm(pairs, total=num_steps_run, desc="pairs", leave=False))

    begin(WARMUP_STEPS)  # compiles
    first = [begin(1)[0] for _ in range(NUM_FIRST_STEPS)]
    base_s, reuse_s = zip(*begin(num_steps)[WARMUP_STEPS:], strict=True)
    ahead_s = max(0.0, statistics.median(reuse - base for base, reuse in first))
    return Pairs(base_s, reuse_s, ahead_s, num_steps)


def measure_error(
    model: nn.Module, transformed: Callable[..., Any], geometry: Geometry, num_pairs: int
) -> float:
    """Largest difference of a step that computes everything from the eager original."""
    call = {
        "timestep": draw_timesteps(num_pairs + WARMUP_STEPS)[0].expand(geometry.batch),
        "class_labels": geometry.labels(),
    }
    latent = geometry.draw_latent()
    difference = transformed(latent, **call).sample - model(latent, **call).sample
    return float(difference.abs().max())


def count_ceiling(model: nn.Module, geometry: Geometry) -> float:
    """MACs of an untransformed step by those of a step that reuses everything."""
    call = {
        "hidden_states": geometry.draw_latent(),
        "timestep": torch.zeros(geometry.batch, dtype=torch.long),
        "class_labels": geometry.labels(),
    }
    schedules = [dqar_fx.Schedule.from_actions(actions) for actions in ("SR", "C")]
    macs = count_trajectories(model, call, schedules)
    both, computing = macs.trajectories
    return macs.untransformed_step / (both - computing)


def describe(pairs: Pairs, ceiling: float, error: float) -> str:
    """The result in words."""
    ratio = statistics.median(pairs.ratios)
    low, _, high = statistics.quantiles(pairs.ratios, n=4)
    base_ms, reuse_ms = (1e3 * statistics.median(s) for s in (pairs.base_s, pairs.reuse_s))
    return "\n".join(
        (
            f"untransformed compiled   {base_ms:8.2f} ms, median of {len(pairs.ratios)}",
            f"everything reused        {reuse_ms:8.2f} ms",
            f"speed, median of pairs   {ratio:8.3f}, quartiles {low:.3f} to {high:.3f}",
            f"speed, fastest of each   {min(pairs.base_s) / min(pairs.reuse_s):8.3f}",
            f"speed, with conditioning {pairs.whole_ratio:8.3f}, evaluated ahead in "
            f"{1e3 * pairs.ahead_s:.0f} ms for {pairs.num_steps} steps",
            f"ceiling by MACs          {ceiling:8.3f}, of which reached "
            f"{pairs.whole_ratio / ceiling:.1%}",
            f"computing all            {error:8.1e} largest difference from the original",
        )
    )


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    parser = Parser(prog="python -m benchmarks.ceiling", description=__doc__)
    parser.add_argument("--pairs", type=at_least(2), default=200, help="timed pairs (200)")
    add_geometry(parser)
    args = parser.parse_args(argv)
    geometry = read_geometry(parser, args)
    if args.pairs > MAX_PAIRS:
        parser.error(f"--pairs must be at most {MAX_PAIRS}, found {args.pairs}")
    if not can_compile(CPU):
        parser.error("no C++ compiler was found, and this compares compiled steps")
    model = geometry.build()
    print(geometry)
    ceiling = count_ceiling(model, geometry)
    schedule = dqar_fx.Schedule.from_actions("S" + "R" * (args.pairs + WARMUP_STEPS - 1))
    transformed = dqar_fx.transform(model, schedule, compile="regional")
    print("compiling ...", file=sys.stderr)
    set_up_compiler(CPU)
    error = measure_error(model, transformed, geometry, args.pairs)
    base = torch.compile(model, fullgraph=True)
    pairs = measure_pairs(base, transformed, geometry, args.pairs)
    print(describe(pairs, ceiling, error), describe_machine(CPU), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
