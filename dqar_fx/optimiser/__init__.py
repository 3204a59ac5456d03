"""A schedule found under a budget: measure once, search, and judge on held-out seeds."""

from .fit import fit_forecasts
from .front import Front, Point
from .optimise import Optimum, optimise

__all__ = ["Front", "Optimum", "Point", "fit_forecasts", "optimise"]
