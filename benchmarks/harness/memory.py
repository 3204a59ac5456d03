"""Memory: the highest a process reaches above where it was."""

import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Memory:
    """Peaks above a mark: of the device on CUDA, else of the process.

    Attributes:
        device: Which memory.
        mark: Bytes in use when `start` was called.
    """

    device: torch.device
    mark: int = 0

    def start(self) -> None:
        """From here on."""
        self.reset()
        self.mark = self.read_now()

    def reset(self) -> None:
        """Forget earlier peaks, where the system can."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            restart_peak()  # or the peak is that of the process so far

    def above(self) -> int:
        """Bytes of the highest peak since `reset`, above the mark."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self.mark
        return max(0, (read_status("VmHWM") or read_highest()) - self.mark)

    def read_now(self) -> int:
        """Bytes in use."""
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device)
        return read_status("VmRSS") or read_highest()


def read_status(name: str) -> int | None:
    """Bytes of an entry of Linux's table of this process; None elsewhere."""
    if not STATUS.exists():
        return None
    lines = STATUS.read_text().splitlines()
    found = (line.split()[1] for line in lines if line.startswith(f"{name}:"))
    kilobytes = next(found, None)
    return None if kilobytes is None else 1024 * int(kilobytes)


def read_highest() -> int:
    """Bytes of the process's highest resident memory so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def restart_peak() -> bool:
    """Forget the peak of this process so far; whether the system did."""
    try:
        CLEAR.write_text("5")
    except OSError:
        return False
    return True
