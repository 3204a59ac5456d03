"""Measure a pipeline once and search its schedules: evenly over all speeds, harder at some.

Print the front, judged on held-out seeds; write its branch tables for benchmarks.pareto. What
was measured and tried is kept in the folder: a search that was stopped goes on.

Examples::

    python -m benchmarks.optimise                              # the reference pipeline
    python -m benchmarks.optimise --speeds 2.0 2.5 --trials 60 # where to search harder
    python -m benchmarks.optimise --quick --out results/quick  # does it run at all?
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import dqar_fx
from benchmarks.harness.options import (
    Count,
    Flag,
    Lowering,
    above,
    as_compile,
    at_least,
    quick_flag,
    run_command,
    several,
)
from benchmarks.harness.pipelines import PipelineOptions, load_pipeline, name_classes

QUICK = {"steps": 8, "samples": 2, "trials": 14, "lowering": "eager", "speeds": (2.0,)}
EVERY = several(at_least(2), "EVERY", none_allowed=True)


@dataclass(frozen=True)
class Options(PipelineOptions):
    """Options of the search."""

    COMMAND = "benchmarks.optimise"
    QUICK = QUICK

    lowering: Lowering = "regional"
    """What is compiled."""
    steps: Annotated[int, at_least(2)] = 50
    """Denoising steps."""
    samples: Count = 16
    """Pictures to try tables on, in one batch."""
    guidance: float = 1.5
    """Guidance scale."""
    seed: Annotated[int, at_least(0)] = 500_000
    """Of the noise; other benchmarks count from 0, so that this should lie far off."""
    sites: str = "all"
    """Sites of the schedules."""
    unconditional: Annotated[tuple[int, ...], EVERY] = (2, 3, 4, 6)
    """Intervals at which the unconditional stream may be called."""
    trials: Count = 70
    """Tables to try, for the front and for each speed."""
    speeds: Annotated[tuple[float, ...], several(above(1.0), none_allowed=True)] = (2.0, 2.5)
    """Speeds to search harder at, against computing everything."""
    even: Flag = True
    """Search at the speeds alone, not evenly over all of them first."""
    out: Path = Path("results/optimise")
    """Folder to write to."""
    quick: quick_flag(QUICK) = False


def list_guidances(options: Options) -> list[dqar_fx.Guidance]:
    """What the unconditional stream may do: its difference forecast between calls."""
    if options.guidance <= 1:
        return []
    plain = (
        dqar_fx.Schedule.interval(options.steps, every, warmup=min(3, options.steps))
        for every in options.unconditional
    )
    return [
        dqar_fx.Guidance(
            output=schedule.forecast(1), keep="difference", batched="conditional_first"
        )
        for schedule in plain
    ]


def search(options: Options) -> dqar_fx.Front:
    """The front of all searches."""
    pipe = load_pipeline(options)
    known = sorted(name_classes(pipe))
    labels = [known[i % len(known)] for i in range(options.samples)]

    def run(ms: float | None, trials: int = options.trials, fit: bool = True) -> dqar_fx.Front:
        return dqar_fx.optimise(
            pipe,
            labels,
            ms=ms,
            sites=options.sites,
            guidances=list_guidances(options),
            num_steps=options.steps,
            trials=trials,
            fit=fit,
            batch_size=options.samples,
            seed=options.seed,
            compile=as_compile(options.lowering),
            folder=options.out,
            guidance_scale=options.guidance,
        ).front

    # without an even search one trial tells what computing everything takes
    whole = run(None) if options.even else run(sys.float_info.max, trials=1, fit=False)
    points = list(whole.points)
    for factor in options.speeds:
        points += run(whole.full_ms / factor).points
    return dqar_fx.Front.of(points, whole.sites, whole.full_ms, whole.fingerprint)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    return run_command(Options, run, argv)


def run(options: Options) -> None:
    """Search, print and write."""
    front = search(options)
    tables = options.out / "tables"
    for old in tables.glob("*.json"):
        old.unlink()
    front.save(tables)
    print(front)
    print(f"wrote {len(front.points)} tables to {tables}")
    try:
        front.plot(options.out / "front.png")
    except dqar_fx.DqarError as error:
        print(f"no plot: {error}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
