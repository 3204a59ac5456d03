"""What a run prints and writes: the tables, their notes, the claims, the pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.ablation.claims import Claim, write_claims
from benchmarks.ablation.rows import Row
from benchmarks.ablation.table import find_pairs, list_columns, list_notes, list_pair_columns
from benchmarks.harness.pictures import draw_grid
from benchmarks.harness.pipelines import Task
from benchmarks.harness.rows import write_rows
from benchmarks.harness.tables import Column, format_page, format_table, show, wrap_notes

FILES = ("rows.jsonl", "claims.json", "ablation.md", "pictures.png")
PAIRS_NOTE = "Pairs that differ in one thing: the first less the second, or the first by it."
CLAIM_COLUMNS = (
    Column("claim of the report", "claim"),
    Column("verdict", "verdict"),
    Column("measured here", "measured"),
    Column("why", "why"),
)


def write_report(
    rows: Sequence[Row],
    claims: Sequence[Claim],
    pictures: Mapping[str, torch.Tensor],
    task: Task,
    out: Path,
) -> None:
    """Print tables, notes and claims; write them as rows, as a page, and with pictures."""
    table = format_table(list_columns(rows), rows)
    pairs = format_table(list_pair_columns(rows[0].run), list(find_pairs(rows)))
    notes = list_notes(rows)
    said = [f"{c.verdict}: {c.claim} Measured: {c.measured}. {c.why}" for c in claims]
    print(table, wrap_notes(notes), PAIRS_NOTE, pairs, wrap_notes(said, "    "), sep="\n\n")

    paths = [out / name for name in FILES]
    write_rows(rows, paths[0])
    write_claims(claims, paths[1])
    parts = (
        table,
        "## One thing at a time",
        PAIRS_NOTE,
        pairs,
        "## What the report claims",
        format_table(CLAIM_COLUMNS, claims, num_left=4),
        "## What the columns mean",
    )
    paths[2].write_text(format_page("Ablation", parts, notes, asdict(rows[0].run)))
    if pictures:
        draw_pictures(rows, pictures, task, paths[3])
    print(f"\nwrote {', '.join(map(str, paths if pictures else paths[:3]))}")


def draw_pictures(
    rows: Sequence[Row], pictures: Mapping[str, torch.Tensor], task: Task, path: Path
) -> None:
    """Draw a row of pictures per configuration that has some."""
    shown = [row for row in rows if row.name in pictures]
    draw_grid(
        [pictures[row.name] for row in shown],
        [
            (
                row.name,
                f"speed {show(row.speed_median, '.2f')}, "
                f"{show(row.quality.psnr_db, '.1f')} dB",
            )
            for row in shown
        ],
        [(name, f"seed {seed}") for name, seed in zip(task.names, task.seeds, strict=True)],
    ).save(path)
