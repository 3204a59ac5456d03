"""Which share of the multiply-accumulates that a schedule saves is saved as time.

A DiT with random weights, no pipeline around it. A trajectory's time is the sum of its calls.
The compiled untransformed model and each schedule run in lockstep: a step of one, the same
step of the next, and so on, each with the same fresh latent. So they share what the machine
does meanwhile, trajectory by trajectory.

The share is ``(1 - 1/speed) / (1 - MACs ratio)``. From published times on DiT-XL/2, FORA and
SmoothCache have 79 to 81 % of it (arXiv 2411.10510, table 1), TaylorSeer 47 to 53 % (by
ChebBooster's table). The other usual measure, speed by the speed that MACs alone would give
(there 73 to 84 %, and 40 to 53 %), is printed beside it. By it is judged attention alone,
computed at the first step and reused at all others, the most that the report's cache can give.
"""

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from torch import nn
from tqdm import tqdm

import dqar_fx
from benchmarks.contenders.rows import turn_saving
from benchmarks.harness.errors import InputError
from benchmarks.harness.geometry import Geometry, GeometryOptions
from benchmarks.harness.machine import describe_machine, set_up_compiler
from benchmarks.harness.macs import count_macs, count_schedules, to_meta, to_meta_call
from benchmarks.harness.options import Count, Patterns, at_least, run_command
from benchmarks.harness.rows import write_rows
from benchmarks.harness.timing import find_quartiles, run_lockstep, take_ratios
from dqar_fx import Schedule, prior_art

CPU = torch.device("cpu")
EVERY = 3


@dataclass(frozen=True)
class Entry:
    """A schedule that takes part.

    Attributes:
        schedule: The schedule.
        bar: The share that is to be reached.
        sites: Where it applies.
        of_ceiling: Whether the share is of the speed that multiply-accumulates alone would
            give, instead of the saving.
    """

    schedule: Schedule
    bar: float
    sites: str = "all"
    of_ceiling: bool = False


@dataclass(frozen=True)
class Saving:
    """What one schedule saves.

    Attributes:
        name: Of the schedule.
        bar: The share that is to be reached.
        macs_ratio: Its multiply-accumulates by those of the untransformed model.
        speeds: Per trajectory, time of the untransformed model by its own.
        of_ceiling: Whether `reached` is what the bar is about.
    """

    name: str
    bar: float
    macs_ratio: float
    speeds: tuple[float, ...]
    of_ceiling: bool = False

    @property
    def shares(self) -> list[float]:
        """Per trajectory, the share of the saving that is saved as time."""
        shares = (turn_saving(speed, self.macs_ratio) for speed in self.speeds)
        return [share for share in shares if share is not None]

    @property
    def reached(self) -> float:
        """Median speed by what it were if time were multiply-accumulates."""
        return statistics.median(self.speeds) * self.macs_ratio

    def __str__(self) -> str:
        share, speed = find_quartiles(self.shares), find_quartiles(self.speeds)
        judged = self.reached if self.of_ceiling else share.median
        verdict = "reaches" if judged >= self.bar else "misses"
        return (
            f"{self.name:20s} MACs {self.macs_ratio:.3f}, speed {speed.show('.3f', ' to ')}, "
            f"{self.reached:.1%} of the MACs'; saving turned into time "
            f"{share.show('.1%', ' to ')}: {verdict} {self.bar:.0%}"
            f"{' of the ceiling' if self.of_ceiling else ''}"
        )


def list_entries(steps: int) -> dict[str, Entry]:
    """What takes part, by name."""
    once = Schedule.interval(steps, steps)
    return {
        f"FORA N={EVERY}": Entry(prior_art.fora(steps, EVERY), 0.90),
        f"TaylorSeer N={EVERY} O=1": Entry(prior_art.taylorseer(steps, EVERY, 1), 0.85),
        f"TaylorSeer N={EVERY} O=2": Entry(prior_art.taylorseer(steps, EVERY, 2), 0.85),
        "attention once": Entry(once, 0.95, "attention", of_ceiling=True),
    }


