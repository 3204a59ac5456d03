"""Processes: a cold one with an empty cache, then a warm one over what it has left there."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.compile_cost.points import Point
from benchmarks.compile_cost.process import write_order
from benchmarks.compile_cost.rows import PHASES, Measured, Row
from benchmarks.harness.machine import ROOT, Machine

COMMAND = (sys.executable, "-m", "benchmarks.compile_cost.process")
CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


@dataclass(frozen=True)
class Launcher:
    """Starts the processes of a run.

    Attributes:
        machine: Where they run.
        timeout_s: How long a process may take.
        tell: Is told the phase before each.
    """

    machine: Machine
    timeout_s: float
    tell: Callable[[str], None] = print

    def measure(self, point: Point, repeat: int) -> list[Row]:
        """A cold process and, unless that failed, a warm one."""
        rows: list[Row] = []
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
            for phase in PHASES:
                self.tell(phase)
                rows.append(self.launch(point, repeat, phase, Path(cache)))
                if rows[-1].error is not None:
                    break
        return rows

    def launch(self, point: Point, repeat: int, phase: str, cache: Path) -> Row:
        """Run one process to its end."""
        start = time.perf_counter()
        found = self.run([*COMMAND, write_order(point, self.machine.threads)], cache)
        seconds = time.perf_counter() - start
        measured, error = (None, found) if isinstance(found, str) else (found, None)
        return Row(point, phase, repeat, seconds, measured, error, self.machine)

    def run(self, command: list[str], folder: Path) -> Measured | str:
        """What a process measured, or what went wrong with it."""
        said, complaint = folder / "said", folder / "complaint"
        with said.open("w") as out, complaint.open("w") as err:
            process = subprocess.Popen(
                command,
                env=environment(folder),
                stdout=out,
                stderr=err,
                start_new_session=True,  # with the compiler's workers, which must end, too
            )
            try:
                code = process.wait(self.timeout_s)
            except subprocess.TimeoutExpired:
                return f"TimeoutError: took more than {self.timeout_s:g} s"
            finally:
                end_group(process.pid)
                process.wait()
        if code:
            return describe_end(code, complaint.read_text(errors="replace"))
        return Measured(**json.loads(said.read_text().splitlines()[-1]))


def environment(cache: Path) -> dict[str, str]:
    """The environment of a process that keeps what it compiles in a folder."""
    known = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(ROOT.parent), *([known] if known else [])])
    return os.environ | {"PYTHONPATH": path} | {name: str(cache / name) for name in CACHES}


def end_group(number: int) -> None:
    """End what is left of a process and those that it started."""
    try:
        os.killpg(number, signal.SIGKILL)
    except ProcessLookupError:
        return


def describe_end(code: int, complaint: str) -> str:
    """Why a process ended, as far as it said so."""
    lines = [line.strip() for line in complaint.splitlines() if line.strip()]
    last = lines[-1][:200] if lines else "it said nothing"
    how = f"signal {-code}" if code < 0 else f"code {code}"
    return f"RuntimeError: its process ended with {how}: {last}"
