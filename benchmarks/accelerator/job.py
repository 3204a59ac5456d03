"""Prove or refute every claim about accelerators, within a budget of time.

The report's own question comes first; then parts in the order of what they are worth. Rows are
written the moment they are known, and what has a row is not measured again: after a cut-off
the same command goes on. The report is written last, and whenever a process has ended.

Examples::

    python -m benchmarks.accelerator --device cuda --commit HASH --out results/h200
    python -m benchmarks.accelerator --only "question/*" speed        # some of it
    python -m benchmarks.accelerator --device cpu --budget-s 120      # the rehearsal
    python -m benchmarks.accelerator --list                           # all cases
    python -m benchmarks.accelerator --report --out results/h200      # of what is there
"""

import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.accelerator.cases import FAILED, Case, Part, Row, key_of
from benchmarks.accelerator.ledger import Ledger
from benchmarks.accelerator.options import Options
from benchmarks.accelerator.process import MAX_ATTEMPTS, list_missing
from benchmarks.accelerator.report import write_report
from benchmarks.harness.apart import run_apart
from benchmarks.harness.machine import Machine
from benchmarks.harness.options import run_command

SAID = "said.txt"
RESERVE_S = 2.0
"""Kept for the report."""
END_S = 0.5
"""What a process takes to end by itself."""
START_S = 3.0
"""A process with less time than this would do nothing but start."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code: 1 if a case failed, 2 for unusable input."""
    return run_command(OwnOptions, run, argv)


@dataclass(frozen=True)
class OwnOptions(Options):
    """Options of this command, described by this module."""

    COMMAND = "benchmarks.accelerator"


def run(options: Options) -> int:
    """Measure what has no row, and report; the exit code."""
    begun = time.monotonic()
    if options.list:
        listed = options.list_wanted()
        print(
            "\n".join(key_of(part.name, case.name) for part, cases in listed for case in cases)
        )
        return 0
    ledger, machine = Ledger(options.out), options.describe_machine()
    with ledger.locked(waits=True):  # a process that was left behind is about to end
        ledger.refuse_other_run(options.scale.name, machine)
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        if not options.report:
            Launcher(options, ledger, machine, begun + options.budget_s - RESERVE_S).run()
    finally:
        signal.signal(signal.SIGTERM, before)
        paths = write_report(ledger.read(), options, machine)
    rows = ledger.read()
    print(paths[0].read_text())
    print(f"wrote {', '.join(map(str, (ledger.path, *paths)))}")
    return 1 if any(row.outcome == FAILED for row in rows) else 0


def interrupt(*_: Any) -> None:
    """Be interrupted by what asks a process to end, as by Ctrl-C."""
    raise KeyboardInterrupt


@dataclass(frozen=True)
class Launcher:
    """Starts measuring processes, one after the other.

    Attributes:
        options: What is wanted.
        ledger: Where rows are.
        machine: Where this is.
        deadline: Value of ``time.monotonic()`` at which the last one must have ended.
    """

    options: Options
    ledger: Ledger
    machine: Machine
    deadline: float

    def run(self) -> None:
        """Start one, and another one behind each that did not come to its end."""
        while (left_s := self.deadline - time.monotonic()) > START_S:
            if not list_missing(self.options, self.ledger):
                return
            before = self.ledger.read_begun()
            said = self.options.out / SAID
            error = run_apart(
                "benchmarks.accelerator.process",
                self.arguments(left_s),
                said=said,
                timeout_s=left_s,
            )
            if error is None:
                return
            with self.ledger.locked(waits=True):
                moved_on = self.note_end(error, said, len(before))
            write_report(self.ledger.read(), self.options, self.machine)
            if not moved_on:
                print(f"the measuring process did not start: {error}", file=sys.stderr)
                return

    def arguments(self, left_s: float) -> list[str]:
        """The command line of a process."""
        given = self.options
        words = ["--budget-s", str(left_s), "--until", str(time.time() + left_s - END_S)]
        words += ["--device", str(given.place), "--out"]
        words += [str(given.out), "--only", *given.only]
        words += ["--small"] if given.small else []
        return [*words, *(["--commit", given.commit] if given.commit else [])]

    def note_end(self, error: str, said: Path, num_before: int) -> bool:
        """Write down which case ended a process; whether it had begun one at all.

        What outran its time is begun once more, behind all others, before it has failed.
        """
        begun = self.ledger.read_begun()
        cut = self.ledger.count_cut()
        for part, case in self.list_open(begun[-1:]):
            outran = "Timeout (" in said.read_text(errors="replace") or "TimeoutError" in error
            if not outran or cut[key_of(part.name, case.name)] >= MAX_ATTEMPTS:
                self.ledger.add(self.make_failure(part, case, error, said))
        return len(begun) > num_before

    def list_open(self, keys: Sequence[str]) -> list[tuple[Part, Case]]:
        """Those of some cases that have no row."""
        missing = list_missing(self.options, self.ledger)
        return [
            (p, c) for p, cases in missing for c in cases if key_of(p.name, c.name) in keys
        ]

    def make_failure(self, part: Part, case: Case, error: str, said: Path) -> Row:
        """The row of a case that ended its process."""
        last = said.read_text(errors="replace")[-4000:]
        values = (part.name, case.name, case.claim, FAILED, error[:200], {}, 0.0, last)
        return Row(*values, self.options.scale.name, self.machine)
