"""The branch table: what every site does at every step, verified before anything runs."""

from __future__ import annotations

import json
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dqar_fx.errors import ScheduleError

from .action import LETTERS, Action
from .forecast import MAX_ORDER, points_of
from .run import RunShape, count_solver_steps, name_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

Around = Sequence[tuple[int, ...]]
"""For each column, the columns of the sites that contain its site; empty where none does."""
NEVER = -1
"""In `BranchTable.sources`: nothing is read."""
READING = (Action.REUSE, Action.FORECAST)
"""Actions that read what was kept."""


def no_weights() -> NDArray[np.float64]:
    """Return the weights of a table whose forecasts follow from its method: none."""
    return np.zeros((0, 0, 0))


@dataclass(frozen=True, eq=False)
class BranchTable:
    """A schedule resolved against the sites of a model.

    Attributes:
        actions: int8 ``[steps, sites]`` of `Action`; read-only.
        sites: Module path of each column.
        max_age: The most steps that a kept output may be old, or None.
        reason: Says why a cell is what it is; given by the schedule. Equality ignores it.
        orders: Order of each FORECAST, at least 1, and 0 in all other cells; int8
            ``[steps, sites]``, or one for all.
        method: How to forecast, a name of `forecast.METHODS`.
        around: For each column, the columns of the sites that contain its site; empty where
            none does.
        weights: Weights of what each FORECAST reads, newest first, in place of the method's;
            float64 ``[steps, sites, points]``. A cell of zeros leaves it to the method, and
            so does a trajectory that has kept other steps. Empty where the method weighs all.
        noise: Signal-to-noise ratio of the latent at each step that the table is for; empty
            where it is not known. Equality ignores it.
        calls: Which call of its solver's step each step of the table is, see `RunShape`; empty
            where each is the only one. Equality ignores it.
        resample: Whether runs of another number of steps may be made of it, by
            `Schedule.from_table` and `Schedule.for_run`; if not, it is good for its own
            number alone. Equality ignores it.
        damping: Noise of what is kept, by its change from one step to the next: how much the
            method's weights are shrunk, see `forecast.damp`. 0 leaves them as they are.

    Raises:
        ScheduleError: A REUSE that no STORE reaches, a STORE that nothing reads, an output
            older than ``max_age``, a site that is covered and should not be or the other way
            round, an unknown action, a wrong number of columns, weights that are no numbers
            or of another shape, a damping that is none, or noise levels of another number of
            steps.
    """

    actions: NDArray[np.int8]
    sites: tuple[str, ...]
    max_age: int | None = None
    reason: Callable[[BranchTable, int, int], str] | None = field(default=None, repr=False)
    orders: NDArray[np.int8] = field(default_factory=lambda: np.zeros((1, 1), np.int8))
    method: str = "taylor"
    around: tuple[tuple[int, ...], ...] = ()
    weights: NDArray[np.float64] = field(default_factory=no_weights, repr=False)
    noise: tuple[float, ...] = field(default=(), repr=False)
    resample: bool = False
    calls: tuple[int, ...] = field(default=(), repr=False)
    damping: float = 0.0

    def __post_init__(self) -> None:
        actions = np.array(self.actions)
        if actions.ndim != 2 or actions.shape[1] != len(self.sites):
            raise ScheduleError(
                f"a branch table needs shape [steps, {len(self.sites)}], one column per site, "
                f"but has shape {list(actions.shape)}"
            )
        if 0 in actions.shape:
            raise ScheduleError(
                f"a branch table needs a step and a site, but has shape {list(actions.shape)}"
            )
        unknown = np.argwhere(~np.isin(actions, list(Action)))
        if len(unknown):
            step, site = map(int, unknown[0])
            raise ScheduleError(
                f"{self.where(step, site)}: unknown action {actions[step, site]!r}; "
                f"known are {', '.join(f'{a.name} {a.value}' for a in Action)}"
            )
        actions = actions.astype(np.int8)
        try:
            given = np.broadcast_to(self.orders, actions.shape)
        except ValueError:
            raise ScheduleError(
                f"orders need the shape of the actions, {list(actions.shape)}, but have "
                f"{list(np.shape(self.orders))}"
            ) from None
        orders = np.where(actions == Action.FORECAST, given, 0).astype(np.int8)
        weights = np.array(self.weights, np.float64)
        arrays = (("actions", actions), ("orders", orders), ("weights", weights))
        for name, array in arrays:
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        if not any(self.around):
            object.__setattr__(self, "around", ())
        if not isinstance(self.resample, bool):
            raise ScheduleError(f"resample is true or false, found {self.resample!r}")
        check_damping(self.damping)
        if len(self.noise) not in (0, self.num_steps):
            raise ScheduleError(
                f"a branch table of {self.num_steps} steps needs as many noise levels, or "
                f"none; found {len(self.noise)}"
            )
        self._verify()
        self._verify_weights()

    def _verify(self) -> None:
        reused = self.is_read
        covered = find_covered(reused, self.around)
        is_covered = self.actions == Action.COVERED
        self._reject(is_covered & ~covered, "covered (.), but no site around it is read")
        self._reject(covered & ~is_covered, "not covered (.), though a site around it is read")
        forecast = self.actions == Action.FORECAST
        self._reject(reused & (self.sources == NEVER), "REUSE, but no STORE comes before it")
        self._reject(forecast & (self.orders < 1), "FORECAST without an order")
        self._reject(
            forecast & (self.orders > MAX_ORDER), f"FORECAST of an order above {MAX_ORDER}"
        )
        if self.max_age is not None:
            age = np.arange(self.num_steps)[:, None] - self.sources
            self._reject(
                reused & (age > self.max_age),
                f"REUSE of an output older than max_age={self.max_age} steps",
            )
        stored = self.actions == Action.STORE
        dead = stored & ~find_read(stored, reused, self.points)
        self._reject(dead, "STORE, but no REUSE reads it")

    def _verify_weights(self) -> None:
        """Check that weights are numbers, as many per cell as a forecast reads at most."""
        if not self.weights.size:
            return
        expected = (*self.actions.shape, self.history)
        if self.weights.shape != expected:
            raise ScheduleError(
                f"weights need shape {list(expected)}, [steps, sites, points], but have "
                f"{list(self.weights.shape)}. A forecast of this table reads {self.history} "
                "kept outputs at most"
            )
        unknown = np.asarray(~np.isfinite(self.weights).all(axis=2))
        self._reject(unknown, "weights that are no numbers")
        idle = np.asarray(self.weights.any(axis=2) & (self.actions != Action.FORECAST))
        self._reject(idle, "weights, but no FORECAST")

    def _reject(self, broken: NDArray[np.bool_], rule: str) -> None:
        if not broken.any():
            return
        step, site = map(int, np.argwhere(broken)[0])
        row = "".join(Action(a).letter for a in self.actions[:, site])
        raise ScheduleError(
            f"{self.where(step, site)}: {rule}. Its actions are {row}; "
            f"{int(broken.sum())} cells of the table break this rule"
        )

    def where(self, step: int, site: int) -> str:
        """Name a cell by its step, its column and its module path."""
        return f"step {step}, site {site} ({self.sites[site]})"

    @cached_property
    def sources(self) -> NDArray[np.int64]:
        """int64 ``[steps, sites]``: the step whose output a REUSE reads, else `NEVER`."""
        stored = np.where(
            self.actions == Action.STORE, np.arange(self.num_steps)[:, None], NEVER
        )
        latest = np.maximum.accumulate(stored, axis=0)
        return np.where(self.is_read, latest, NEVER)

    @cached_property
    def is_read(self) -> NDArray[np.bool_]:
        """Bool ``[steps, sites]``: whether a cell reads what was kept: REUSE or FORECAST."""
        return np.isin(self.actions, READING)

    @cached_property
    def is_skipped(self) -> NDArray[np.bool_]:
        """Bool ``[steps, sites]``: whether a cell computes nothing: it reads or is covered."""
        return np.asarray(self.is_read | (self.actions == Action.COVERED))

    @cached_property
    def points(self) -> NDArray[np.int64]:
        """int64 ``[steps, sites]``: how many kept outputs a cell reads, at most."""
        known = np.array([points_of(self.method, order) for order in range(MAX_ORDER + 1)])
        return np.where(self.is_read, known[np.clip(self.orders, 0, MAX_ORDER)], 0)

    @property
    def history(self) -> int:
        """How many outputs of a site are kept at a time."""
        return max(int(self.points.max()), 1)

    @cached_property
    def kept(self) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """``[steps][sites]``: the steps whose outputs a cell reads, newest first."""
        stored = [np.nonzero(column == Action.STORE)[0] for column in self.actions.T]

        def read(step: int, site: int) -> tuple[int, ...]:
            before = stored[site][stored[site] < step]
            return tuple(before[::-1][: self.points[step, site]].tolist())

        steps, sites = self.actions.shape
        return tuple(tuple(read(t, s) for s in range(sites)) for t in range(steps))

    def weights_for(self, step: int, site: int, kept: tuple[int, ...]) -> list[float] | None:
        """Return the weights that the table brings for a forecast, newest output first.

        None where it brings none, or where other steps are kept than they were made for.
        """
        if not self.weights.size or not self.weights[step, site].any():
            return None
        expected = self.kept[step][site]
        if kept[: len(expected)] != expected:
            return None
        found: list[float] = self.weights[step, site].tolist()
        return found

    @cached_property
    def ages(self) -> NDArray[np.int64]:
        """int64 ``[steps, sites]``: steps since each site was computed last; step 0 has 0."""
        step = np.arange(self.num_steps)[:, None]
        computed = np.where(self.is_skipped, 0, step)
        before = np.zeros_like(computed)
        before[1:] = np.maximum.accumulate(computed, axis=0)[:-1]
        return step - before

    def why(self, step: int, site: int | str) -> str:
        """Say what a site does at a step, and why.

        Args:
            step: The step.
            site: Its column, or its module path.

        Raises:
            ScheduleError: The table has no such step or site.
        """
        column = self.column_of(site)
        if not 0 <= step < self.num_steps:
            raise ScheduleError(f"no step {step}: the branch table has {self.num_steps}")
        action = Action(self.actions[step, column])
        if action == Action.COVERED:
            readers = [c for c in self.around[column] if self.is_read[step, c]]
            said = f"inside of {self.sites[readers[0]]}, which is read"
        else:
            said = "as given" if self.reason is None else self.reason(self, step, column)
        source = int(self.sources[step, column])
        done = f" of step {source}" if action == Action.REUSE else ""
        if action == Action.FORECAST:
            done = f" of order {self.orders[step, column]} from step {source}"
            if self.weights.size and self.weights[step, column].any():
                done += f", weights {np.round(self.weights[step, column], 3).tolist()}"
        return f"{self.where(step, column)}: {action.name}{done}, {said}"

    def column_of(self, site: int | str) -> int:
        """Return the column of a site.

        Raises:
            ScheduleError: The table has no such site.
        """
        if isinstance(site, str) and site in self.sites:
            return self.sites.index(site)
        if isinstance(site, str) or not 0 <= site < len(self.sites):
            raise ScheduleError(
                f"no site {site!r}: the branch table has {len(self.sites)}, "
                f"{self.sites[0]} to {self.sites[-1]}"
            )
        return site

    def save(self, path: str | Path) -> None:
        """Write the table as JSON, with a text of actions for each site."""
        columns = {
            site: "".join(Action(a).letter for a in column)
            for site, column in zip(self.sites, self.actions.T, strict=True)
        }
        content: dict[str, Any] = {"max_age": self.max_age, "actions": columns}
        if self.orders.any() or self.method != "taylor":
            content |= {"method": self.method, "orders": self.orders.T.tolist()}
        if self.damping:
            content["damping"] = self.damping
        if any(self.around):
            content["around"] = self.around
        if self.weights.size:
            content["weights"] = self.weights.tolist()
        if self.resample:
            content["resample"] = True
        if self.calls:
            content["calls"] = self.calls
        if self.noise:  # JSON has no infinity: null is a latent without noise
            content["noise"] = [None if np.isinf(ratio) else ratio for ratio in self.noise]
        Path(path).write_text(json.dumps(content, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> BranchTable:
        """Read what `save` wrote; ``Schedule.from_table(table)`` makes it run.

        Raises:
            ScheduleError: The file cannot be read, or breaks a rule.
        """
        try:
            content = json.loads(Path(path).read_text())
            columns = [[LETTERS[c] for c in text] for text in content["actions"].values()]
            actions, max_age = np.array(columns, np.int8).T, content["max_age"]
            max_age = None if max_age is None else operator.index(max_age)
            orders = np.array(content.get("orders") or [[0]], np.int8).T
            weights = np.array(content.get("weights") or no_weights(), np.float64)
            ratios = [np.inf if each is None else each for each in content.get("noise", ())]
            known = RunShape.of(len(actions), content.get("calls", ()), ratios or None)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ScheduleError(
                f"no branch table can be read from {path}: {type(error).__name__}: {error}"
            ) from error
        return cls(
            actions,
            tuple(content["actions"]),
            max_age,
            orders=orders,
            method=content.get("method", "taylor"),
            around=tuple(tuple(each) for each in content.get("around", ())),
            weights=weights,
            noise=known.noise,
            resample=content.get("resample", False),
            calls=known.calls,
            damping=content.get("damping", 0.0),
        )

    @property
    def num_solver_steps(self) -> int:
        """Steps of the solver; fewer than those of the table where one has several calls."""
        return count_solver_steps(self.num_steps, self.calls)

    @property
    def num_steps(self) -> int:
        """Steps of the trajectory that the table is for."""
        return int(self.actions.shape[0])

    @cached_property
    def rows(self) -> tuple[tuple[Action, ...], ...]:
        """The distinct rows, in order of first appearance."""
        return tuple(dict.fromkeys(self.row(step) for step in range(self.num_steps)))

    def row(self, step: int) -> tuple[Action, ...]:
        """Return what every site does at a step."""
        return tuple(Action(a) for a in self.actions[step])

    @property
    def reuse_ratio(self) -> float:
        """Share of cells that compute nothing, in [0, 1]."""
        return float(self.is_skipped.mean())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BranchTable):
            return NotImplemented
        facts = ("sites", "max_age", "method", "around", "damping")
        return (
            all(getattr(self, name) == getattr(other, name) for name in facts)
            and np.array_equal(self.actions, other.actions)
            and np.array_equal(self.orders, other.orders)
            and np.array_equal(self.weights, other.weights)
        )

    def __hash__(self) -> int:
        return hash((self.sites, self.max_age, self.method, self.actions.tobytes()))

    def _legend(self) -> str:
        orders = sorted({int(order) for order in self.orders.flat if order})
        told = ", . inside of what is read" if (self.actions == Action.COVERED).any() else ""
        if not orders:
            return told
        how = f"{self.method}, fitted" if self.weights.size else self.method
        how += f", damped by {self.damping:.3g}" if self.damping else ""
        return f", F forecast ({how}, order {', '.join(map(str, orders))}){told}"

    def __str__(self) -> str:
        """The report's diagram: time to the right, shallow sites above deep ones."""
        width = max((len(path) for path in self.sites), default=0)
        ruler = "".join(f"{step:<10d}" for step in range(0, self.num_steps, 10))
        lines = [
            f"{name_rows(self.num_steps, self.num_solver_steps)} x {len(self.sites)} sites, "
            f"{len(self.rows)} distinct rows, reuse ratio {self.reuse_ratio:.3f}",
            "C compute, S compute and store, R reuse" + self._legend(),
            f"{'step':>{width}}  {ruler}".rstrip(),
        ]
        for path, column in zip(self.sites, self.actions.T, strict=True):
            lines.append(f"{path:>{width}}  {''.join(Action(a).letter for a in column)}")
        return "\n".join(lines)


def check_damping(damping: float | str) -> None:
    """Check how much forecasts are to be damped.

    Raises:
        ScheduleError: It is no finite number of at least 0.
    """
    is_number = isinstance(damping, int | float) and not isinstance(damping, bool)
    if isinstance(damping, str) or not is_number or not 0 <= damping < np.inf:
        raise ScheduleError(
            f"damping={damping!r}: expected the noise of what is kept by its change per "
            "step, a number of at least 0 such as 0.1; of a schedule, or 'cache'"
        )


def find_covered(is_read: NDArray[np.bool_], around: Around) -> NDArray[np.bool_]:
    """Return which cells lie inside of a site that reads at their step, ``[steps, sites]``."""
    covered = np.zeros_like(is_read)
    for column, outer in enumerate(around):
        if outer:
            covered[:, column] = is_read[:, list(outer)].any(axis=1)
    return covered


def find_read(
    computed: NDArray[np.bool_], is_read: NDArray[np.bool_], points: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Return which computed cells a later one reads, bool ``[steps, sites]``.

    Args:
        computed: Bool ``[steps, sites]``: cells that may be kept.
        is_read: Bool ``[steps, sites]``: cells that read the latest of these.
        points: int64 ``[steps, sites]``: how many of them each reads.
    """
    read = np.zeros_like(computed)
    for column in range(computed.shape[1]):
        kept = list[int]()
        for step in range(len(computed)):
            if computed[step, column]:
                kept.append(step)
            elif is_read[step, column]:
                read[kept[-int(points[step, column]) :], column] = True
    return read
