"""Ways to run, and families of contenders."""

from dataclasses import dataclass

EAGER, COMPILED, BLOCKS = "eager", "compiled", "compiled by block"
UNLIMITED, FROZEN = "compiled, no limit of recompiles", "compiled, freezing"
STOCK = "as documented"
"""How a contender runs."""


@dataclass(frozen=True)
class Family:
    """Contenders that belong together: a line or a kind of marker.

    Attributes:
        key: What the command line calls it.
        title: What tables and figures call it.
        kind: ``"base"``, ``"teacher"``, ``"fewer"``, ``"solver"``, ``"ours"``, ``"theirs"`` (a
            peer's schedule, run by dqar_fx) or ``"peer"``.
    """

    key: str
    title: str
    kind: str


def forecast_of(order: int) -> Family:
    """The family of forecasts of an order, in the place of reuse of both kinds of sites."""
    return Family("forecast", f"attention + feed-forward forecast, order {order}", "ours")


BASE = Family("base", "untransformed", "base")
FEWER = Family("fewer", "fewer steps", "fewer")
TEACHER = Family("teacher", "converged", "teacher")
SOLVERS = Family("solvers", "another solver, nothing reused", "solver")
FITTED = Family("fitted", "fitted solver, nothing reused", "ours")
ATTENTION = Family("attention", "attention reused", "ours")
BOTH = Family("all", "attention + feed-forward reused", "ours")
GUIDED = Family("guidance", "forecast, unconditional half too", "ours")
OPTIMISED = Family("tables", "optimised tables", "ours")
THEIRS = Family("schedules", "peers' schedules, run by dqar_fx", "theirs")
BUDCACHE = Family("budcache", "BudCache's search, run by dqar_fx", "theirs")
DIFFUSERS = Family("diffusers", "diffusers hooks", "peer")
CACHE_DIT = Family("cache-dit", "cache-dit", "peer")
DOCUMENTED = Family("stock", "as documented", "peer")
OURS = FEWER, ATTENTION, BOTH, forecast_of(1), GUIDED, OPTIMISED
CHOICES = (*OURS, SOLVERS, FITTED, THEIRS, BUDCACHE, DIFFUSERS, CACHE_DIT)
KEYS = tuple(family.key for family in CHOICES)
"""Families that the command line can choose; the base and the teacher always take part."""
