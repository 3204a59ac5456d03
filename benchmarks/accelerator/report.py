"""The report: a verdict for each claim, then all rows, as Markdown and as one HTML page."""

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from benchmarks.accelerator.cases import FAILED, Row, key_of
from benchmarks.accelerator.claims import Verdict, judge_claims
from benchmarks.accelerator.options import SharedOptions
from benchmarks.accelerator.parts.pipeline import FOLDER
from benchmarks.harness.machine import Machine
from benchmarks.harness.tables import Column, format_page, format_table

TITLE = "What accelerators were claimed to do"
REHEARSED = (
    "This is a rehearsal on a CPU: it shows that every part runs. No claim is decided by it, "
    "and its times are none of an accelerator."
)
CLAIM_COLUMNS = (
    Column("claim", "claim"),
    Column("verdict", "verdict"),
    Column("found", "found"),
    Column("rows", "rows"),
)
CASE_COLUMNS = (
    Column("case", "case"),
    Column("outcome", "outcome"),
    Column("found", "word"),
    Column("s", "seconds", ".1f"),
)


def write_report(rows: Sequence[Row], options: SharedOptions, machine: Machine) -> list[Path]:
    """Write both pages, whatever rows there are; their paths."""
    verdicts, missing = judge_claims(rows), list_missing(rows, options)
    notes = make_notes(rows, missing, machine)
    paths = [options.out / "report.md", options.out / "report.html"]
    paths[0].write_text(format_markdown(rows, verdicts, notes, options), encoding="utf-8")
    paths[1].write_text(format_html(rows, verdicts, notes, options), encoding="utf-8")
    return paths


def list_missing(rows: Sequence[Row], options: SharedOptions) -> list[str]:
    """Cases that are wanted and have no row."""
    found = {row.key for row in rows}
    wanted = [key_of(p.name, c.name) for p, cases in options.list_wanted() for c in cases]
    return [key for key in wanted if key not in found]


def make_notes(rows: Sequence[Row], missing: Sequence[str], machine: Machine) -> list[str]:
    """What is said below the tables."""
    outcomes = Counter(row.outcome for row in rows)
    listed = ", ".join(f"{number} {outcome}" for outcome, number in outcomes.items())
    notes = [
        str(machine),
        f"{len(rows)} rows ({listed or 'none yet'}) in "
        f"{sum(row.seconds for row in rows):.0f} s",
        "Speeds are medians of paired trajectories, in turn with the untransformed model "
        "compiled in the same way (quartiles); the ceiling is by multiply-accumulates",
    ]
    if missing:
        shown = ", ".join(missing[:8])
        notes.append(
            f"{len(missing)} cases were not reached ({shown}{', ...' * bool(missing[8:])}): "
            "the same command goes on there"
        )
    return notes


def by_part(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows of each part."""
    ordered = sorted(rows, key=lambda row: row.part)
    found = {part: list(mine) for part, mine in groupby(ordered, key=lambda row: row.part)}
    return {part: found[part] for part in dict.fromkeys(row.part for row in rows)}


def format_markdown(
    rows: Sequence[Row],
    verdicts: Sequence[Verdict],
    notes: Sequence[str],
    options: SharedOptions,
) -> str:
    """The page as Markdown."""
    parts = [REHEARSED] if options.place.type == "cpu" else []
    parts.append(format_table(CLAIM_COLUMNS, verdicts, num_left=3))
    for part, mine in by_part(rows).items():
        parts.append(f"## {part}\n\n{format_table(CASE_COLUMNS, mine, num_left=3)}")
    failed = (row for row in rows if row.outcome == FAILED)
    parts += [f"### {row.key}\n\n```text\n{(row.error or '')[-2000:]}\n```" for row in failed]
    settings = {
        "budget_s": options.budget_s,
        "scale": options.scale.name,
        "only": options.only,
    }
    return format_page(TITLE, parts, notes, settings)


def format_html(
    rows: Sequence[Row],
    verdicts: Sequence[Verdict],
    notes: Sequence[str],
    options: SharedOptions,
) -> str:
    """The page as HTML, in one file but for the main job's pictures."""
    environment = Environment(
        loader=PackageLoader("benchmarks.accelerator", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pictures = f"{FOLDER}/pictures.png"
    return environment.get_template("page.html").render(
        title=TITLE,
        rehearsed=REHEARSED if options.place.type == "cpu" else "",
        verdicts=verdicts,
        parts=by_part(rows),
        notes=notes,
        pictures=pictures if (options.out / pictures).exists() else "",
    )
