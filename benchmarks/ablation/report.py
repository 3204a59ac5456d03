"""What a run prints and writes: the table, its notes, the claims, the pictures."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tabulate import tabulate

from benchmarks.ablation.claims import Claim, write_claims
from benchmarks.ablation.pairs import format_pairs
from benchmarks.ablation.rows import Row, write_rows
from benchmarks.ablation.table import format_notes, format_table, show_psnr
from benchmarks.harness.pictures import draw_grid
from benchmarks.harness.pipelines import Task
from benchmarks.harness.tables import show

FILES = ("rows.jsonl", "claims.json", "ablation.md", "pictures.png")
WIDTH = 95
PAIRS_NOTE = "Pairs that differ in one thing: the first less the second, or the first by it."


def print_report(rows: Sequence[Row], claims: Sequence[Claim]) -> None:
    """Print the table, its notes, the pairs and the claims."""
    notes = "\n".join(textwrap.fill(note, WIDTH) for note in format_notes(rows))
    parts = (format_table(rows), notes, PAIRS_NOTE, format_pairs(rows), format_claims(claims))
    print(*parts, sep="\n\n")


def format_claims(claims: Sequence[Claim]) -> str:
    """The claims as text: the verdict, then what it is about."""
    return "\n".join(
        textwrap.fill(
            f"{claim.verdict}: {claim.claim} Measured: {claim.measured}. {claim.why}",
            WIDTH,
            subsequent_indent="    ",
        )
        for claim in claims
    )


def write_report(
    rows: Sequence[Row],
    claims: Sequence[Claim],
    pictures: Mapping[str, torch.Tensor],
    task: Task,
    out: Path,
) -> list[Path]:
    """Write rows, claims, a Markdown page and the grid of pictures; which files these are."""
    paths = dict(zip(FILES, (out / name for name in FILES), strict=True))
    write_rows(rows, paths["rows.jsonl"])
    write_claims(claims, paths["claims.json"])
    paths["ablation.md"].write_text(format_page(rows, claims))
    if not pictures:
        return list(paths.values())[:-1]
    draw_pictures(rows, pictures, task, paths["pictures.png"])
    return list(paths.values())


def format_page(rows: Sequence[Row], claims: Sequence[Claim]) -> str:
    """The same as a Markdown page."""
    notes = "\n".join(f"- {note}" for note in format_notes(rows))
    table = tabulate(
        [(each.claim, each.verdict, each.measured, each.why) for each in claims],
        headers=("claim of the report", "verdict", "measured here", "why"),
        tablefmt="github",
        disable_numparse=True,
    )
    return "\n\n".join(
        (
            "# Ablation",
            format_table(rows),
            notes,
            "## One thing at a time",
            PAIRS_NOTE,
            format_pairs(rows),
            "## What the report claims",
            table,
            f"Settings: `{json.dumps(dict(rows[0].run))}`\n",
        )
    )


def draw_pictures(
    rows: Sequence[Row], pictures: Mapping[str, torch.Tensor], task: Task, path: Path
) -> None:
    """Draw a row of pictures per configuration that has some."""
    shown = [row for row in rows if row.name in pictures]
    draw_grid(
        [pictures[row.name] for row in shown],
        [
            (row.name, f"speed {show(row.speed_median, '.2f')}, {show_psnr(row)} dB")
            for row in shown
        ],
        [(name, f"seed {seed}") for name, seed in zip(task.names, task.seeds, strict=True)],
    ).save(path)
