"""One thread at a time makes graphs.

Neither ``torch.export`` nor the fake tensors of a graph's metadata know threads: of two
threads that trace at a time, one fails. Whoever makes a graph, or asks a pass to, holds this
lock; what is made already is found without it.
"""

from __future__ import annotations

from threading import RLock

TRACING = RLock()
"""Held while a graph is made; one for the process, since torch's state is."""
