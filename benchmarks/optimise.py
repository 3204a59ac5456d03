"""``python -m benchmarks.optimise``: find schedules for a pipeline, and write their tables."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import dqar_fx
from benchmarks.command_line import Parser, above, add_out, at_least, new_parser, read_values
from benchmarks.harness.errors import InputError
from benchmarks.harness.pipelines import load_pipeline, name_classes

QUICK = {"steps": 8, "samples": 2, "trials": 14, "lowering": "eager", "speeds": [2.0]}

DESCRIPTION = """\
Measure a pipeline once and search its schedules: evenly over all speeds, and harder at some.
Print the front, judged on held-out seeds; write its branch tables for benchmarks.pareto. What
was measured and tried is kept in the folder: a search that was stopped goes on.
"""
EXAMPLES = """\
examples:
  python -m benchmarks.optimise                              # the reference pipeline
  python -m benchmarks.optimise --speeds 2.0 2.5 --trials 60 # where to search harder
  python -m benchmarks.optimise --quick --out results/quick  # does it run at all?
"""


@dataclass(frozen=True)
class Options:
    """What the command line decides.

    Attributes:
        model: A pipeline folder, or a name on the hub.
        device: Where the pipeline runs.
        dtype: Name of the dtype of its parameters.
        lowering: ``"regional"``, ``"whole"`` or ``"eager"``.
        steps: Denoising steps.
        samples: Pictures that tables are tried on, in one batch.
        guidance: Guidance scale.
        seed: Of the noise; other benchmarks count from 0, so that this should lie far off.
        sites: Sites of the schedules.
        unconditional: Intervals at which the unconditional stream may be called.
        trials: Tables that are tried, for the front and for each speed.
        speeds: Speeds to search harder at, against computing everything.
        even: Whether to search evenly over all speeds first.
        out: Folder to write to.
    """

    model: str
    device: torch.device
    dtype: str
    lowering: str
    steps: int
    samples: int
    guidance: float
    seed: int
    sites: str
    unconditional: list[int]
    trials: int
    speeds: list[float]
    even: bool
    out: Path


def build_parser() -> Parser:
    """The parser of the search."""
    parser = new_parser("python -m benchmarks.optimise", DESCRIPTION, EXAMPLES)
    add, lowerings = parser.add_argument, ("regional", "whole", "eager")
    add(
        "--lowering", choices=lowerings, default="regional", help="what is compiled (regional)"
    )
    add("--steps", type=at_least(2), default=50, help="denoising steps (50)")
    add("--samples", type=at_least(1), default=16, help="pictures to try tables on (16)")
    add("--guidance", type=float, default=1.5, help="guidance scale (1.5)")
    add("--seed", type=at_least(0), default=500_000, help="of the noise (500000)")
    add("--sites", default="all", help="sites of the schedules (all)")
    add(
        "--unconditional",
        type=at_least(2),
        nargs="*",
        default=[2, 3, 4, 6],
        metavar="EVERY",
        help="intervals at which the unconditional stream may be called (2 3 4 6)",
    )
    add("--trials", type=at_least(1), default=70, help="tables to try, per search (70)")
    add(
        "--speeds",
        type=above(1.0),
        nargs="*",
        default=[2.0, 2.5],
        help="search harder (2.0 2.5)",
    )
    add("--no-even", dest="even", action="store_false", help="search at the speeds alone")
    add_out(parser, "results/optimise", QUICK)
    return parser


def parse_options(argv: Sequence[str] | None) -> Options:
    """Read the command line; None takes that of the process."""
    values = read_values(build_parser(), argv, QUICK)
    return Options(**values)


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
            compile=None if options.lowering == "eager" else options.lowering,
            folder=options.out,
            guidance_scale=options.guidance,
        ).front

    # without an even search one trial tells what computing everything takes
    whole = run(None) if options.even else run(sys.float_info.max, trials=1, fit=False)
    points = list(whole.points)
    for factor in options.speeds:
        points += run(whole.full_ms / factor).points
    return dqar_fx.Front.of(points, whole.sites, whole.full_ms)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    options = parse_options(argv)
    try:
        front = search(options)
    except (InputError, dqar_fx.DqarError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
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
    return 0


if __name__ == "__main__":
    sys.exit(main())
