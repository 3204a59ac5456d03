"""What is known of a device: measured here, or read off its datasheet."""

from __future__ import annotations

from bisect import bisect
from dataclasses import asdict, dataclass, field, replace
from math import exp, log
from typing import TYPE_CHECKING, Any

from dqar_fx.errors import DqarError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import torch

    from .kernels import Kernel
    from .operation import Operation
    from .workload import Workload

FLOPS_PER_MAC = 2
LAUNCH_S = 5e-6
"""Assumed of a kernel's launch on a GPU of a datasheet, which does not state it."""


@dataclass(frozen=True)
class DeviceProfile:
    """How fast a device is.

    Attributes:
        name: Of the device.
        source: ``"measured"``, or ``"datasheet"``.
        macs_per_s: Multiply-accumulates per second by dtype, at best.
        bytes_per_s: Bytes that it reads or writes per second.
        launch_s: Of each kernel.
        call_s: Of each call of a region, beside its kernels.
        input_s: Of each tensor that a region is given.
        step_s: Of each step, beside its regions.
        operation_s: Of single operators at their shapes, where measured.
        traffic_s: ``(bytes, seconds)`` of kernels that do nothing but read and write them,
            ascending; empty where not measured.
        region_s: Of whole regions as they are lowered, by `region_key`, and of conditioning
            by `ahead_key`; empty where not measured.
    """

    name: str
    source: str
    macs_per_s: Mapping[str, float]
    bytes_per_s: float
    launch_s: float = 0.0
    call_s: float = 0.0
    input_s: float = 0.0
    step_s: float = 0.0
    operation_s: Mapping[Operation, float] = field(default_factory=dict, repr=False)
    traffic_s: tuple[tuple[int, float], ...] = field(default=(), repr=False)
    region_s: Mapping[str, float] = field(default_factory=dict, repr=False)

    @property
    def how(self) -> str:
        """Where its times come from, in words."""
        if self.source != "measured":
            return "datasheet, not measured"
        return f"measured by {'regions' if self.region_s else 'operators'}"

    def knows_regions(self, work: Workload) -> bool:
        """Whether every region of a workload was measured as a whole."""
        return all(key in self.region_s for key in work.regions) and bool(work.regions)

    def for_all(self, works: Iterable[Workload]) -> DeviceProfile:
        """The same, without regions unless all of these are known: times compare."""
        known = all(self.knows_regions(work) for work in works if work.regions)
        return self if known else replace(self, region_s={})

    def predict(self, kernel: Kernel) -> float:
        """Seconds of a kernel."""
        if kernel.is_fused or not self.knows(kernel):
            return self._predict_by_roofline(kernel)
        return sum(self.operation_s[each] for each in kernel.timed)

    def knows(self, kernel: Kernel) -> bool:
        """Whether all that stands for a kernel was measured."""
        return all(each in self.operation_s for each in kernel.timed)

    def _predict_by_roofline(self, kernel: Kernel) -> float:
        """The longer one of arithmetic and traffic."""
        arithmetic = kernel.macs / self._peak(kernel.dtype)
        arithmetic += sum(self.operation_s.get(each, 0.0) for each in kernel.timed)
        return max(arithmetic, self._traffic(kernel.nbytes)) + self.launch_s

    def _peak(self, dtype: torch.dtype) -> float:
        name = str(dtype).removeprefix("torch.")
        return self.macs_per_s.get(name) or min(self.macs_per_s.values())

    def _traffic(self, nbytes: int) -> float:
        """Seconds of reading and writing: what was measured, else by bandwidth."""
        if not nbytes or not self.traffic_s or nbytes > self.traffic_s[-1][0]:
            return nbytes / self.bytes_per_s
        place = bisect(self.traffic_s, (nbytes, 0.0))
        if place == 0:
            return self.traffic_s[0][1]
        (low, low_s), (high, high_s) = self.traffic_s[place - 1 : place + 1]
        share = log(nbytes / low) / log(high / low)
        return exp(log(low_s) + share * log(high_s / low_s))

    def to_dict(self) -> dict[str, Any]:
        """What JSON can say of it."""
        operation_s = {str(op): seconds for op, seconds in self.operation_s.items()}
        return {**asdict(replace(self, operation_s={})), "operation_s": operation_s}

    def __str__(self) -> str:
        return f"{self.name} ({self.how})"


def from_datasheet(
    name: str, tflops: Mapping[str, float], gigabytes_per_s: float
) -> DeviceProfile:
    """The profile of a device by the numbers that its maker states."""
    rates = {dtype: 1e12 * rate / FLOPS_PER_MAC for dtype, rate in tflops.items()}
    return DeviceProfile(name, "datasheet", rates, 1e9 * gigabytes_per_s, LAUNCH_S)


DATASHEETS = {
    # float32 is that of TF32 nowhere: PyTorch's products use it only where asked to
    "A100": from_datasheet(
        "A100", {"float16": 312, "bfloat16": 312, "float32": 19.5}, 2039
    ),  # SXM, 80 GB
    "H100": from_datasheet(
        "H100", {"float16": 989, "bfloat16": 989, "float32": 67}, 3350
    ),  # SXM, dense
    "T4": from_datasheet("T4", {"float16": 65, "float32": 8.1}, 320),
}
"""Profiles by name: public numbers of tensor cores (float32: without TF32) and of memory."""


def find_datasheet(name: str) -> DeviceProfile:
    """The profile with a name.

    Raises:
        DqarError: There is none.
    """
    if name not in DATASHEETS:
        raise DqarError(
            f"device={name!r} is unknown. Known are {', '.join(DATASHEETS)} (datasheets), and "
            "'cpu', 'cuda' or 'mps' where this machine has them (measured). Give one of them, "
            "None for the denoiser's own device, or a dqar_fx.DeviceProfile"
        )
    return DATASHEETS[name]
