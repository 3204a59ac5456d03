"""Resident memory of a process during the steps, with and without the conditioning's weights.

Each variant runs in a fresh process: a DiT with random weights is built and transformed, the
original deleted, and the first steps of a trajectory are run. Linux only: the kernel tells
what of a process is resident.
"""

import gc
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Self

import msgspec
import torch

import dqar_fx
from benchmarks.harness.apart import run_apart
from benchmarks.harness.errors import InputError
from benchmarks.harness.geometry import Geometry, GeometryOptions, draw_timesteps
from benchmarks.harness.machine import describe_machine
from benchmarks.harness.memory import STATUS, read_status, restart_peak
from benchmarks.harness.options import at_least, default_is, one_of, run_command, several
from benchmarks.harness.rows import write_rows
from benchmarks.harness.tables import Column, format_table, show_megabytes

VARIANTS = ("kept", "disk", "drop")
NUM_RUN = 3
"""Steps that are run: one that tabulates and two that read."""


@dataclass(frozen=True)
class Memory:
    """What one process held.

    Attributes:
        variant: What became of the conditioning's weights.
        before_bytes: Resident before the model was built.
        built_bytes: Resident with the transformed model, its original gone.
        steps_bytes: Resident between steps that read the table.
        peak_bytes: Most that was resident from the second step on; None if not known.
        parameter_bytes: Of the parameters, by the denoiser's count.
        released_bytes: Of those that were released, by the denoiser's count.
        table_bytes: Of the conditioning of all steps, by the denoiser's count.
    """

    variant: str
    before_bytes: int
    built_bytes: int
    steps_bytes: int
    peak_bytes: int | None
    parameter_bytes: int
    released_bytes: int
    table_bytes: int

    @property
    def model_bytes(self) -> int:
        """What the model takes during the steps."""
        return self.steps_bytes - self.before_bytes


@torch.no_grad()
def measure(variant: str, geometry: Geometry, num_steps: int) -> Memory:
    """Run one variant in this process."""
    calls = list(islice(geometry.draw_calls(num_steps), NUM_RUN))
    before = read_status("VmRSS")
    denoiser = dqar_fx.transform(
        geometry.build(),
        dqar_fx.Schedule.compute_all(num_steps),
        conditioning="trajectory",
        release="disk" if variant == "disk" else None,
        example_inputs=calls[0],
    )
    gc.collect()
    built, counted = read_status("VmRSS"), denoiser.parameter_bytes
    if variant == "drop":
        labels = geometry.labels().tolist()
        denoiser.drop_conditioning(draw_timesteps(num_steps), class_labels=labels)
    denoiser(**calls[0])
    gc.collect()
    is_known = restart_peak()
    for call in calls[1:]:
        denoiser(**call)
    return Memory(
        variant,
        before,
        built,
        steps_bytes=read_status("VmRSS"),
        peak_bytes=read_status("VmHWM") if is_known else None,
        parameter_bytes=counted.total,
        released_bytes=denoiser.released_bytes,
        table_bytes=denoiser.program.table_bytes,
    )


def measure_apart(variant: str, arguments: Sequence[str]) -> Memory:
    """Run one variant in a fresh process.

    Raises:
        RuntimeError: It failed; what it said last is in the text.
    """
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "said"
        given = [*arguments, "--only", variant]
        error = run_apart(
            "benchmarks.memory", given, said=said, complaint=said.with_name("complaint")
        )
        if error:
            raise RuntimeError(f"{variant}: {error}")
        return msgspec.json.decode(said.read_text().splitlines()[-1], type=Memory)


def list_columns(first: Memory) -> tuple[Column, ...]:
    """The columns of the table, in megabytes, with the share of the first variant."""
    whole = show_megabytes(".0f")
    return (
        Column("weights", "variant"),
        Column("counted MB", lambda row: row.parameter_bytes - row.released_bytes, whole),
        Column("table MB", "table_bytes", whole),
        Column("resident MB", "steps_bytes", whole),
        Column("of the model", "model_bytes", whole),
        Column("", lambda row: row.model_bytes / first.model_bytes - 1, "+.1%"),
        Column("peak MB", "peak_bytes", whole),
    )


@dataclass(frozen=True)
class Options(GeometryOptions):
    """Options of this command."""

    COMMAND = "benchmarks.memory"

    steps: Annotated[int, at_least(NUM_RUN)] = 50
    """Of a trajectory."""
    variants: Annotated[tuple[str, ...], several(one_of(VARIANTS))] = VARIANTS
    """What becomes of the conditioning's weights."""
    only: Annotated[str | None, one_of(VARIANTS), default_is("all, apart")] = None
    """In this process; print its record."""
    out: Path = Path("results/memory")
    """Folder to write to."""

    def settle(self) -> Self:
        """The same, if there is what tells of memory."""
        if not STATUS.exists():
            raise InputError(
                f"{STATUS} was not found: what is resident is known on Linux alone"
            )
        return super().settle()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    return run_command(Options, partial(run, given), argv)


def run(given: Sequence[str], options: Options) -> None:
    """Measure, print and write; each process has the options that were given."""
    geometry = options.geometry
    if options.only is not None:
        memory = measure(options.only, geometry, options.steps)
        print(msgspec.json.encode(memory).decode())
        return
    found = [measure_apart(variant, given) for variant in options.variants]
    machine, path = describe_machine(torch.device("cpu")), options.out / "rows.jsonl"
    print(geometry, format_table(list_columns(found[0]), found), machine, sep="\n")
    write_rows(found, path, geometry, {"steps": options.steps}, machine)
    print(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(main())
