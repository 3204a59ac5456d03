"""The comparison: from the command line to the table, the rows and the drawing."""

import json
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from benchmarks.ablation.protocol import Protocol
from benchmarks.harness.errors import InputError
from benchmarks.harness.pipelines import load_pipeline, name_classes
from benchmarks.harness.plots import styled, write_figure
from benchmarks.pareto.bench import Bench
from benchmarks.pareto.front import draw
from benchmarks.pareto.judged import Gallery, add_quality, check_names, choose_judged
from benchmarks.pareto.lineup import line_up
from benchmarks.pareto.options import Options, parse_options
from benchmarks.pareto.plan import Plan
from benchmarks.pareto.race import Race
from benchmarks.pareto.records import Record
from benchmarks.pareto.rows import Row, make_rows, write_rows
from benchmarks.pareto.table import format_judged, format_notes, format_table
from benchmarks.pareto.tables import Saved, read_tables
from benchmarks.pareto.verdict import format_verdict
from benchmarks.quality.judge import Judge, judge_for

WIDTH = 95


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code: 1 if one of ours failed (rivals may), 2 for unusable input, 130 if
        interrupted.
    """
    options = parse_options(argv)
    try:
        rows = run(options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted: the same command goes on from here", file=sys.stderr)
        return 130
    return 1 if any(row.error for row in rows if row.family.kind != "rival") else 0


def run(options: Options) -> list[Row]:
    """Measure what is not on disk, then print and write what is; the rows."""
    bench = set_up(options)
    contenders = line_up(options, find_tables(bench, options))
    check_names(contenders, options)
    plan, judge = Plan.of(bench.pipe, options), judge_for(bench.pipe)
    records = {each.name: Record.load(plan.times(each)) for each in contenders}
    race = Race(bench, contenders[0], contenders, records)
    race.run(options.repeats, options.pair)
    facts = describe_run(plan, judge)
    rows = judge_rows(race, make_rows(contenders, records, judge, facts), plan, judge)
    report(rows, options)
    return rows


def set_up(options: Options) -> Bench:
    """The pipeline and the pictures."""
    pipe = load_pipeline(options)
    names = name_classes(pipe)
    protocol = Protocol(names, tuple(sorted(names)), options.guidance)
    return Bench(
        pipe,
        pipe.transformer,
        protocol,
        options.samples,
        options.steps,
        options.device,
        options.lowering,
    )


def find_tables(bench: Bench, options: Options) -> list[Saved]:
    """The tables of the folder that was given."""
    if options.tables is None:
        return []
    call = bench.task(0).example_call(bench.original)
    return read_tables(options.tables, bench.original, call, options.steps)


def judge_rows(race: Race, rows: Sequence[Row], plan: Plan, judge: Judge) -> list[Row]:
    """The rows, with some of them judged against real pictures."""
    options, by_name = plan.options, {each.name: each for each in race.contenders}
    chosen = choose_judged(rows, options)
    pieces = plan.list_judged(by_name[name] for name in chosen)
    size = options.images // options.seed_groups
    gallery = Gallery(race.bench, by_name, race.entrants, size)
    errors = gallery.fill(pieces) if pieces else {}
    qualities = gallery.judge(judge, pieces, rows[0].name) if pieces else {}
    return add_quality(rows, qualities, errors)


def describe_run(plan: Plan, judge: Judge) -> dict[str, Any]:
    """Options and settings that all rows share."""
    options = plan.options
    return {
        **plan.shared,
        "warmup": options.warmup,
        "pair": options.pair,
        "seed_groups": options.seed_groups,
        "lpips_name": judge.lpips_name,
        "frechet_name": judge.frechet_name,
    }


def report(rows: Sequence[Row], options: Options) -> None:
    """Print the table and the verdict; write these, the rows and the drawing."""
    table, judged = format_table(rows), format_judged(rows)
    verdict = format_verdict(rows, options.targets)
    with styled():
        drawn = draw(rows, options.targets)
        paths = write_figure(drawn, options.out, "front")
    notes = [*format_notes(rows), drawn.caption]
    wrapped = (textwrap.fill(note, WIDTH) for note in notes)
    parts = [part for part in (table, judged) if part]
    print(*parts, "\n".join(verdict), "\n".join(wrapped), sep="\n\n")
    write_rows(rows, options.out / "rows.jsonl")
    page = options.out / "table.md"
    page.write_text(format_page(parts, verdict, notes, rows))
    written = [options.out / "rows.jsonl", page, *paths]
    print(f"\nwrote {', '.join(map(str, written))}")


def format_page(
    tables: Sequence[str], verdict: Sequence[str], notes: Sequence[str], rows: Sequence[Row]
) -> str:
    """The same as a Markdown page."""
    lines = "\n".join(line if line.startswith("-") else f"\n{line}\n" for line in verdict)
    return "\n\n".join(
        (
            "# Quality against measured time",
            "![Quality over measured speed](front.png)",
            *tables,
            lines.strip(),
            "\n".join(f"- {note}" for note in notes),
            f"Settings: `{json.dumps(dict(rows[0].run))}`\n",
        )
    )
