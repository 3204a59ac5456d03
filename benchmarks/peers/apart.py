"""Processes: one per contender, each with an empty Inductor cache, one after the other."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from benchmarks.harness.machine import ROOT
from benchmarks.harness.tables import first_line
from benchmarks.pareto.records import Record
from benchmarks.peers.options import Options
from benchmarks.peers.plan import Plan
from benchmarks.peers.recipes import Peer

COMMAND = (sys.executable, "-m", "benchmarks.peers")


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

    def run(self, peers: Sequence[Peer]) -> None:
        """Measure those that lack something."""
        missing = [peer for peer in peers if self.lacks(peer)]
        if not missing:
            return
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as warm:
            for peer in (bar := tqdm(missing, desc="processes", unit="row")):
                bar.set_description(peer.name)
                self.run_one(peer, Path(warm))

    def lacks(self, peer: Peer) -> bool:
        """Whether something of a row is not on disk that could be."""
        record = Record.read(self.plan.times(peer))
        if record.error is not None:
            return self.options.retry
        if any(record.lacks(number) for number in range(1, 1 + self.options.repeats)):
            return True
        wanted = bool(self.options.images) and peer.is_shown
        return wanted and not self.plan.pictures(peer).is_finished()

    def run_one(self, peer: Peer, warm: Path) -> None:
        """One process; if it ends without a result, that is its row."""
        log = self.plan.log(peer)
        log.parent.mkdir(parents=True, exist_ok=True)
        failure = self.launch(peer, warm, log)
        if failure is None and self.lacks(peer):
            failure = f"RuntimeError: its process wrote no result, see logs/{log.name}"
        record = Record.read(self.plan.times(peer))
        if record.error is None and failure is not None:
            record.note(error=failure)
        if record.error is not None:
            tqdm.write(f"{peer.name} failed: {first_line(record.error)}", file=sys.stderr)

    def launch(self, peer: Peer, warm: Path, log: Path) -> str | None:
        """Run a process to its end; what went wrong with it."""
        own = ["--contender", peer.name, "--warm-cache", str(warm)]
        fewer = ["--fewer", *map(str, self.fewer)] if self.fewer else []
        with (
            tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cold,
            log.open("w") as said,
        ):
            process = subprocess.Popen(
                [*COMMAND, *self.arguments, *fewer, *own],
                env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": cold, "PYTHONPATH": find_path()},
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # with the compiler's workers, which must end, too
            )
            try:
                code = process.wait(self.options.timeout_s)
            except subprocess.TimeoutExpired:
                return f"TimeoutError: took more than {self.options.timeout_s:g} s"
            finally:
                end_group(process.pid)
                process.wait()
        return None if code == 0 else describe_end(code, log)


def end_group(number: int) -> None:
    """End what is left of a process and those that it started."""
    try:
        os.killpg(number, signal.SIGKILL)
    except ProcessLookupError:
        return


def describe_end(code: int, log: Path) -> str:
    """Why a process ended, as far as it said so."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    last = lines[-1].strip()[:200] if lines else "it said nothing"
    how = f"signal {-code}" if code < 0 else f"code {code}"
    return f"RuntimeError: its process ended with {how}: {last}"


def find_path() -> str:
    """Where a process finds this package, wherever it is started."""
    known = os.environ.get("PYTHONPATH")
    return os.pathsep.join([str(ROOT.parent), *([known] if known else [])])
