"""Cases that take no time, and what measures them: for what a ledger must withstand."""

from __future__ import annotations

import random
import time
from pathlib import Path

import torch

from benchmarks.accelerator import options
from benchmarks.accelerator.abilities import ask
from benchmarks.accelerator.cases import Case, Finding, Part
from benchmarks.accelerator.ledger import Ledger
from benchmarks.accelerator.options import SharedOptions
from benchmarks.accelerator.process import Measuring
from benchmarks.harness.machine import Machine

CPU = torch.device("cpu")
MACHINE = Machine("cpu", "a processor", 2, 1, "2.13", "0.42", "0.1", "c" * 40, False)
NUM_CASES = 60
ask(CPU)  # once: processes that are forked from this one know it


def wait(_stage):
    """A case of a few milliseconds."""
    time.sleep(0.002 * random.random())
    return Finding(True, "waited", {"padding": "x" * 200})


QUICK_PARTS = tuple(
    Part(
        name,
        1,
        lambda _scale: [Case(f"{n:02d}", "exact", wait) for n in range(NUM_CASES // 2)],
    )
    for name in ("one", "two")
)


def measure_quickly(
    folder: str, parts=QUICK_PARTS, budget_s: float = 30.0, begins=None
) -> None:
    """What the measuring process does, with other parts; sets an event when it begins."""
    if begins is not None:
        begins.set()
    options.PARTS = parts
    given = SharedOptions(budget_s=budget_s, device=CPU, out=Path(folder))
    ledger = Ledger(given.out)
    with ledger.locked(waits=True):
        Measuring(given, ledger, MACHINE, time.monotonic() + budget_s).run()
