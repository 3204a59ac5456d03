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
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Self

import torch
from tqdm import tqdm

from benchmarks.harness.errors import InputError
from benchmarks.harness.machine import describe_machine
from benchmarks.harness.options import CpuOptions, Patterns, at_least, run_command
from benchmarks.harness.rows import SHARED, noted_failure, write_rows
from benchmarks.harness.tables import NOTHING, Column, format_table
from benchmarks.stock.bench import STOCK
from benchmarks.stock.checks import CHECKS, Trial
from benchmarks.stock.stock import Stock

RIGHT, WRONG = "yes", "no"


@dataclass
class Row:
    """What one pipeline showed.

    Attributes:
        name: The pipeline.
        sites: Attentions of its denoisers.
        calls: Calls of its denoisers in one request.
        verdicts: By check, ``yes`` or ``no``, and a few words.
        seconds: What all checks took.
        error: What went wrong first, or None.
    """

    name: str
    sites: int | None = None
    calls: int | None = None
    verdicts: dict[str, str] = field(default_factory=dict, metadata=SHARED)
    seconds: float | None = None
    error: str | None = None

    @property
    def is_right(self) -> bool:
        """Whether nothing that was tried is wrong."""
        return self.error is None and all(v.startswith(RIGHT) for v in self.verdicts.values())

    def note_failure(self, error: str) -> None:
        """Writes an error down, if it is the first one."""
        self.error = self.error or error


def try_out(stock: Stock) -> Row:
    """All checks of a pipeline; one that fails is wrong."""
    row, trial, begun = Row(stock.name), Trial(stock), time.perf_counter()
    for name, check in CHECKS.items():
        row.verdicts[name] = WRONG
        with noted_failure(f"{stock.name}, {name}", row.note_failure):
            verdict = check(trial)
            row.verdicts[name] = f"{RIGHT if verdict.is_right else WRONG}: {verdict.word}"
    with noted_failure(f"{stock.name}, table", row.note_failure):
        row.sites = sum(map(len, trial.expected.tables.values()))
        row.calls = len(trial.plain.visits)
    row.seconds = time.perf_counter() - begun
    return row


COLUMNS = (
    Column("pipeline", "name"),
    Column("sites", "sites"),
    Column("calls", "calls"),
    *(
        Column(name.replace("_", " "), lambda row, name=name: row.verdicts.get(name, NOTHING))
        for name in CHECKS
    ),
    Column("s", "seconds", ".1f"),
)


@dataclass(frozen=True)
class Options(CpuOptions):
    """Options of this command."""

    COMMAND = "benchmarks.pipelines"

    threads: Annotated[int | None, at_least(1)] = 1
    """CPU threads; more of them take longer for models so small."""
    only: Patterns = ("*",)
    """Pipelines of such names."""
    out: Path = Path("results/pipelines")
    """Folder to write to."""

    @property
    def stock(self) -> list[Stock]:
        """The pipelines to be tried."""
        return [each for each in STOCK if any(fnmatchcase(each.name, p) for p in self.only)]

    def settle(self) -> Self:
        """The same, if there is such a pipeline."""
        if not self.stock:
            names = ", ".join(repr(each.name) for each in STOCK)
            raise InputError(f"--only: no pipeline is called so; there are {names}")
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
