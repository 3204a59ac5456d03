"""Whether values are right there: against the original, plain hooks, and stated bounds."""

import gc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import nn

import dqar_fx
from benchmarks.accelerator.cases import Case, Finding, Stage
from benchmarks.accelerator.race import run_trajectory
from benchmarks.accelerator.scales import Scale
from benchmarks.accelerator.subjects import make_dit, make_tiny, move, waits_refused
from benchmarks.harness.memory import Memory
from benchmarks.stock.tiny import seeded
from benchmarks.zoo.specimens import Specimen, specimens
from benchmarks.zoo.trials import TRIALS, Trial
from dqar_fx.passes import FORMATS, TensorSpec

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MODELS = ("DiTTransformer2DModel", "FluxTransformer2DModel", "WanTransformer3DModel")
STEPS = 6
AHEAD_ERROR = 2e-5
"""What the documentation states of conditioning that is evaluated ahead, in float32."""
MEMORY_ERROR = 0.02
"""What allocators round up, and what libraries hold for products."""


def list_cases(scale: Scale) -> list[Case]:
    """All cases, in the order of what they are worth."""
    models = MODELS[:1] if scale.is_sample else MODELS
    trials = {
        model: [
            Case(
                f"{check}, {model}, {dtype}",
                "exact" if check == "computes" else "oracle",
                partial(try_model, model, check, dtype),
                () if dtype == "float32" else (dtype,),
            )
            for dtype in DTYPES
            for check in ("computes", "attention", "blocks")
        ]
        for model in models
    }
    formats = [
        Case(
            f"{name}, {'compiled' if is_compiled else 'eager'}",
            "formats",
            partial(round_trip, name, is_compiled),
            needs_of(name, is_compiled),
        )
        for is_compiled in (False, True)
        for name in FORMATS
        if name != "same"
    ]
    return [
        Case("abilities", "device", tell_abilities),
        *trials[MODELS[0]],
        Case("NaN in a slot", "flags", flag_nan),
        Case("conditioning ahead", "ahead", compare_ahead),
        *formats,
        Case("released to the host", "memory", partial(measure_memory, "host")),
        Case("released to disk", "memory", partial(measure_memory, "disk")),
        *(case for model in models[1:] for case in trials[model]),
    ]


def needs_of(cache: str, is_compiled: bool) -> tuple[str, ...]:
    """What a format needs of a device."""
    own = {"fp16": ("float16",), "bf16": ("bfloat16",), "fp8": ("float8",)}.get(cache, ())
    return (*own, "compiles") if is_compiled else own


def tell_abilities(stage: Stage) -> Finding:
    """What the device can do, for whoever reads the rows."""
    found = stage.abilities.to_dict()
    lacking = [name for name, is_there in found.items() if not is_there]
    return Finding(None, f"lacks {', '.join(lacking)}" if lacking else "has all", found)


# ---- models against the original and against hooks ------------------------------------------


@dataclass(frozen=True)
class PlacedSpecimen:
    """A specimen on a device, in a dtype.

    Attributes:
        specimen: The class and its configuration.
        device: Where the model and its inputs are.
        dtype: Of weights and inputs.
    """

    specimen: Specimen
    device: torch.device
    dtype: torch.dtype

    @property
    def streams(self) -> Any:
        """As the specimen's."""
        return self.specimen.streams

    def make(self) -> nn.Module:
        """A new model there."""
        return nn.Module.to(self.specimen.make(), self.device, self.dtype)

    def inputs(self, model: nn.Module, step: int) -> dict[str, Any]:
        """Keyword arguments of a step, drawn on the CPU: equal on every device."""
        del model
        drawn = self.specimen.inputs(self.plain, step)
        found: dict[str, Any] = move(drawn, self.device, self.dtype)
        return found

    @cached_property
    def plain(self) -> nn.Module:
        """The model where inputs are drawn."""
        return self.specimen.make()


def try_model(name: str, check: str, dtype: str, stage: Stage) -> Finding:
    """One trial of one class."""
    key = ("trial", name, dtype)
    placed: Any = PlacedSpecimen(specimens()[name], stage.device, DTYPES[dtype])
    trial = stage.once(key, lambda: Trial(placed))
    verdict = TRIALS[check](trial)
    return Finding(verdict.is_right, verdict.word)


# ---- formats --------------------------------------------------------------------------------


