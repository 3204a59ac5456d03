"""How fast a device is, and what workloads cost on it by prediction."""

from __future__ import annotations

from bisect import bisect
from dataclasses import asdict, dataclass, field, replace
from math import exp, log
from typing import TYPE_CHECKING, Any

from dqar_fx.errors import DqarError

from .kernels import COST_KINDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .kernels import Kernel
    from .operation import Operation
    from .workload import Workload


@dataclass(frozen=True)
class Cost:
    """What a part of a trajectory costs; costs add up, and are multiplied by counts.

    Attributes:
        macs: Multiply-accumulates.
        nbytes: Bytes read and written.
        ms: Predicted milliseconds.
    """

    macs: int = 0
    nbytes: int = 0
    ms: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.macs + other.macs, self.nbytes + other.nbytes, self.ms + other.ms)

    def __mul__(self, times: int) -> Cost:
        return Cost(self.macs * times, self.nbytes * times, self.ms * times)


def add_costs(costs: Iterable[Cost]) -> Cost:
    """Add costs up."""
    return sum(costs, Cost())


def scale_times(costs: dict[str, Cost], total_ms: float) -> dict[str, Cost]:
    """Scale the times of costs so that they add up to a total, in the same proportions."""
    before_ms = sum(cost.ms for cost in costs.values())
    factor = total_ms / before_ms if before_ms else 0.0
    return {kind: replace(cost, ms=cost.ms * factor) for kind, cost in costs.items()}


FLOPS_PER_MAC = 2
LAUNCH_S = 5e-6
"""Seconds that a kernel's launch is assumed to take on a GPU, which no datasheet states."""


@dataclass(frozen=True)
class DeviceProfile:
    """How fast a device is.

    Attributes:
        name: Name of the device.
        source: ``"measured"``, or ``"datasheet"``.
        macs_per_s: Multiply-accumulates per second by dtype, at best.
        bytes_per_s: Bytes that the device reads or writes per second.
        launch_s: Seconds of launching a kernel.
        call_s: Seconds of calling a region, its kernels left out.
        input_s: Seconds for each tensor that a region is given.
        step_s: Seconds of a step, its regions left out.
        operation_s: Seconds of single operators at their shapes, where measured.
        traffic_s: ``(bytes, seconds)`` of kernels that do nothing but read and write them,
            ascending; empty where not measured.
        region_s: Seconds of whole regions as they are lowered, by `region_key`, and of
            conditioning by `ahead_key`; empty where not measured.
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
        """Forget measured regions unless those of all workloads are known: times compare."""
        known = all(self.knows_regions(work) for work in works if work.regions)
        return self if known else replace(self, region_s={})

    def costs_of(self, work: Workload) -> dict[str, Cost]:
        """Predict what a workload costs, by the `COST_KINDS`.

        What a kernel takes for slots counts as ``slots``. Where the profile knows the
        regions, these take what was measured, and kinds share it as their kernels would.
        """
        costs = dict.fromkeys(COST_KINDS, Cost())
        for kernel, count in work.kernels.items():
            ms = 1e3 * self.predict(kernel)
            slots_ms = ms * kernel.slot_bytes / kernel.nbytes if not kernel.macs else 0.0
            own = Cost(kernel.macs, kernel.nbytes - kernel.slot_bytes, ms - slots_ms)
            costs[kernel.kind] += own * count
            costs["slots"] += Cost(0, kernel.slot_bytes, slots_ms) * count
        around_s = work.calls * self.call_s + work.inputs * self.input_s
        costs["overhead"] += Cost(ms=1e3 * around_s)
        if self.knows_regions(work):
            total_s = sum(n * self.region_s[key] for key, n in work.regions.items())
            costs = scale_times(costs, 1e3 * total_s)
        costs["overhead"] += Cost(ms=1e3 * work.steps * self.step_s)
        return costs

    def predict(self, kernel: Kernel) -> float:
        """Predict the seconds of a kernel.

        A kernel takes what its operators took where they were measured. Others, and fused
        ones, take the longer one of their arithmetic and their traffic.
        """
        is_known = all(each in self.operation_s for each in kernel.timed)
        if is_known and not kernel.is_fused:
            return sum(self.operation_s[each] for each in kernel.timed)
        dtype = str(kernel.dtype).removeprefix("torch.")
        macs_per_s = self.macs_per_s.get(dtype) or min(self.macs_per_s.values())
        arithmetic = kernel.macs / macs_per_s
        arithmetic += sum(self.operation_s.get(each, 0.0) for each in kernel.timed)
        return max(arithmetic, self._traffic(kernel.nbytes)) + self.launch_s

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
        """Give the profile as JSON can hold it; operators are texts."""
        operation_s = {str(op): seconds for op, seconds in self.operation_s.items()}
        return {**asdict(replace(self, operation_s={})), "operation_s": operation_s}

    def __str__(self) -> str:
        return f"{self.name} ({self.how})"


def from_datasheet(
    name: str, tflops: Mapping[str, float], gigabytes_per_s: float
) -> DeviceProfile:
    """Make the profile of a device by the numbers that its maker states.

    Args:
        name: Name of the device.
        tflops: Floating-point operations per second by dtype, in units of 1e12.
        gigabytes_per_s: Bandwidth of the memory, in units of 1e9 bytes per second.
    """
    rates = {dtype: 1e12 * rate / FLOPS_PER_MAC for dtype, rate in tflops.items()}
    return DeviceProfile(name, "datasheet", rates, 1e9 * gigabytes_per_s, LAUNCH_S)


DATASHEETS = {
    # no float32 rate is that of TF32, which PyTorch's products use only where asked to
    "A100": from_datasheet(
        "A100", {"float16": 312, "bfloat16": 312, "float32": 19.5}, 2039
    ),  # SXM, 80 GB
    "H100": from_datasheet(
        "H100", {"float16": 989, "bfloat16": 989, "float32": 67}, 3350
    ),  # SXM, dense
    "H200": from_datasheet(
        "H200", {"float16": 989, "bfloat16": 989, "float32": 67}, 4800
    ),  # SXM, dense
    "T4": from_datasheet("T4", {"float16": 65, "float32": 8.1}, 320),
}
"""Profiles by name, of the makers' public numbers; float32 is without TF32."""


def find_datasheet(name: str) -> DeviceProfile:
    """Find the profile with a name.

    Raises:
        DqarError: No datasheet has the name.
    """
    if name not in DATASHEETS:
        raise DqarError(
            f"device={name!r} is unknown. Known are {', '.join(DATASHEETS)} (datasheets), and "
            "'cpu', 'cuda' or 'mps' where this machine has them (measured). Give one of them, "
            "None for the denoiser's own device, or a dqar_fx.DeviceProfile"
        )
    return DATASHEETS[name]
