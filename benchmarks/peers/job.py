"""The comparison: from the command line to the table, the rows and the page."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.contenders.contenders import Contender
from benchmarks.contenders.gallery import add_quality
from benchmarks.contenders.records import Plan, Record
from benchmarks.contenders.report import write_report
from benchmarks.harness.errors import InputError
from benchmarks.harness.options import run_command
from benchmarks.peers.duel import make_plan
from benchmarks.peers.latents import set_up_bench
from benchmarks.peers.launcher import Launcher
from benchmarks.peers.lineup import find_equal_cost, line_up
from benchmarks.peers.options import Options
from benchmarks.peers.rows import Row, make_rows
from benchmarks.peers.table import format_notes, format_table
from benchmarks.peers.verdict import format_verdict
from benchmarks.quality.judge import Judge, judge_for
from benchmarks.quality.panel import Panel, Quality


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code: 1 if one of ours failed (peers may), 2 for unusable input, 130 if
        interrupted.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    return run_command(Options, partial(run, arguments=arguments), arguments)


@dataclass(frozen=True)
class Brief:
    """What is known before anything is measured.

    Attributes:
        peers: Who takes part.
        plan: Where results are written.
        fewer: Numbers of steps of the untransformed model.
        judge: Of pictures; None for latents.
        labels: Classes of the pictures that are judged.
        run: What all rows share.
    """

    peers: Sequence[Contender]
    plan: Plan
    fewer: Sequence[int]
    judge: Judge | None
    labels: Sequence[int]
    run: Mapping[str, Any]

    @classmethod
    def of(cls, options: Options) -> "Brief":
        """What the options say of a model, which is not kept in memory."""
        bench = set_up_bench(options)
        plan = make_plan(bench, options)
        fewer = options.fewer
        if fewer is None:
            print("counting MACs ...", file=sys.stderr)
            fewer = find_equal_cost(bench)
        judge = judge_for(bench.pipe) if options.geometry is None else None
        run = {
            **plan.shared,
            "geometry": options.geometry,
            "images": options.images,
            "frechet_name": judge.frechet_name if judge else None,
            "lpips_name": judge.lpips_name if judge else None,
        }
        labels = bench.protocol.task(0, 0, max(1, options.images or 0)).labels
        return cls(line_up(options, fewer), plan, fewer, judge, labels, run)


def run(options: Options, arguments: Sequence[str]) -> int:
    """Measure what is not on disk, then print and write what is; the exit code.

    Raises:
        InputError: The input cannot be used, or what is on disk is of another run.
    """
    brief = Brief.of(options)
    if not options.report:
        Launcher(options, arguments, brief.plan, brief.fewer).run(brief.peers)
    records = {peer.name: Record.read(brief.plan.times(peer)) for peer in brief.peers}
    rows = make_rows(brief.peers, records, brief.judge, brief.run)
    if not rows:
        raise InputError(f"--report: nothing has been measured in {options.out} yet")
    rows = add_quality(rows, judge_pictures(brief, rows, options.images or 0), {})
    title, verdict = "Everybody who caches on a DiT", format_verdict(rows)
    notes = format_notes(rows)
    write_report(title, [format_table(rows)], verdict, notes, rows, out=options.out)
    return 1 if any(row.error for row in rows if row.kind != "peer") else 0


def judge_pictures(brief: Brief, rows: Sequence[Row], images: int) -> dict[str, Quality]:
    """The quality of each row whose pictures are complete."""
    if brief.judge is None or not images:
        return {}
    running = {row.name for row in rows if row.error is None}
    peers = [peer for peer in brief.peers if peer.name in running and peer.is_shown]
    pieces = {peer.name: [brief.plan.pictures(peer, images)] for peer in peers}
    return Panel(brief.judge, brief.labels, rows[0].name, running).judge_pieces(pieces)