@torch.no_grad()
def count_ratios(
    model: nn.Module, geometry: Geometry, entries: Sequence[Entry]
) -> list[float]:
    """Multiply-accumulates of each schedule by those of as many untransformed steps."""
    meta, inputs = to_meta(model), to_meta_call(geometry.example_call())
    step = count_macs(lambda: meta(**inputs))
    ratios = []
    for entry in entries:
        probe = dqar_fx.transform(meta, entry.schedule, sites=entry.sites)
        probe.prepare(**inputs)
        (macs,) = count_schedules(probe, inputs, [entry.schedule])
        ratios.append(macs / (step * entry.schedule.num_steps))
    return ratios


def build(model: nn.Module, entries: Sequence[Entry]) -> list[Callable[..., Any]]:
    """The compiled untransformed model, and one for each schedule."""
    transformed = [
        dqar_fx.transform(model, entry.schedule, sites=entry.sites, compile="regional")
        for entry in entries
    ]
    return [torch.compile(model, fullgraph=True), *transformed]


def measure(options: "Options") -> tuple[list[Saving], float]:
    """What each schedule saves, and the time of an untransformed step in ms."""
    geometry, steps, entries = options.geometry, options.steps, options.entries
    model = geometry.build()
    ratios = count_ratios(model, geometry, list(entries.values()))
    print("compiling ...", file=sys.stderr)
    set_up_compiler(CPU)
    models = build(model, list(entries.values()))
    run_lockstep(models, geometry, steps)  # compiles
    numbers = tqdm(range(options.repeats), desc="trajectories", leave=False)
    base_s, *others_s = zip(
        *(run_lockstep(models, geometry, steps) for _ in numbers), strict=True
    )
    savings = [
        Saving(name, entry.bar, ratio, tuple(take_ratios(base_s, own_s)), entry.of_ceiling)
        for (name, entry), ratio, own_s in zip(entries.items(), ratios, others_s, strict=True)
    ]
    return savings, 1e3 * statistics.median(base_s) / steps


def describe(savings: Sequence[Saving], step_ms: float, repeats: int, steps: int) -> str:
    """The result in words."""
    head = (
        f"untransformed compiled {step_ms:.2f} ms per step; {repeats} trajectories of {steps} "
        "steps in lockstep; medians (quartiles):"
    )
    return "\n".join((head, *map(str, savings)))


@dataclass(frozen=True)
class Options(GeometryOptions):
    """Options of this command."""

    COMMAND = "benchmarks.saving"
    WHY_COMPILER = "this compares compiled models"

    steps: Annotated[int, at_least(4)] = 50
    """Of a trajectory."""
    repeats: Count = 9
    """Timed trajectories."""
    only: Patterns = ("*",)
    """Schedules that take part."""
    out: Path = Path("results/saving")
    """Folder to write to."""

    @property
    def entries(self) -> dict[str, Entry]:
        """What takes part, by name."""
        return {
            name: entry
            for name, entry in list_entries(self.steps).items()
            if any(fnmatchcase(name, pattern) for pattern in self.only)
        }

    def settle(self) -> Self:
        """The same, if something takes part."""
        if not self.entries:
            known = ", ".join(list_entries(self.steps))
            raise InputError(f"--only: there is no such schedule; there are {known}")
        return super().settle()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    return run_command(Options, run, argv)


@torch.no_grad()
def run(options: Options) -> None:
    """Measure, print and write."""
    print(options.geometry)
    savings, step_ms = measure(options)
    machine = describe_machine(CPU)
    print(describe(savings, step_ms, options.repeats, options.steps), machine, sep="\n")
    path = options.out / "rows.jsonl"
    shared = ({"steps": options.steps}, options.geometry, machine)
    write_rows(savings, path, *shared, also=("shares",))
    print(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(main())
