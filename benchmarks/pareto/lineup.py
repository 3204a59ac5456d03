"""Who takes part, in the order of the table."""

from collections.abc import Iterator, Sequence
from functools import partial

from benchmarks.contenders import kinds
from benchmarks.contenders.contenders import Contender, in_modes, is_wanted
from benchmarks.contenders.recipes import Transformed, Untransformed, make_interval
from benchmarks.contenders.settings import list_peers, list_theirs
from benchmarks.harness.errors import InputError
from benchmarks.pareto.budcache import list_searched
from benchmarks.pareto.options import Options
from benchmarks.pareto.saved import Saved
from benchmarks.pareto.solved import list_solved, list_teacher
from dqar_fx import Guidance

GUIDED_INTERVALS = ((1, 3), (2, 4), (2, 6), (3, 6))
"""Of the sites, and of the calls of the unconditional half."""
WARMUP = 3


def line_up(options: Options, tables: Sequence[Saved]) -> list[Contender]:
    """All contenders; the first is the base, and the last of its family runs eagerly.

    Raises:
        InputError: A row that is to be judged does not take part.
    """
    steps, is_eager = options.steps, options.lowering == "eager"
    modes = (kinds.EAGER,) if is_eager else (kinds.COMPILED, kinds.EAGER)
    plain, mode = Untransformed(), modes[0]
    base = in_modes(modes, "untransformed", kinds.BASE, steps, plain)
    fewer = options.fewer or ()
    others = [Contender(f"{n} steps", kinds.FEWER, n, plain, mode) for n in fewer]
    others += [*list_ours(options, mode), *list_guided(options, mode)]
    for saved in tables:
        own = {"table": saved.digest}, saved.table.sites, saved.guidance
        recipe = Transformed(saved.to_schedule, *own)
        others.append(Contender(f"table {saved.name}", kinds.OPTIMISED, steps, recipe, mode))
    others += [*list_solved(options, mode), *list_searched(options, mode)]
    others += [*list_theirs(steps, mode), *list_peers(steps, compiled=not is_eager)]
    chosen = [each for each in others if each.family.key in options.only]
    chosen = [each for each in chosen if is_wanted(each.name, options.rows)]
    listed = [*base, *list_teacher(options), *chosen]
    names = [each.name for each in listed]
    for name in options.judge or ():
        if name not in names:
            near = sorted(names, key=lambda known: (name not in known, known))[:3]
            raise InputError(
                f"--judge: there is no row {name!r} in this run; there are "
                f"{', '.join(map(repr, near))} and {max(0, len(names) - 3)} more"
            )
    return listed


def list_ours(options: Options, mode: str) -> Iterator[Contender]:
    """Reuse of attention, of attention and feed-forward, and forecasts of both."""
    fronts = [
        ("attention", kinds.ATTENTION, "attention", 0),
        ("attention + ff", kinds.BOTH, "all", 0),
        *((f"forecast order {n}", kinds.forecast_of(n), "all", n) for n in options.orders),
    ]
    for name, family, sites, order in fronts:
        for every in options.every:
            numbers = {"every": every, "warmup": options.warmup, "order": order}
            make = partial(make_interval, options.steps, **numbers)
            recipe = Transformed(make, {"sites": sites, **numbers}, sites)
            yield Contender(f"{name}, every {every}", family, options.steps, recipe, mode)


def list_guided(options: Options, mode: str) -> Iterator[Contender]:
    """Forecasts of both kinds of sites, and of the unconditional half's difference."""
    if options.guidance <= 1:
        return
    for every, called in GUIDED_INTERVALS:
        numbers = {"every": every, "warmup": WARMUP, "order": 1}
        output = make_interval(options.steps, **{**numbers, "every": called})
        recipe = Transformed(
            partial(make_interval, options.steps, **numbers),
            {"sites": "all", **numbers, "unconditional": called},
            "all",
            Guidance(output=output, keep="difference", batched="conditional_first"),
        )
        setting = f"forecast order 1, every {every}, unconditional every {called}"
        yield Contender(setting, kinds.GUIDED, options.steps, recipe, mode)
