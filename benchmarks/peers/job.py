"""The comparison: from the command line to the table, the rows and the page."""

import sys
from collections.abc import Sequence
from functools import partial

from benchmarks.contenders.gallery import add_quality
from benchmarks.contenders.records import Record
from benchmarks.contenders.report import write_report
from benchmarks.harness.errors import InputError
from benchmarks.harness.options import run_command
from benchmarks.peers.duel import make_plan
from benchmarks.peers.latents import set_up_bench
from benchmarks.peers.launcher import Launcher
from benchmarks.peers.lineup import find_equal_cost, line_up
from benchmarks.peers.options import Options
from benchmarks.peers.rows import make_rows
from benchmarks.peers.table import format_notes, format_table
from benchmarks.peers.verdict import format_verdict
from benchmarks.quality.judge import judge_for
from benchmarks.quality.panel import Panel, Quality


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code: 1 if one of ours failed (peers may), 2 for unusable input, 130 if
        interrupted.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    return run_command(Options, partial(run, arguments=arguments), arguments)


def run(options: Options, arguments: Sequence[str]) -> int:
    """Measure what is not on disk, then print and write what is; the exit code.

    Raises:
        InputError: The input cannot be used, or what is on disk is of another run.
    """
    bench = set_up_bench(options)
    plan, fewer = make_plan(bench, options), options.fewer
    if fewer is None:
        print("counting MACs ...", file=sys.stderr)
        fewer = find_equal_cost(bench)
    judge = judge_for(bench.pipe) if options.geometry is None else None
    labels = bench.protocol.task(0, 0, max(1, options.images or 0)).labels
    peers = line_up(options, fewer)
    del bench  # each process has a model of its own
    if not options.report:
        Launcher(options, arguments, plan, fewer).run(peers)
    records = {peer.name: Record.read(plan.times(peer)) for peer in peers}
    shared = {
        **plan.shared,
        "geometry": options.geometry,
        "images": options.images,
        "frechet_name": judge.frechet_name if judge else None,
        "lpips_name": judge.lpips_name if judge else None,
    }
    rows = make_rows(peers, records, judge, shared)
    if not rows:
        raise InputError(f"--report: nothing has been measured in {options.out} yet")
    running = {row.name for row in rows if row.error is None}
    qualities: dict[str, Quality] = {}
    if judge is not None and options.images:
        shown = [peer for peer in peers if peer.name in running and peer.is_shown]
        pieces = {peer.name: [plan.pictures(peer, options.images)] for peer in shown}
        qualities = Panel(judge, labels, rows[0].name, running).judge_pieces(pieces)
    rows = add_quality(rows, qualities, {})
    title, table, verdict = (
        "Everybody who caches on a DiT",
        format_table(rows),
        format_verdict(rows),
    )
    write_report(
        title, [format_table(rows)], verdict, format_notes(rows), rows, out=options.out
    )
    return 1 if any(row.error for row in rows if row.kind != "peer") else 0
