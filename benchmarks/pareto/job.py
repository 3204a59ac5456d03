"""The comparison: from the command line to the table, the rows and the drawing."""

from collections.abc import Sequence

from benchmarks.contenders.bench import Bench
from benchmarks.contenders.race import Race
from benchmarks.contenders.records import Plan, Record
from benchmarks.contenders.report import write_report
from benchmarks.contenders.rows import Row, add_quality, make_rows
from benchmarks.harness.options import run_command
from benchmarks.harness.plots import styled, write_figure
from benchmarks.pareto.front import draw
from benchmarks.pareto.lineup import line_up
from benchmarks.pareto.options import Options
from benchmarks.pareto.saved import read_tables
from benchmarks.pareto.table import format_judged, format_notes, format_table
from benchmarks.pareto.verdict import choose_judged, format_verdict
from benchmarks.quality.judge import Judge, judge_for
from benchmarks.quality.panel import Panel


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code: 1 if one of ours failed (peers may), 2 for unusable input, 130 if
        interrupted.
    """
    return run_command(Options, run, argv)


def run(options: Options) -> int:
    """Measure what is not on disk, then print and write what is; the exit code."""
    bench = Bench.of(options, options.lowering)
    call = bench.task(0).example_call(bench.original)
    folder, steps = options.tables, options.steps
    tables = [] if folder is None else read_tables(folder, bench.original, call, steps)
    contenders = line_up(options, tables)
    plan = Plan.of(bench.pipe, options, lowering=options.lowering)
    judge = judge_for(bench.pipe)
    records = {each.name: Record.read(plan.times(each), retry=True) for each in contenders}
    race = Race(bench, contenders[0], contenders, records)
    race.run(options.repeats, options.pair)
    shared = {
        **plan.shared,
        "warmup": options.warmup,
        "pair": options.pair,
        "seed_groups": options.seed_groups,
        "lpips_name": judge.lpips_name,
        "frechet_name": judge.frechet_name,
    }
    rows = make_rows(contenders, records, judge, shared)
    report(judge_rows(race, rows, plan, judge, options), options)
    return 1 if any(row.error for row in rows if row.kind != "peer") else 0


def judge_rows(
    race: Race, rows: Sequence[Row], plan: Plan, judge: Judge, options: Options
) -> list[Row]:
    """The rows, with some of them judged against real pictures."""
    by_name = {each.name: each for each in race.contenders}
    groups, size = range(options.seed_groups), options.images // options.seed_groups
    pieces = {
        name: [plan.pictures(by_name[name], size, group) for group in groups]
        for name in choose_judged(rows, options)
    }
    if not pieces:
        return add_quality(rows, {}, {})
    errors = race.fill(pieces, size)
    labels = race.bench.protocol.task(0, 0, size).labels
    panel = Panel(judge, labels, rows[0].name, set(pieces))
    return add_quality(rows, panel.judge_pieces(pieces), errors)


def report(rows: Sequence[Row], options: Options) -> None:
    """Print the table and the verdict; write these, the rows and the drawing."""
    with styled():
        drawn = draw(rows, options.targets)
        paths = write_figure(drawn, options.out, "front")
    write_report(
        "Quality against measured time",
        [part for part in (format_table(rows), format_judged(rows)) if part],
        format_verdict(rows, options.targets),
        [*format_notes(rows), drawn.caption],
        rows,
        out=options.out,
        figures=paths,
    )
