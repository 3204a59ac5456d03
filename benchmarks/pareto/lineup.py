"""Who takes part, in the order of the table."""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from functools import partial

from benchmarks.pareto.bench import Bench
from benchmarks.pareto.contenders import (
    ATTENTION,
    BASE,
    BOTH,
    COMPILED,
    EAGER,
    FEWER,
    GUIDED,
    OPTIMISED,
    Contender,
    Family,
    forecast_of,
)
from benchmarks.pareto.options import Options
from benchmarks.pareto.recipes import Transformed, Untransformed
from benchmarks.pareto.rivals.schedules import list_theirs
from benchmarks.pareto.rivals.settings import list_rivals
from benchmarks.pareto.tables import Saved
from dqar_fx import Guidance, Schedule

GUIDED_INTERVALS = ((1, 3), (2, 4), (2, 6), (3, 6))
"""Of the sites, and of the calls of the unconditional half."""
WARMUP = 3


def line_up(options: Options, tables: Sequence[Saved]) -> list[Contender]:
    """All contenders; the first is the base, and the last of its family runs eagerly."""
    is_eager = options.lowering == "eager"
    modes = (EAGER,) if is_eager else (COMPILED, EAGER)
    base = [Contender("untransformed", BASE, options.steps, Untransformed(), m) for m in modes]
    others = [*list_fewer(options), *list_ours(options, modes[0])]
    others += list_guided(options, modes[0])
    others += [make_optimised(saved, options.steps, modes[0]) for saved in tables]
    others += list_theirs(options.steps, modes[0])
    others += list_rivals(options.steps, compiled=not is_eager)
    chosen = [each for each in others if each.family.key in options.only]
    return base + [each for each in chosen if is_wanted(each.name, options.rows)]


def is_wanted(name: str, patterns: Sequence[str]) -> bool:
    """Whether a row's name fits one of the patterns; any name where there are none."""
    return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)


def list_fewer(options: Options) -> Iterator[Contender]:
    """The untransformed model with fewer steps."""
    mode = EAGER if options.lowering == "eager" else COMPILED
    for steps in options.fewer:
        yield Contender(f"{steps} steps", FEWER, steps, Untransformed(), mode)


def list_ours(options: Options, mode: str) -> Iterator[Contender]:
    """Reuse of attention, of attention and feed-forward, and forecasts of both."""
    fronts: list[tuple[str, Family, str, int]] = [
        ("attention", ATTENTION, "attention", 0),
        ("attention + ff", BOTH, "all", 0),
    ]
    fronts += [
        (f"forecast order {order}", forecast_of(order), "all", order)
        for order in options.orders
    ]
    for name, family, sites, order in fronts:
        for every in options.every:
            numbers = {"every": every, "warmup": options.warmup, "order": order}
            make = partial(make_interval, options.steps, **numbers)
            recipe = Transformed(make, {"sites": sites, **numbers}, sites)
            setting = f"{name}, every {every}"
            yield Contender(setting, family, options.steps, recipe, mode)


def list_guided(options: Options, mode: str) -> Iterator[Contender]:
    """Forecasts of both kinds of sites, and of the unconditional half's difference."""
    if options.guidance <= 1:
        return
    for every, called in GUIDED_INTERVALS:
        numbers = {"every": every, "warmup": WARMUP, "order": 1}
        output = make_interval(options.steps, **{**numbers, "every": called})
        yield Contender(
            f"forecast order 1, every {every}, unconditional every {called}",
            GUIDED,
            options.steps,
            Transformed(
                partial(make_interval, options.steps, **numbers),
                {"sites": "all", **numbers, "unconditional": called},
                "all",
                Guidance(output=output, keep="difference", batched="conditional_first"),
            ),
            mode,
        )


def make_interval(
    steps: int, bench: Bench | None = None, *, every: int, warmup: int, order: int
) -> Schedule:
    """Compute at regular steps; reuse, or forecast, between."""
    del bench
    schedule = Schedule.interval(steps, every, warmup=warmup)
    return schedule.forecast(order) if order else schedule


def make_optimised(saved: Saved, steps: int, mode: str) -> Contender:
    """A branch table of a folder."""
    recipe = Transformed(
        lambda bench: saved.schedule,
        {"table": saved.digest},
        saved.table.sites,
        saved.guidance,
    )
    return Contender(f"table {saved.name}", OPTIMISED, steps, recipe, mode)
