"""Processes: one per contender, each with an empty Inductor cache, one after the other."""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from benchmarks.contenders.contenders import Contender
from benchmarks.contenders.records import Plan, Record
from benchmarks.harness.apart import run_apart
from benchmarks.harness.store import file_name
from benchmarks.harness.tables import first_line
from benchmarks.peers.options import Options

MODULE = "benchmarks.peers.duel"
CACHE = "TORCHINDUCTOR_CACHE_DIR"


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
                MODULE,
                [*self.arguments, *fewer, *own],
                said=log,
                timeout_s=self.options.timeout_s,
                env={CACHE: cold},
            )
