"""What is said of the rows, on the screen and as a page, beside the rows themselves."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.contenders.rows import Row
from benchmarks.harness.rows import write_rows
from benchmarks.harness.tables import first_line, format_page, wrap_notes


def write_report(
    title: str,
    tables: Sequence[str],
    verdict: Sequence[str],
    notes: Sequence[str],
    rows: Sequence[Row],
    *,
    out: Path,
    figures: Sequence[Path] = (),
) -> None:
    """Print tables, verdict and notes; write these as a page, and the rows.

    Args:
        title: Of the page.
        tables: Made from the rows.
        verdict: Lines of which some begin an item.
        notes: What the columns mean.
        rows: The rows.
        out: Folder to write to.
        figures: Pictures that are there already; the first stands above the tables.
    """
    print(*tables, "\n".join(verdict), wrap_notes(notes), sep="\n\n")
    lines = "\n".join(line if line.startswith("-") else f"\n{line}\n" for line in verdict)
    drawn = [f"![{title}]({path.name})" for path in figures[:1]]
    page = format_page(title, [*drawn, *tables, lines.strip()], notes, rows[0].run)
    (out / "table.md").write_text(page)
    write_rows(rows, out / "rows.jsonl")
    written = [out / "rows.jsonl", out / "table.md", *figures]
    print(f"\nwrote {', '.join(map(str, written))}")


def describe_sources(rows: Sequence[Row]) -> str:
    """Where the rows were measured, and by which sources."""
    run, machine = rows[0].run, rows[0].machine
    commits = {str(row.machine["commit"])[:10] for row in rows if row.machine.get("commit")}
    return (
        f"{run['device']}: {run['processor']}, {run['cores']} cores, {run['threads']} "
        f"threads; torch {run['torch']}, diffusers {run['diffusers']}, cache-dit "
        f"{run['cache_dit'] or 'not installed'}, dqar_fx {machine.get('dqar_fx')}, commit "
        f"{', '.join(sorted(commits)) or 'unknown'}"
        f"{' with changes' if any(row.machine.get('dirty') for row in rows) else ''}."
    )


def list_oddities(rows: Sequence[Row]) -> list[str]:
    """Rows that failed, and caches that do nothing, each with the modes it is so in."""
    said: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        text = f"failed: {first_line(row.error)}" if row.error else row.note
        if text:
            said.setdefault((row.setting, text), []).append(row.mode)
    return [f"{setting} ({', '.join(m)}) {text}" for (setting, text), m in said.items()]
