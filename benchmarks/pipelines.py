"""Stock pipelines with tiny random components: does a transformed one do what it must?

Each pipeline is made here, so that nothing is downloaded, and its denoisers are captured once
for all checks. Columns: computing all equals the untouched pipeline bit for bit (exact); an
aperiodic table gives what hooks on the untouched pipeline give (oracle); steps are those of
the scheduler (rows); what was reused is what the table says (as promised); another request
gives what hooks give for it (again); oracle and rows hold in a pipeline that is not enabled,
where denoisers find the step by themselves (bare).

Examples::

    python -m benchmarks.pipelines                  # all of them: minutes
    python -m benchmarks.pipelines --only "SD3*"    # some of them
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.harness.machine import describe_machine
from benchmarks.harness.options import run_command
from benchmarks.harness.rows import write_rows
from benchmarks.harness.tables import Column, format_table
from benchmarks.harness.verdicts import TriedRow, TryOptions, verdict_columns
from benchmarks.stock.bench import STOCK
from benchmarks.stock.checks import CHECKS, Trial
from benchmarks.stock.stock import Stock


@dataclass
class Row(TriedRow):
    """What one pipeline showed.

    Attributes:
        sites: Attentions of its denoisers.
        calls: Calls of its denoisers in one request.
    """

    sites: int | None = None
    calls: int | None = None

    @property
    def is_right(self) -> bool:
        """Whether nothing that was tried is wrong."""
        return self.error is None and not self.wrong


def try_out(stock: Stock) -> Row:
    """All checks of a pipeline."""
    row, trial, begun = Row(stock.name), Trial(stock), time.perf_counter()
    row.try_all(CHECKS, trial)
    with row.noting("table"):
        row.sites = sum(map(len, trial.expected.tables.values()))
        row.calls = len(trial.plain.visits)
    row.seconds = time.perf_counter() - begun
    return row


COLUMNS = (
    Column("pipeline", "name"),
    Column("sites", "sites"),
    Column("calls", "calls"),
    *verdict_columns(CHECKS),
)


@dataclass(frozen=True)
class Options(TryOptions):
    """Options of this command."""

    COMMAND = "benchmarks.pipelines"

    out: Path = Path("results/pipelines")
    """Folder to write to."""

    @classmethod
    def known(cls) -> list[str]:
        """All pipelines."""
        return [stock.name for stock in STOCK]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    return run_command(Options, run, argv)


def run(options: Options) -> int:
    """Try, print and write; the exit code, 1 if something is wrong."""
    chosen = [stock for stock in STOCK if stock.name in options.names]
    rows = [try_out(stock) for stock in tqdm(chosen, unit="pipeline")]
    machine, path = describe_machine(torch.device("cpu")), options.out / "rows.jsonl"
    print(format_table(COLUMNS, rows), machine, sep="\n\n")
    write_rows(rows, path, machine)
    print(f"wrote {path}")
    return 0 if all(row.is_right for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
