"""The comparison: from the command line to the table, the rows and the page."""

import json
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from benchmarks.harness.errors import InputError
from benchmarks.pareto.judged import add_quality
from benchmarks.pareto.records import Record
from benchmarks.pareto.rows import write_rows
from benchmarks.peers.apart import Launcher
from benchmarks.peers.duel import measure
from benchmarks.peers.equal_cost import find_equal_cost
from benchmarks.peers.lineup import line_up
from benchmarks.peers.options import Options, parse_options
from benchmarks.peers.plan import Plan
from benchmarks.peers.recipes import LOWERINGS, REGIONAL, Peer
from benchmarks.peers.rows import Row, make_rows
from benchmarks.peers.stage import set_stage
from benchmarks.peers.table import format_notes, format_table
from benchmarks.peers.verdict import format_verdict
from benchmarks.quality.judge import Judge, judge_for
from benchmarks.quality.panel import Panel, Quality

WIDTH = 95


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code: 1 if one of ours failed (rivals may), 2 for unusable input, 130 if
        interrupted.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    options = parse_options(arguments)
    try:
        if options.contender is not None:
            return run_contender(options, options.contender)
        rows = run(options, arguments)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted: the same command goes on from here", file=sys.stderr)
        return 130
    return 1 if any(row.error for row in rows if row.family.kind != "rival") else 0


def run_contender(options: Options, name: str) -> int:
    """What a process of one contender does; the exit code."""
    peers = {peer.name: peer for peer in line_up(options, options.fewer or ())}
    peer = peers[name]
    stage = set_stage(options, LOWERINGS.get(peer.mode, REGIONAL))
    measure(options, stage, Plan.of(stage.pipe, options), peer)
    return 0


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

    peers: Sequence[Peer]
    plan: Plan
    fewer: Sequence[int]
    judge: Judge | None
    labels: Sequence[int]
    run: Mapping[str, Any]

    @classmethod
    def of(cls, options: Options) -> "Brief":
        """What the options say of a model, which is not kept in memory."""
        stage = set_stage(options)
        plan = Plan.of(stage.pipe, options)
        fewer = options.fewer
        if fewer is None:
            print("counting MACs ...", file=sys.stderr)
            fewer = find_equal_cost(stage)
        judge = judge_for(stage.pipe) if options.geometry is None else None
        run = {
            **plan.shared,
            "geometry": options.geometry,
            "images": options.images,
            "frechet_name": judge.frechet_name if judge else None,
            "lpips_name": judge.lpips_name if judge else None,
        }
        labels = stage.protocol.task(0, 0, max(1, options.images)).labels
        return cls(line_up(options, fewer), plan, fewer, judge, labels, run)


def run(options: Options, arguments: Sequence[str]) -> list[Row]:
    """Measure what is not on disk, then print and write what is; the rows.

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
    rows = cast("list[Row]", add_quality(rows, judge_pictures(brief, rows), {}))
    report(rows, options)
    return rows


def judge_pictures(brief: Brief, rows: Sequence[Row]) -> dict[str, Quality]:
    """The quality of each row whose pictures are complete."""
    if brief.judge is None or not brief.plan.images:
        return {}
    running = {row.name for row in rows if row.error is None}
    peers = [peer for peer in brief.peers if peer.name in running and peer.is_shown]
    pieces = {peer.name: [brief.plan.pictures(peer)] for peer in peers}
    return Panel(brief.judge, brief.labels, rows[0].name, running).judge_pieces(pieces)


def report(rows: Sequence[Row], options: Options) -> None:
    """Print the table and the verdict; write these and the rows."""
    table, verdict, notes = format_table(rows), format_verdict(rows), format_notes(rows)
    wrapped = (textwrap.fill(note, WIDTH) for note in notes)
    print(table, "\n".join(verdict), "\n".join(wrapped), sep="\n\n")
    write_rows(rows, options.out / "rows.jsonl")
    page = options.out / "table.md"
    page.write_text(format_page(table, verdict, notes, rows))
    print(f"\nwrote {options.out / 'rows.jsonl'}, {page}")


def format_page(
    table: str, verdict: Sequence[str], notes: Sequence[str], rows: Sequence[Row]
) -> str:
    """The same as a Markdown page."""
    lines = "\n".join(line if line.startswith("-") else f"\n{line}\n" for line in verdict)
    return "\n\n".join(
        (
            "# Everybody who caches on a DiT",
            table,
            lines.strip(),
            "\n".join(f"- {note}" for note in notes),
            f"Settings: `{json.dumps(dict(rows[0].run))}`\n",
        )
    )
