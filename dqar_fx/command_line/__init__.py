"""The command ``dqar-fx``: look at what the compiler makes of a model, without running it."""

from .main import main

__all__ = ["main"]
