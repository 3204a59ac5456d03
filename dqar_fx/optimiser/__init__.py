"""A schedule found under a budget: measure once, search, and judge on held-out seeds."""

from .fit import fit_forecasts
from .fit_solver import FittedSolver, fit_solver
from .front import Front, Point
from .optimise import optimise
from .optimum import Optimum
from .teacher import Teacher

__all__ = [
    "FittedSolver",
    "Front",
    "Optimum",
    "Point",
    "Teacher",
    "fit_forecasts",
    "fit_solver",
    "optimise",
]
