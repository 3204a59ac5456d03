"""Every transformer and UNet of diffusers, in small: does a transformed one do what it must?

Each class that diffusers exports is tried, with a configuration of two blocks or more and
inputs that are derived from its forward and its config. Columns: how it is captured (tier);
its sites; computing all equals the untouched model bit for bit (computes); attention, or what
blocks add, that reuses at every other step equals plain hooks bit for bit (attention,
blocks); compiled by blocks it gives the same, and compiles nothing in a second run
(compiled).

Examples::

    python -m benchmarks.models                    # all of them: a quarter of an hour
    python -m benchmarks.models --only "Wan*"      # some of them
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
from benchmarks.harness.tables import Column, format_table, wrap_notes
from benchmarks.harness.verdicts import TriedRow, TryOptions, verdict_columns
from benchmarks.zoo.specimens import find_exports, specimens
from benchmarks.zoo.trials import TRIALS, Trial
from benchmarks.zoo.waiting import Waiting, waiting


@dataclass
class Row(TriedRow):
    """What one class showed.

    Attributes:
        tier: How it is captured.
        attention_sites: Sites that are attentions.
        feed_forward_sites: Sites that are feed-forwards.
        block_sites: Sites that are blocks.
        note: Why trials do not hold yet, where that is known.
    """

    tier: str | None = None
    attention_sites: int | None = None
    feed_forward_sites: int | None = None
    block_sites: int | None = None
    note: str | None = None

    @property
    def is_as_known(self) -> bool:
        """Whether the trials that hold are all but those that are known not to."""
        return self.wrong == set(waiting().get(self.name, Waiting()).trials)


def try_out(name: str) -> Row:
    """All trials of a class."""
    row, trial, begun = Row(name), Trial(specimens()[name]), time.perf_counter()
    row.try_all(TRIALS, trial)
    row.tier = trial.tier
    row.note = waiting().get(name, Waiting()).note or None
    with row.noting("sites"):
        kinds = trial.kinds
        row.attention_sites = kinds["attention"]
        row.feed_forward_sites = kinds["feed_forward"]
        row.block_sites = kinds["block"]
    row.seconds = time.perf_counter() - begun
    return row


COLUMNS = (
    Column("class", "name"),
    Column("tier", "tier"),
    Column("attention", "attention_sites"),
    Column("feed-forward", "feed_forward_sites"),
    Column("block", "block_sites"),
    *verdict_columns(TRIALS),
)


@dataclass(frozen=True)
class Options(TryOptions):
    """Options of this command."""

    COMMAND = "benchmarks.models"

    out: Path = Path("results/models")
    """Folder to write to."""

    @classmethod
    def known(cls) -> list[str]:
        """All classes."""
        return find_exports()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    return run_command(Options, run, argv)


def run(options: Options) -> int:
    """Try, print and write; the exit code, 1 if a trial does not hold that should, or does."""
    rows = [try_out(name) for name in tqdm(options.names, unit="class")]
    machine, path = describe_machine(torch.device("cpu")), options.out / "rows.jsonl"
    print(format_table(COLUMNS, rows), machine, sep="\n\n")
    print(wrap_notes([f"{row.name}: {row.note}" for row in rows if row.note]))
    write_rows(rows, path, machine)
    print(f"wrote {path}")
    return 0 if all(row.is_as_known for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
