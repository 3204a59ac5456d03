"""What only one thread of a process does at a time: to capture a model and to lower a graph.

`torch.export` and passes over graphs that are shared are not thread-safe. Steps that are
captured, lowered and bound run without waiting for anyone.
"""

from __future__ import annotations

from threading import RLock

ONE_AT_A_TIME = RLock()
"""Held by the thread that captures, lowers or binds; it may take it again."""
