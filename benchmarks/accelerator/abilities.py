"""What a device can do, found out by asking it as far as it can be asked."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import torch

from benchmarks.harness.machine import can_compile

REFUSALS = (RuntimeError, TypeError, NotImplementedError, AssertionError, ImportError)
"""What torch raises for a dtype, an operator or a module that is not there."""


@dataclass(frozen=True)
class Abilities:
    """What a device can do.

    Attributes:
        float64: Numbers of 64 bits.
        float16: Numbers of 16 bits.
        bfloat16: Those with the exponent of 32 bits.
        float8: Conversions to e4m3 and back.
        int8_products: Products of int8 matrices.
        compiles: Inductor makes code for it.
        events: Marks in its queue of work tell its own time.
        waits: It can be told to raise where the host waits for it.
        graphs: Recorded launches can be replayed (CUDA graphs).
        memory: It counts the bytes that are allocated, and their peak.
        kernels: A profiler tells the time of each kernel.
    """

    float64: bool
    float16: bool
    bfloat16: bool
    float8: bool
    int8_products: bool
    compiles: bool
    events: bool
    waits: bool
    graphs: bool
    memory: bool
    kernels: bool

    def lacks(self, needs: tuple[str, ...]) -> str:
        """The abilities of these that it has not, in words; empty if it has all."""
        return ", ".join(name for name in needs if not getattr(self, name))

    def to_dict(self) -> dict[str, bool]:
        """All of them by name."""
        return asdict(self)


@cache
def ask(device: torch.device) -> Abilities:
    """Ask a device what it can do; takes no more than a tiny compilation."""
    is_cuda = device.type == "cuda"
    return Abilities(
        float64=works(lambda: round_trip(device, torch.float64)),
        float16=works(lambda: round_trip(device, torch.float16)),
        bfloat16=works(lambda: round_trip(device, torch.bfloat16)),
        float8=works(lambda: round_trip(device, torch.float8_e4m3fn)),
        int8_products=works(lambda: multiply_int8(device)),
        compiles=can_compile(device) and (device.type != "mps" or works(lambda: fuse(device))),
        events=is_cuda,
        waits=is_cuda,
        graphs=is_cuda,
        memory=is_cuda,
        kernels=is_cuda,
    )


def works(attempt: Callable[[], Any]) -> bool:
    """Whether an attempt raises nothing that says that something is not there."""
    try:
        attempt()
    except REFUSALS:
        return False
    except Exception as error:  # a compiler has errors of its own
        if type(error).__module__.startswith("torch"):
            return False
        raise
    return True


def round_trip(device: torch.device, dtype: torch.dtype) -> None:
    """Convert to a dtype and back there."""
    torch.ones(16, device=device).to(dtype).to(torch.float32)


def multiply_int8(device: torch.device) -> None:
    """Multiply small int8 matrices there: at least 17 rows, as cuBLAS asks for."""
    ones = torch.ones(32, 32, dtype=torch.int8, device=device)
    torch._int_mm(ones, ones)


def fuse(device: torch.device) -> None:
    """Compile something tiny there."""
    torch.compile(torch.neg, fullgraph=True)(torch.ones(8, device=device))
