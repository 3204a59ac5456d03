"""Measuring in a process of its own, which ends with all that it has started."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.harness.machine import ROOT


def run_apart(
    module: str,
    arguments: Sequence[str],
    *,
    said: Path,
    complaint: Path | None = None,
    timeout_s: float | None = None,
    env: Mapping[str, str] | None = None,
) -> str | None:
    """Run ``python -m module`` to its end.

    Args:
        module: What runs.
        arguments: Of its command line.
        said: File of its standard output.
        complaint: File of its standard error; None for the same.
        timeout_s: What it may take; None for any time.
        env: Variables that differ from this process's.

    Returns:
        What went wrong, or None.
    """
    with ExitStack() as files:
        out = files.enter_context(said.open("w"))
        err = files.enter_context(complaint.open("w")) if complaint else subprocess.STDOUT
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env=os.environ | {"PYTHONPATH": find_path()} | dict(env or {}),
            stdout=out,
            stderr=err,
            start_new_session=True,  # with the compiler's workers, which must end, too
        )
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return f"TimeoutError: took more than {timeout_s:g} s"
        finally:
            end_group(process.pid)
            process.wait()
    if code == 0:
        return None
    return describe_end(code, (complaint or said).read_text(errors="replace"))


def end_group(number: int) -> None:
    """End what is left of a process and those that it started."""
    try:
        os.killpg(number, signal.SIGKILL)
    except ProcessLookupError:
        return


def describe_end(code: int, text: str) -> str:
    """Why a process ended, as far as it said so."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    last = lines[-1][:200] if lines else "it said nothing"
    how = f"signal {-code}" if code < 0 else f"code {code}"
    return f"RuntimeError: its process ended with {how}: {last}"


def find_path() -> str:
    """Where a process finds this package, wherever it is started."""
    known = os.environ.get("PYTHONPATH")
    return os.pathsep.join([str(ROOT.parent), *([known] if known else [])])
