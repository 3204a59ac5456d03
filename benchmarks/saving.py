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

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

import dqar_fx
from benchmarks.command_line import Parser, at_least, folder_to_write
from benchmarks.harness.geometry import Geometry, add_geometry, draw_timesteps, read_geometry
from benchmarks.harness.machine import can_compile, describe_machine, set_up_compiler
from benchmarks.harness.macs import count_macs, count_schedules, to_meta, to_meta_call
from benchmarks.pareto.rows import turn_saving
from dqar_fx import Denoiser, Schedule, prior_art

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
        share, (low, _, high) = statistics.median(self.shares), quartiles(self.shares)
        speed, (slow, _, fast) = statistics.median(self.speeds), quartiles(self.speeds)
        judged = self.reached if self.of_ceiling else share
        verdict = "reaches" if judged >= self.bar else "misses"
        return (
            f"{self.name:20s} MACs {self.macs_ratio:.3f}, speed {speed:.3f} "
            f"({slow:.3f} to {fast:.3f}), {self.reached:.1%} of the MACs'; saving turned into "
            f"time {share:.1%} ({low:.1%} to {high:.1%}): {verdict} {self.bar:.0%}"
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
    call = {
        "hidden_states": geometry.draw_latent(),
        "timestep": torch.zeros(geometry.batch, dtype=torch.long),
        "class_labels": geometry.labels(),
    }
    meta, inputs = to_meta(model), to_meta_call(call)
    step = count_macs(lambda: meta(**inputs))
    ratios = []
    for entry in entries:
        probe = dqar_fx.transform(meta, entry.schedule, sites=entry.sites)
        probe.prepare(**inputs)
        (macs,) = count_schedules(probe, inputs, [entry.schedule])
        ratios.append(macs / (step * entry.schedule.num_steps))
    return ratios


def run_lockstep(
    models: Sequence[Callable[..., Any]], geometry: Geometry, steps: int
) -> list[float]:
    """One trajectory of each model, step by step in turn; the time of each."""
    for model in models:
        if isinstance(model, Denoiser):
            model.reset()
    took_s = [0.0] * len(models)
    labels = geometry.labels()
    for step, timestep in enumerate(draw_timesteps(steps)):
        latent = geometry.draw_latent()
        for place in range(len(models)):
            number = (step + place) % len(models)  # nobody always follows the same one
            # A latent of its own for each: nothing that was read may be in a cache.
            given, timesteps = latent.clone(), timestep.expand(geometry.batch)
            start = time.perf_counter()
            models[number](given, timestep=timesteps, class_labels=labels)
            took_s[number] += time.perf_counter() - start
    return took_s


def build(model: nn.Module, entries: Sequence[Entry]) -> list[Callable[..., Any]]:
    """The compiled untransformed model, and one for each schedule."""
    transformed = [
        dqar_fx.transform(model, entry.schedule, sites=entry.sites, compile="regional")
        for entry in entries
    ]
    return [torch.compile(model, fullgraph=True), *transformed]


def measure(
    geometry: Geometry, steps: int, repeats: int, only: Sequence[str] = ("*",)
) -> tuple[list[Saving], float]:
    """What each schedule saves, and the time of an untransformed step in ms."""
    model = geometry.build()
    listed = {
        name: entry
        for name, entry in list_entries(steps).items()
        if any(fnmatchcase(name, pattern) for pattern in only)
    }
    ratios = count_ratios(model, geometry, list(listed.values()))
    print("compiling ...", file=sys.stderr)
    set_up_compiler(CPU)
    models = build(model, list(listed.values()))
    run_lockstep(models, geometry, steps)  # compiles
    numbers = tqdm(range(repeats), desc="trajectories", leave=False)
    base_s, *others_s = zip(
        *(run_lockstep(models, geometry, steps) for _ in numbers), strict=True
    )
    savings = [
        Saving(
            name,
            entry.bar,
            ratio,
            tuple(a / b for a, b in zip(base_s, own_s, strict=True)),
            entry.of_ceiling,
        )
        for (name, entry), ratio, own_s in zip(listed.items(), ratios, others_s, strict=True)
    ]
    return savings, 1e3 * statistics.median(base_s) / steps


def quartiles(values: Sequence[float]) -> list[float]:
    """Three of them; a single value is all of them."""
    if len(values) == 1:
        return [values[0]] * 3
    return statistics.quantiles(values, n=4, method="inclusive")


def write_savings(
    savings: Sequence[Saving], geometry: Geometry, steps: int, path: Path
) -> None:
    """Write one line of JSON per schedule."""
    shared = {"steps": steps} | asdict(geometry) | asdict(describe_machine(CPU))
    lines = (json.dumps(asdict(s) | {"shares": s.shares} | shared) for s in savings)
    path.write_text("".join(f"{line}\n" for line in lines))


def describe(savings: Sequence[Saving], step_ms: float, repeats: int, steps: int) -> str:
    """The result in words."""
    head = (
        f"untransformed compiled {step_ms:.2f} ms per step; {repeats} trajectories of {steps} "
        "steps in lockstep; medians (quartiles):"
    )
    return "\n".join((head, *map(str, savings)))


def build_parser() -> Parser:
    """The parser of this command."""
    parser = Parser(prog="python -m benchmarks.saving", description=__doc__)
    add = parser.add_argument
    add("--steps", type=at_least(4), default=50, help="of a trajectory (50)")
    add("--repeats", type=at_least(1), default=9, help="timed trajectories (9)")
    add("--only", nargs="+", default=["*"], metavar="PATTERN", help="schedules (all)")
    add("--out", type=folder_to_write, default="results/saving", help="(results/saving)")
    add_geometry(parser)
    return parser


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    geometry = read_geometry(parser, args)
    if not can_compile(CPU):
        parser.error("no C++ compiler was found, and this compares compiled models")
    names = list_entries(args.steps)
    if not any(fnmatchcase(name, pattern) for name in names for pattern in args.only):
        parser.error(f"--only: there is no such schedule; there are {', '.join(names)}")
    print(geometry)
    savings, step_ms = measure(geometry, args.steps, args.repeats, args.only)
    print(
        describe(savings, step_ms, args.repeats, args.steps), describe_machine(CPU), sep="\n"
    )
    write_savings(savings, geometry, args.steps, args.out / "rows.jsonl")
    print(f"wrote {args.out / 'rows.jsonl'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
