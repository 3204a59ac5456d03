"""A schedule found under a budget: measure once, search, and judge on held-out seeds."""

from .front import Front, Point
from .optimise import Optimum, optimise

__all__ = ["Front", "Optimum", "Point", "optimise"]