def round_trip(name: str, is_compiled: bool, stage: Stage) -> Finding:
    """Write a value to a slot and read it: the error by the stated bound, and the flag."""
    cache, share = FORMATS[name], 0.0
    flags = []
    write = cache.write
    if is_compiled:
        write = torch.compile(write, fullgraph=True, **stage.scale.in_mode({}))
    for bad in (None, torch.nan, torch.inf):
        value = 3 * seeded(1, 2, 36, 60)
        if bad is not None:
            value[1, 2, 3] = bad
        there = value.to(stage.device)
        buffers = [spec.allocate() for spec in cache.specs(TensorSpec.of(there))]
        write(there, buffers)
        flags.append(bool(buffers[-1]))
        if bad is None:
            read = cache.read(buffers, there.dtype).cpu().double()  # no device needs float64
            share = float(((read - value.double()).abs() / cache.bound(value).double()).max())
    right = share <= 1 and flags == [False, True, True]
    word = f"error {share:.3f} of its bound, flags {flags}"
    return Finding(right, word, {"of_bound": share})


# ---- flags, conditioning, memory ---------------------------------------------------------


def flag_nan(stage: Stage) -> Finding:
    """A latent with a NaN is warned of at the run's end, and no step waits to find out."""
    subject = make_tiny(stage.device)
    schedule = dqar_fx.Schedule.interval(STEPS, 2)
    denoiser = dqar_fx.transform(subject.model, schedule, cache="int8")
    run_trajectory(denoiser, list(subject.calls(STEPS)), stage.device)
    calls = list(subject.calls(STEPS))
    calls[2]["hidden_states"][0, 0, 0, 0] = torch.nan
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step, call in enumerate(calls):
            with asking_between_runs(stage.device, step, STEPS):
                denoiser(**call)
        denoiser.reset()
    said = [str(each.message) for each in caught if "kept NaN" in str(each.message)]
    return Finding(len(said) == 1, f"{len(said)} warning of {STEPS} steps")


@contextmanager
def asking_between_runs(device: torch.device, step: int, steps: int) -> Iterator[None]:
    """Refuse waits but at the first and the last step, where flags are read between runs."""
    if 0 < step < steps - 1:
        with waits_refused(device):
            yield
    else:
        yield


def compare_ahead(stage: Stage) -> Finding:
    """Conditioning of all steps at once gives what it gives step by step, nearly."""
    subject = make_tiny(stage.device)
    schedule = dqar_fx.Schedule.compute_all(STEPS)
    by_step, ahead = (
        dqar_fx.transform(subject.model, schedule, conditioning=way)
        for way in ("step", "trajectory")
    )
    largest, scale = 0.0, 0.0
    for step, call in enumerate(list(subject.calls(STEPS))):
        expected = by_step(**call).sample
        with asking_between_runs(stage.device, step, STEPS):
            found = ahead(**call).sample
        largest = max(largest, float((found - expected).abs().max()))
        scale = max(scale, float(expected.abs().max()))
    error = largest / scale
    word = f"error {error:.1e} of the largest output"
    return Finding(error <= AHEAD_ERROR, word, {"error": error})


def measure_memory(place: str, stage: Stage) -> Finding:
    """Bytes that are allocated between and in steps, against the plan made before."""
    memory, square = Memory(stage.device), torch.ones(64, 64, device=stage.device)
    square @ square  # what libraries hold for products is theirs
    gc.collect()
    memory.start()
    geometry = replace(stage.scale.resident, batch=stage.scale.batches[0])
    subject = make_dit("resident", geometry, stage.device, stage.scale.dtype)
    calls = list(subject.calls(3))
    schedule = dqar_fx.Schedule.from_actions("SRR")
    with warnings.catch_warnings(action="ignore"):  # a CPU has no other memory, and says so
        denoiser = dqar_fx.transform(
            subject.model, schedule, release=place, example_inputs=calls[0]
        )
    del subject
    given = sum(each.nbytes for call in calls for each in {*tensors_of(call)})
    for call in calls:
        denoiser(**call)
    gc.collect()
    memory.reset()
    denoiser(**calls[0])
    plan, held, peak = denoiser.memory, memory.read_now() - memory.mark, memory.above()
    values = {
        "held_bytes": held,
        "planned_bytes": plan.held,
        "peak_bytes": peak,
        "planned_peak_bytes": plan.peak,
        "released_bytes": plan.released,
        "given_bytes": given,
    }
    word = (
        f"{held / 1e6:.1f} MB held, {plan.held / 1e6:.1f} planned; peak {peak / 1e6:.1f}, "
        f"{plan.peak / 1e6:.1f} planned"
    )
    if not stage.abilities.memory:
        return Finding(None, f"{word} (of the process)", values)
    is_right = abs(held - plan.held - given) <= MEMORY_ERROR * plan.held
    return Finding(is_right, word, values)


def tensors_of(call: dict[str, Any]) -> Iterator[torch.Tensor]:
    """Tensors of a call."""
    return (value for value in call.values() if isinstance(value, torch.Tensor))
