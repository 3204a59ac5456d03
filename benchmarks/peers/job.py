"""The comparison: from the command line to the table, the rows and the page.

Each contender has a process of its own with an empty Inductor cache, one after the other.
"""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from benchmarks.contenders.contenders import Contender
from benchmarks.contenders.records import Plan, Record
from benchmarks.contenders.report import write_report
from benchmarks.contenders.rows import add_quality
from benchmarks.harness.apart import run_apart
from benchmarks.harness.errors import InputError
from benchmarks.harness.options import run_command
from benchmarks.harness.store import file_name
from benchmarks.harness.tables import first_line
from benchmarks.peers.duel import CACHE, make_plan
from benchmarks.peers.latents import set_up_bench
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
    table, verdict, notes = format_table(rows), format_verdict(rows), format_notes(rows)
    title = "Everybody who caches on a DiT"
    write_report(title, [table], verdict, notes, rows, out=options.out)
    return 1 if any(row.error for row in rows if row.kind != "peer") else 0


@dataclass(frozen=True)
class Launcher:
    """Starts the processes of a run.

    Attributes:
        options: Of the run.
        arguments: Of its command line.
        plan: Where the results are written.
        fewer: Numbers of steps of the untransformed model.
    """

    options: Options
    arguments: Sequence[str]
    plan: Plan
    fewer: Sequence[int] = ()

    def run(self, peers: Sequence[Contender]) -> None:
        """Measure those that lack something."""
        missing = [peer for peer in peers if self.lacks(peer)]
        if not missing:
            return
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as warm:
            for peer in (bar := tqdm(missing, desc="processes", unit="row")):
                bar.set_description(peer.name)
                self.run_one(peer, Path(warm))

    def lacks(self, peer: Contender) -> bool:
        """Whether something of a row is not on disk that could be."""
        record = Record.read(self.plan.times(peer))
        if record.error is not None:
            return self.options.retry
        if any(record.lacks(number) for number in range(1, 1 + (self.options.repeats or 0))):
            return True
        images = self.options.images if peer.is_shown else 0
        return bool(images) and not self.plan.pictures(peer, images).is_finished()

    def run_one(self, peer: Contender, warm: Path) -> None:
        """One process; if it ends without a result, that is its row."""
        log = self.plan.out / "logs" / f"{file_name(peer.name)}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        failure = self.launch(peer, warm, log)
        if failure is None and self.lacks(peer):
            failure = f"RuntimeError: its process wrote no result, see logs/{log.name}"
        record = Record.read(self.plan.times(peer))
        if record.error is None and failure is not None:
            record.note(error=failure)
        if record.error is not None:
            tqdm.write(f"{peer.name} failed: {first_line(record.error)}", file=sys.stderr)

    def launch(self, peer: Contender, warm: Path, log: Path) -> str | None:
        """Run a process to its end; what went wrong with it."""
        own = ["--contender", peer.name, "--warm-cache", str(warm)]
        fewer = ["--fewer", *map(str, self.fewer)] if self.fewer else []
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cold:
            return run_apart(
                "benchmarks.peers.duel",
                [*self.arguments, *fewer, *own],
                said=log,
                timeout_s=self.options.timeout_s,
                env={CACHE: cold},
            )
