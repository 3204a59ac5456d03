"""Pairs of rows that differ in one thing: the format, what is kept, or reuse at equal cost."""

from collections.abc import Iterator, Sequence

from tabulate import tabulate

from benchmarks.ablation.configurations import (
    FULL,
    KV,
    MENDED,
    MENDED_FP16,
    MENDED_KV,
    RIVALLED,
    SCHEDULING,
    cost_of,
)
from benchmarks.ablation.rows import Row
from benchmarks.ablation.table import show_psnr, show_range
from benchmarks.harness.tables import show

PAIRS = (
    ("INT8 against FP16", FULL, SCHEDULING),
    ("INT8 against FP16", MENDED, MENDED_FP16),
    ("K/V against outputs", KV, SCHEDULING),
    ("K/V against outputs", MENDED_KV, MENDED_FP16),
)
"""What differs, and the names of two rows with the same branch table."""


def find_pairs(rows: Sequence[Row]) -> Iterator[tuple[str, Row, Row]]:
    """The pairs whose rows are both there, and reuse with fewer steps of equal cost."""
    by_name = {row.name: row for row in rows}
    for what, name, other in PAIRS:
        if name in by_name and other in by_name:
            yield f"{what}: {name}", by_name[name], by_name[other]
    for row in rows:
        for name in RIVALLED:
            if name in by_name and row.name.endswith(cost_of(name)):
                yield f"{name} against {row.steps} steps", by_name[name], row


def format_pairs(rows: Sequence[Row]) -> str:
    """A table of them: differences and ratios of the first by the second."""
    frechet = rows[0].run.get("frechet_name") or "FD"
    headers = ("pair", f"{frechet} difference (range)", "PSNR dB", "bytes", "speed", "MACs")
    return tabulate(
        [(what, *compare(row, other)) for what, row, other in find_pairs(rows)],
        headers=headers,
        tablefmt="github",
        disable_numparse=True,
        colalign=("left", *("right",) * (len(headers) - 1)),
    )


def compare(row: Row, other: Row) -> tuple[str, ...]:
    """What a table shows of a pair."""
    frechets = zip(row.quality.frechet, other.quality.frechet, strict=False)
    return (
        show_range([mine - others for mine, others in frechets]),
        f"{show_psnr(row)} / {show_psnr(other)}",
        show_ratio(row.cache_bytes, other.cache_bytes),
        show_ratio(row.speed_median, other.speed_median),
        show_ratio(row.macs, other.macs),
    )


def show_ratio(value: float | None, other: float | None) -> str:
    """One number by another, if there are both."""
    return show(value / other if value is not None and other else None, ".3f")
