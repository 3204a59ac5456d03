"""Stock pipelines with tiny random components: does a transformed one do what it must?

Each pipeline is made anew, so that nothing is downloaded, and asked for one or two requests
per check. Columns: computing all equals the untouched pipeline bit for bit (exact); an
aperiodic table gives what hooks on the untouched pipeline give (oracle); steps are those of
the scheduler (rows); what was reused is what the table says (as promised); another request
gives what a new pipeline gives (again); oracle and rows hold without the pipeline, by
``transform`` alone (bare).

Examples::

    python -m benchmarks.pipelines                  # all of them: minutes
    python -m benchmarks.pipelines --only "SD3*"    # some of them
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

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

    @property
    def stock(self) -> list[Stock]:
        """The pipelines to be tried."""
        chosen = self.choose(each.name for each in STOCK)
        return [each for each in STOCK if each.name in chosen]

    def settle(self) -> Self:
        """The same, if there is such a pipeline."""
        self.stock  # noqa: B018  # raises
        return super().settle()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    return run_command(Options, run, argv)


def run(options: Options) -> int:
    """Try, print and write; the exit code, 1 if something is wrong."""
    rows = [try_out(stock) for stock in tqdm(options.stock, unit="pipeline")]
    machine, path = describe_machine(torch.device("cpu")), options.out / "rows.jsonl"
    print(format_table(COLUMNS, rows), machine, sep="\n\n")
    write_rows(rows, path, machine)
    print(f"wrote {path}")
    return 0 if all(row.is_right for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
