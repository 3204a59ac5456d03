"""One step that reuses everything, against the compiled untransformed step and the MACs.

The upper end of what reuse of attention can give, without a pipeline around it: a DiT with
random weights, one step each in turn (untransformed, reusing, untransformed, ...), every call
with a fresh latent and the next timestep.
"""

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any, Self

import torch
from torch import nn
from tqdm import tqdm

import dqar_fx
from benchmarks.harness.errors import InputError
from benchmarks.harness.geometry import Geometry, GeometryOptions, draw_timesteps
from benchmarks.harness.machine import describe_machine, set_up_compiler
from benchmarks.harness.macs import count_trajectories
from benchmarks.harness.options import at_least, run_command
from benchmarks.harness.timing import find_quartiles, take_ratios, time_steps

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
        return take_ratios(self.base_s, self.reuse_s)

    @property
    def whole_ratio(self) -> float:
        """Speed by medians, with a step's share of what was done ahead."""
        share_s = self.ahead_s / self.num_steps
        return statistics.median(self.base_s) / (statistics.median(self.reuse_s) + share_s)


def measure_pairs(
    base: Callable[..., Any], reusing: dqar_fx.Denoiser, geometry: Geometry, num_pairs: int
) -> Pairs:
    """Steps of one trajectory of both models in turn, after steps that are not timed."""
    num_steps = num_pairs + WARMUP_STEPS

    def begin(num_steps_run: int) -> list[tuple[float, float]]:
        reusing.reset()
        timesteps = draw_timesteps(num_steps)
        models = (time_steps(model, geometry, timesteps) for model in (base, reusing))
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
    schedules = [dqar_fx.Schedule.from_actions(actions) for actions in ("SR", "C")]
    macs = count_trajectories(model, geometry.example_call(), schedules)
    both, computing = macs.trajectories
    return macs.untransformed_step / (both - computing)


def describe(pairs: Pairs, ceiling: float, error: float) -> str:
    """The result in words."""
    ratio = find_quartiles(pairs.ratios, "exclusive")
    base_ms, reuse_ms = (1e3 * statistics.median(s) for s in (pairs.base_s, pairs.reuse_s))
    return "\n".join(
        (
            f"untransformed compiled   {base_ms:8.2f} ms, median of {len(pairs.ratios)}",
            f"everything reused        {reuse_ms:8.2f} ms",
            f"speed, median of pairs   {ratio.median:8.3f}, "
            f"quartiles {ratio.low:.3f} to {ratio.high:.3f}",
            f"speed, fastest of each   {min(pairs.base_s) / min(pairs.reuse_s):8.3f}",
            f"speed, with conditioning {pairs.whole_ratio:8.3f}, evaluated ahead in "
            f"{1e3 * pairs.ahead_s:.0f} ms for {pairs.num_steps} steps",
            f"ceiling by MACs          {ceiling:8.3f}, of which reached "
            f"{pairs.whole_ratio / ceiling:.1%}",
            f"computing all            {error:8.1e} largest difference from the original",
        )
    )


@dataclass(frozen=True)
class Options(GeometryOptions):
    """Options of this command."""

    COMMAND = "benchmarks.ceiling"
    WHY_COMPILER = "this compares compiled steps"

    pairs: Annotated[int, at_least(2)] = 200
    """Timed pairs."""

    def settle(self) -> Self:
        """The same, if there are timesteps for all pairs."""
        if self.pairs > MAX_PAIRS:
            raise InputError(f"--pairs must be at most {MAX_PAIRS}, found {self.pairs}")
        return super().settle()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    return run_command(Options, run, argv)


@torch.no_grad()
def run(options: Options) -> None:
    """Measure and print."""
    geometry, num_pairs = options.geometry, options.pairs
    model = geometry.build()
    print(geometry)
    ceiling = count_ceiling(model, geometry)
    schedule = dqar_fx.Schedule.from_actions("S" + "R" * (num_pairs + WARMUP_STEPS - 1))
    transformed = dqar_fx.transform(model, schedule, compile="regional")
    print("compiling ...", file=sys.stderr)
    set_up_compiler(CPU)
    error = measure_error(model, transformed, geometry, num_pairs)
    base = torch.compile(model, fullgraph=True)
    pairs = measure_pairs(base, transformed, geometry, num_pairs)
    print(describe(pairs, ceiling, error), describe_machine(CPU), sep="\n")


if __name__ == "__main__":
    sys.exit(main())
