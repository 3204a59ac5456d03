"""The process that measures: case after case, each row written the moment it is known.

A part has its share of what is left of the time, so that what one part does not use is there
for those behind it. No case begins after the end of its part's share. One that goes on far
beyond it is ended with the process; the command starts another one behind it, where that case
comes last.
"""

import faulthandler
import os
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from benchmarks.accelerator.cases import (
    FAILED,
    LACKING,
    Case,
    Finding,
    Part,
    Row,
    Stage,
    key_of,
)
from benchmarks.accelerator.ledger import Ledger
from benchmarks.accelerator.options import SharedOptions
from benchmarks.harness.machine import Machine
from benchmarks.harness.options import run_command

OVERTIME = 0.5
"""Share of its part's time that a case may take beyond it."""
MIN_OVERTIME_S = 30.0
MAX_ATTEMPTS = 2
"""How often a case is begun; then it has failed."""
BROKEN = 70
"""Exit code of a process whose device takes no more work."""


@dataclass(frozen=True)
class ProcessOptions(SharedOptions):
    """Options of the measuring process."""

    COMMAND = "benchmarks.accelerator.process"

    until: float = float("inf")
    """Seconds since the epoch by which it ends: its own start takes some."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line of a measuring process; the exit code."""
    return run_command(ProcessOptions, run, argv)


def run(options: ProcessOptions) -> int:
    """Run all cases that have no row; the exit code."""
    deadline = time.monotonic() + min(options.budget_s, options.until - time.time())
    end_with_parent()
    ledger = Ledger(options.out)
    with torch.no_grad(), ledger.locked(waits=True):
        Measuring(options, ledger, options.describe_machine(), deadline).run()
    return 0


def end_with_parent() -> None:
    """End this process soon after the one that started it, however that one ended."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@dataclass(frozen=True)
class Measuring:
    """One process's work.

    Attributes:
        options: What is wanted.
        ledger: Where rows go.
        machine: Where this is.
        deadline: Value of ``time.monotonic()`` at which all should be done.
    """

    options: SharedOptions
    ledger: Ledger
    machine: Machine
    deadline: float

    def run(self) -> None:
        """Part after part."""
        parts = list_missing(self.options, self.ledger)
        for number, (part, cases) in enumerate(parts):
            left_s = self.deadline - time.monotonic()
            weights = [each.weight for each, _ in parts[number:]]
            self.run_part(part, cases, left_s * weights[0] / sum(weights))

    def run_part(self, part: Part, cases: Sequence[Case], share_s: float) -> None:
        """The cases of a part, until its share of the time is over."""
        begun = time.monotonic()
        stage = Stage(
            self.options.place, self.options.scale, self.options.out, begun + share_s
        )
        for case in cases:
            if stage.left_s <= 0:
                break
            key = key_of(part.name, case.name)
            print(f"{key} ...", flush=True)
            self.ledger.begin(key)
            overtime_s = max(MIN_OVERTIME_S, OVERTIME * share_s)
            end_after(min(stage.left_s + overtime_s, self.deadline - time.monotonic()))
            row = self.try_case(part, case, stage)
            self.ledger.add(row)
            faulthandler.cancel_dump_traceback_later()
            print(f"{key}: {row.outcome}, {row.word}", flush=True)
            if row.outcome == FAILED and is_broken(stage.device):
                os._exit(BROKEN)  # all that comes here would fail
        stage.clear()

    def try_case(self, part: Part, case: Case, stage: Stage) -> Row:
        """The row of a case, also of one that fails."""
        begun, error = time.monotonic(), None
        lacking = stage.abilities.lacks(case.needs)
        if lacking:
            finding, outcome = Finding(None, f"the device has no {lacking}"), LACKING
        else:
            try:
                finding = case.run(stage)
                outcome = finding.outcome
            except Exception as failure:  # a failure is a row
                error = traceback.format_exc()
                said = (str(failure).strip().splitlines() or [""])[0]
                finding = Finding(None, f"{type(failure).__name__}: {said}"[:200])
                outcome = FAILED
        return self.make_row(
            part.name, case, finding, outcome, time.monotonic() - begun, error
        )

    def make_row(
        self,
        part: str,
        case: Case,
        finding: Finding,
        outcome: str,
        seconds: float,
        error: str | None,
    ) -> Row:
        """A row of this process."""
        return Row(
            part,
            case.name,
            case.claim,
            outcome,
            finding.word,
            dict(finding.values),
            round(seconds, 3),
            error,
            self.options.scale.name,
            self.machine,
        )


def list_missing(options: SharedOptions, ledger: Ledger) -> list[tuple[Part, list[Case]]]:
    """Parts with the cases that have no row, those last that were begun before."""
    finished = {row.key for row in ledger.read()}
    cut = ledger.count_cut()
    missing = []
    for part, cases in options.list_wanted():
        left = [case for case in cases if key_of(part.name, case.name) not in finished]
        left.sort(key=lambda case: cut[key_of(part.name, case.name)])
        if left:
            missing.append((part, left))
    return missing


def end_after(seconds: float) -> None:
    """End this process after a time, whatever it does, and say where it was."""
    faulthandler.dump_traceback_later(max(seconds, 0.1), exit=True, file=sys.__stderr__)


def is_broken(device: torch.device) -> bool:
    """Whether a device takes no more work, as CUDA's does after a fault in a kernel."""
    if device.type == "cpu":
        return False
    try:
        torch.ones(1, device=device).sum().item()
    except RuntimeError:
        return True
    return False


if __name__ == "__main__":
    sys.exit(main())
