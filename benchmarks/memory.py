"""Resident memory of a process during the steps, with and without the conditioning's weights.

Each variant runs in a fresh process: a DiT with random weights is built and transformed, the
original deleted, and the first steps of a trajectory are run. Linux only: the kernel tells
what of a process is resident.
"""

import gc
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

import dqar_fx
from benchmarks.command_line import (
    Parser,
    add_geometry,
    at_least,
    folder_to_write,
    read_geometry,
)
from benchmarks.harness.geometry import Geometry, draw_timesteps
from benchmarks.harness.machine import describe_machine

STATUS = Path("/proc/self/status")
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


def read_status(field: str) -> int:
    """Bytes of a field of this process's status."""
    lines = STATUS.read_text().splitlines()
    found = next(line for line in lines if line.startswith(f"{field}:"))
    return 1024 * int(found.split()[1])


def restart_peak() -> bool:
    """Forget the peak so far; whether the kernel did."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


@torch.no_grad()
def measure(variant: str, geometry: Geometry, num_steps: int) -> Memory:
    """Run one variant in this process."""
    timesteps, labels = draw_timesteps(num_steps), geometry.labels()
    calls = [
        {
            "hidden_states": geometry.draw_latent(),
            "timestep": timestep.expand(geometry.batch),
            "class_labels": labels,
        }
        for timestep in timesteps[:NUM_RUN]
    ]
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
        denoiser.drop_conditioning(timesteps, class_labels=labels.tolist())
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
    """Run one variant in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.memory", *arguments, "--only", variant]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Memory(**json.loads(result.stdout.splitlines()[-1]))


def format_table(found: Sequence[Memory]) -> str:
    """The table, in megabytes, with the share of the first variant."""
    rows = [
        (
            each.variant,
            f"{(each.parameter_bytes - each.released_bytes) / 1e6:.0f}",
            f"{each.table_bytes / 1e6:.0f}",
            f"{each.steps_bytes / 1e6:.0f}",
            f"{each.model_bytes / 1e6:.0f}",
            f"{each.model_bytes / found[0].model_bytes - 1:+.1%}",
            "-" if each.peak_bytes is None else f"{each.peak_bytes / 1e6:.0f}",
        )
        for each in found
    ]
    headers = (
        "weights",
        "counted MB",
        "table MB",
        "resident MB",
        "of the model",
        "",
        "peak MB",
    )
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def write_rows(
    found: Sequence[Memory], geometry: Geometry, num_steps: int, path: Path
) -> None:
    """One JSON line per variant, with geometry and machine."""
    facts: dict[str, Any] = {
        **asdict(geometry),
        "steps": num_steps,
        **asdict(describe_machine(torch.device("cpu"))),
    }
    path.write_text("".join(f"{json.dumps({**asdict(m), **facts})}\n" for m in found))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    parser = Parser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--steps", type=at_least(NUM_RUN), default=50, help="(50)")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--only", choices=VARIANTS, help="in this process; print its record")
    parser.add_argument("--out", type=folder_to_write, default="results/memory")
    add_geometry(parser)
    args = parser.parse_args(argv)
    geometry = read_geometry(parser, args)
    if not STATUS.exists():
        parser.error(f"{STATUS} was not found: what is resident is known on Linux alone")
    if args.only is not None:
        print(json.dumps(asdict(measure(args.only, geometry, args.steps))))
        return 0
    given = list(sys.argv[1:] if argv is None else argv)
    found = [measure_apart(variant, given) for variant in args.variants]
    print(geometry, format_table(found), describe_machine(torch.device("cpu")), sep="\n")
    write_rows(found, geometry, args.steps, args.out / "rows.jsonl")
    print(f"wrote {args.out / 'rows.jsonl'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
