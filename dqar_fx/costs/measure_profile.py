"""A short run that measures a device with the operators of a model, at their true shapes.

All operators take turns, each with as many sets of parameters as the model has for it, so that
a weight is about as cold in the caches as it is in a step. The median of the turns counts.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from dqar_fx.errors import DqarError, check_known

from .clocks import synchronise
from .measure_regions import measure_regions
from .operation import Operation, count_macs
from .profile import DeviceProfile
from .workload_counter import count_everything

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dqar_fx.denoiser.denoiser import Denoiser
    from dqar_fx.schedule.schedule import Schedule

MEASURED_PARTS = ("operators", "regions")
BUDGET_S = 4.0
"""Seconds that the turns may take."""
OPERATORS_SHARE = 0.25
"""The share of the budget for operators that only say where a region's time goes."""
MIN_TURNS, MAX_TURNS = 5, 60
MAX_SETS = 32
"""Most sets of parameters of one operator."""
MAX_BYTES = 2**28
"""Most bytes of all sets of parameters of one operator."""
TRAFFIC = tuple(4**k * 3 * 1024 for k in range(1, 9))
"""Bytes, from 12 KB to 200 MB, that a kernel of nothing but traffic reads and writes."""
PROBES_PER_CALL, PROBES_PER_INPUT, PROBES_PER_STEP = 30.0, 1.0, 60.0
"""Host times, assumed as multiples of a tiny operator's."""
NUM_PROBES = 1000


def measure_profile(
    denoiser: Denoiser,
    schedules: Sequence[Schedule] = (),
    *,
    device: str | torch.device | None = None,
    by: str = "operators",
    budget_s: float = BUDGET_S,
) -> DeviceProfile:
    """Measure a device with the work of a denoiser.

    Args:
        denoiser: The denoiser whose work is measured; captured already.
        schedules: Further schedules that the profile must know the work of.
        device: Where to measure; by default the denoiser's own, or the CPU for one on the
            meta device.
        by: ``"operators"``: one by one, nothing is compiled, and what a compiler fuses is
            approximated. ``"regions"``: the denoiser's regions as they are lowered, in steps
            with made-up inputs, and its operators, too, which tell where a region's time
            goes. Regions that are not compiled yet are, for later runs as well; a denoiser
            that is compiled whole has one for each distinct row.
        budget_s: About how many seconds the turns may take; where regions are measured, those
            of operators take a quarter of it more.

    Raises:
        DqarError: Nothing has been captured yet, the device cannot be used, or regions cannot
            be measured there.
        ScheduleError: A schedule does not fit the sites.
    """
    check_known("by=", by, MEASURED_PARTS, DqarError)
    operations = count_everything(denoiser, schedules).operations()
    place = find_device(denoiser, device)
    if by == "operators":
        return measure_operations(operations, place, budget_s)
    refuse_regions(denoiser, place)
    times = measure_regions(denoiser, schedules, place, budget_s)
    profile = measure_operations(operations, place, OPERATORS_SHARE * budget_s)
    return replace(profile, region_s=times.region_s, step_s=times.step_s)


def refuse_regions(denoiser: Denoiser, place: torch.device) -> None:
    """Raise where regions of a denoiser cannot be measured.

    Raises:
        DqarError: The denoiser is on another device, or has only the conditioning that was
            tabulated.
    """
    if place.type != denoiser.device.type:
        raise DqarError(
            f"device={str(place)!r}: regions are measured where the denoiser is, on "
            f"{str(denoiser.device)!r}. Move it there, or measure by='operators'"
        )
    if denoiser.program.fixed is not None:
        raise DqarError(
            "by='regions': conditioning is measured by evaluating it, but its parameters were "
            "dropped. Measure before drop_conditioning(...), or by='operators'"
        )


def find_device(denoiser: Denoiser, device: str | torch.device | None) -> torch.device:
    """Find the device to measure.

    Raises:
        DqarError: The device cannot be used.
    """
    wanted = denoiser.device if device is None else device
    try:
        place = torch.device(wanted)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise DqarError(
            f"device={str(wanted)!r} cannot be measured here: {str(error).splitlines()[0]}. "
            "Give device='cpu', or a datasheet such as 'A100'"
        ) from error
    return torch.device("cpu") if place.type == "meta" else place


