"""The machine and the versions that a measurement was made with."""

import importlib.metadata
import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch._inductor import cpp_builder
from torch._inductor.exc import InvalidCxxCompiler

from benchmarks.source_tree import find_version

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Machine:
    """What a measurement depends on beside its options.

    Attributes:
        device: Type of the device.
        processor: Name of the device's processor.
        cores: Logical cores that the process may use.
        threads: Threads of PyTorch on the CPU.
        torch: Version.
        diffusers: Version.
        dqar_fx: Version.
        commit: Commit of the sources; None outside of a repository.
        dirty: Whether tracked files differ from that commit.
    """

    device: str
    processor: str
    cores: int
    threads: int
    torch: str
    diffusers: str
    dqar_fx: str
    commit: str | None
    dirty: bool | None

    def __str__(self) -> str:
        source = f", commit {self.commit[:10]}" if self.commit else ""
        return (
            f"{self.device}: {self.processor}, {self.cores} cores, {self.threads} threads; "
            f"torch {self.torch}, diffusers {self.diffusers}, dqar_fx {self.dqar_fx}"
            f"{source}{' with changes' if self.dirty else ''}"
        )


def describe_machine(device: torch.device) -> Machine:
    """This machine, as seen from a device."""
    commit = ask_git("rev-parse", "HEAD")
    changes = ask_git("status", "--porcelain", "--untracked-files=no")
    return Machine(
        device=device.type,
        processor=name_processor(device),
        cores=count_cores(),
        threads=torch.get_num_threads(),
        torch=str(torch.__version__),  # a class of its own otherwise
        diffusers=importlib.metadata.version("diffusers"),
        dqar_fx=find_version(),
        commit=commit,
        dirty=None if commit is None else bool(changes),
    )


def choose_device() -> torch.device:
    """CUDA if there is one, else MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def can_compile(device: torch.device) -> bool:
    """Whether Inductor finds what it needs: on CPUs, a C++ compiler."""
    if device.type != "cpu":
        return True
    try:
        cpp_builder.get_cpp_compiler()
    except (InvalidCxxCompiler, OSError, RuntimeError):  # what it raises depends on the system
        return False
    return True


def set_up_compiler(device: torch.device, **keywords: Any) -> None:
    """Compile something tiny, so that what a compiler does once is not measured with a model.

    Args:
        device: Where it runs.
        **keywords: Of ``torch.compile``.
    """
    torch.compile(torch.neg, **keywords)(torch.ones(8, device=device))


def count_cores() -> int:
    """Logical cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def name_processor(device: torch.device) -> str:
    """Name of the device's processor, as well as the system tells it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def ask_git(*arguments: str) -> str | None:
    """What git answers in the folder of the sources; None without git or a repository."""
    try:
        answer = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()
