"""What is promised of a step: no break, no recompilation, no wait, and graphs that replay."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch._dynamo.utils import counters

import dqar_fx
from benchmarks.accelerator.cases import Case, Finding, Stage
from benchmarks.accelerator.parts.identity import asking_between_runs
from benchmarks.accelerator.scales import Scale
from benchmarks.accelerator.subjects import Subject, make_tiny
from benchmarks.harness.timing import Compiled
from dqar_fx import Denoiser, Schedule

STEPS, RUNS = 6, 3
SCHEDULES = {
    "reuse": Schedule.interval(STEPS, 2, warmup=1),
    "forecast": Schedule.interval(STEPS, 3, warmup=2).forecast(2),
}
CLOSE = 1e-4
"""What compiling may change of float32, by the largest output: it reorders sums."""
REPLAYED = {"mode": "reduce-overhead"}


def list_cases(scale: Scale) -> list[Case]:
    """Both units, both schedules, launched and replayed."""
    graphs = ("compiles", "graphs") if scale.keywords is None else ()
    launched = [
        Case(f"{unit}, {name}", "steps", partial(try_steps, unit, name), graphs[:1])
        for unit in ("regional", "whole")
        for name in SCHEDULES
    ]
    replayed = [
        Case(f"{unit}, {name}, replayed", "replay", partial(try_replay, unit, name), graphs)
        for unit in ("regional", "whole")
        for name in SCHEDULES
    ]
    return [*launched, *replayed[: 1 if scale.is_sample else None]]


@dataclass(frozen=True)
class Runs:
    """What some runs of a denoiser gave.

    Attributes:
        outputs: Of each step of each run, on the host.
        compiled: By Dynamo in the first run.
        again: By Dynamo in the others.
        addresses: Of the slots' buffers, after each run.
    """

    outputs: list[list[torch.Tensor]]
    compiled: Compiled
    again: Compiled
    addresses: list[list[int]]

    @property
    def breaks(self) -> int:
        """Graph breaks of all runs."""
        return self.compiled.breaks + self.again.breaks

    @property
    def is_settled(self) -> bool:
        """Whether nothing breaks, nothing is compiled again, and slots stay."""
        return not self.breaks + self.again.graphs and all(
            each == self.addresses[0] for each in self.addresses
        )

    def __str__(self) -> str:
        moved = sum(each != self.addresses[0] for each in self.addresses)
        return (
            f"{self.compiled.graphs} graphs, {self.breaks} breaks, "
            f"{self.again.graphs} recompiles, slots moved in {moved} of {RUNS} runs"
        )


def find_subject(stage: Stage) -> Subject:
    """The model of all cases."""
    found: Subject = stage.once("tiny", lambda: make_tiny(stage.device))
    return found


def run_denoiser(denoiser: Denoiser, subject: Subject, device: torch.device) -> Runs:
    """Some runs, each with the latents of the others; after the first no step may wait."""
    torch.manual_seed(3)
    calls = list(subject.calls(STEPS))
    outputs: list[list[torch.Tensor]] = []
    addresses, marks = [], [Compiled.so_far()]
    for run in range(RUNS):
        kept = []
        for step, call in enumerate(calls):
            with asking_between_runs(device, step if run else 0, STEPS):
                kept.append(denoiser(**call).sample.clone())
        outputs.append([each.cpu() for each in kept])
        addresses.append(list_addresses(denoiser))
        marks.append(Compiled.so_far())
    return Runs(outputs, marks[1] - marks[0], marks[-1] - marks[1], addresses)


def list_addresses(denoiser: Denoiser) -> list[int]:
    """Where the slots of all streams are."""
    streams = denoiser.program.streams.values()
    return [b.data_ptr() for stream in streams for b in stream.slots.buffers.values()]


def transform(stage: Stage, unit: str, name: str, keywords: dict[str, Any]) -> Denoiser:
    """The denoiser of a case, compiled."""
    return dqar_fx.transform(
        find_subject(stage).model, SCHEDULES[name], compile={"unit": unit, **keywords}
    )


def find_expected(stage: Stage, name: str) -> list[torch.Tensor]:
    """What the steps of a schedule give in eager mode."""

    def make() -> list[torch.Tensor]:
        subject = find_subject(stage)
        denoiser = dqar_fx.transform(subject.model, SCHEDULES[name])
        return run_denoiser(denoiser, subject, stage.device).outputs[0]

    found: list[torch.Tensor] = stage.once(("eager", name), make)
    return found


def try_steps(unit: str, name: str, stage: Stage) -> Finding:
    """Three runs: one graph for each variant, then nothing new, and no wait in a step."""
    return judge(stage, name, transform(stage, unit, name, stage.scale.in_mode({})))


def try_replay(unit: str, name: str, stage: Stage) -> Finding:
    """The same replayed; a graph that Inductor does not record is counted as skipped."""
    before = counters["inductor"]["cudagraph_skips"]
    denoiser = transform(stage, unit, name, stage.scale.in_mode(REPLAYED))
    found = judge(stage, name, denoiser)
    skipped = counters["inductor"]["cudagraph_skips"] - before
    values = {**found.values, "skipped": skipped}
    return Finding(found.holds and not skipped, f"{found.word}, {skipped} skipped", values)


def judge(stage: Stage, name: str, denoiser: Denoiser) -> Finding:
    """Whether runs are settled, equal to each other, and near to eager ones."""
    expected = find_expected(stage, name)
    runs = run_denoiser(denoiser, find_subject(stage), stage.device)
    first, *others = runs.outputs
    equal = all(
        torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True)
    )
    error = max(
        float((a - b).abs().max() / b.abs().max())
        for a, b in zip(first, expected, strict=True)
    )
    word = f"{runs}; runs {'equal' if equal else 'differ'}, error {error:.1e} of eager"
    values = {
        "graphs": runs.compiled.graphs,
        "breaks": runs.breaks,
        "recompiles": runs.again.graphs,
        "error": error,
    }
    return Finding(runs.is_settled and equal and error <= CLOSE, word, values)