@torch.no_grad()
def measure_operations(
    operations: Mapping[Operation, int], device: torch.device, budget_s: float = BUDGET_S
) -> DeviceProfile:
    """Measure a device with operators that occur so often, for about ``budget_s`` seconds."""
    calls: dict[Any, list[Callable[[], Any]]] = {
        operation: sets
        for operation, count in operations.items()
        if (sets := prepare_calls(operation, count, device))
    }
    calls |= {nbytes: [make_traffic(nbytes, device)] for nbytes in TRAFFIC}
    seconds = time_in_turns(calls, device, budget_s)
    probe_s = measure_probe(device)
    traffic_s = tuple((nbytes, seconds.pop(nbytes)) for nbytes in TRAFFIC)
    return DeviceProfile(
        name=name_device(device),
        source="measured",
        macs_per_s=find_fastest(seconds),
        bytes_per_s=traffic_s[-1][0] / traffic_s[-1][1],
        call_s=PROBES_PER_CALL * probe_s,
        input_s=PROBES_PER_INPUT * probe_s,
        step_s=PROBES_PER_STEP * probe_s,
        operation_s=seconds,
        traffic_s=traffic_s,
    )


def prepare_calls(
    operation: Operation, count: int, device: torch.device
) -> list[Callable[[], Any]]:
    """Make calls of an operator, each with its own parameters; none if it cannot run alone."""
    nbytes = sum(operand.nbytes for operand in operation.operands)
    owns = any(operand.is_parameter for operand in operation.operands)
    sets = min(count, MAX_SETS, MAX_BYTES // max(nbytes, 1)) if owns else 1
    calls = [operation.prepare(device) for _ in range(max(sets, 1))]
    try:
        calls[0]()
    except (RuntimeError, NotImplementedError, IndexError):
        return []  # made-up values or sizes are not good enough: predicted by its bytes
    return calls


def make_traffic(nbytes: int, device: torch.device) -> Callable[[], Any]:
    """Make a call that reads two thirds of so many bytes and writes a third."""
    a, b, c = torch.ones(3, max(nbytes // 12, 1), device=device)
    return lambda: torch.add(a, b, out=c)


def measure_probe(device: torch.device) -> float:
    """Measure the host's seconds for a tiny operator among many."""
    call = make_traffic(12, device)
    call()
    begun = time.perf_counter()
    for _ in range(NUM_PROBES):
        call()
    return (time.perf_counter() - begun) / NUM_PROBES


def time_in_turns(
    calls: Mapping[Any, Sequence[Callable[[], Any]]], device: torch.device, budget_s: float
) -> dict[Any, float]:
    """Give the median seconds of each key's calls, of which each turn runs one."""
    times: dict[Any, list[float]] = {key: [] for key in calls}
    begun, turns = time.perf_counter(), 0
    while turns < MAX_TURNS:
        for key, sets in calls.items():
            seconds = time_call(sets[turns % len(sets)], device)
            if turns:  # the first one sets up what kernels keep
                times[key].append(seconds)
        turns += 1
        if turns > MIN_TURNS and time.perf_counter() - begun > budget_s:
            break
    return {key: statistics.median(each) for key, each in times.items()}


def time_call(call: Callable[[], Any], device: torch.device) -> float:
    """Measure the seconds of a call, the device's work included."""
    synchronise(device)
    start = time.perf_counter()
    call()
    synchronise(device)
    return time.perf_counter() - start


def find_fastest(seconds: Mapping[Operation, float]) -> dict[str, float]:
    """Find the most multiply-accumulates per second that any operator reached, by dtype."""
    rates: dict[str, float] = {}
    for operation, each_s in seconds.items():
        dtypes = Counter(str(operand.dtype) for operand in operation.operands)
        name = next(iter(dtypes), "torch.float32").removeprefix("torch.")
        rate = count_macs(operation) / max(each_s, 1e-9)
        rates[name] = max(rates.get(name, 0.0), rate)
    return {name: rate for name, rate in rates.items() if rate} or {"float32": 1e9}


def name_device(device: torch.device) -> str:
    """Give a name to a device that is measured."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"this machine's CPU, {torch.get_num_threads()} threads"
    return f"this machine's {device.type}"
