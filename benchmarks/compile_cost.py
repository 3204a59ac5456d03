"""Cold compilation: the untransformed model as one graph, and a linear schedule by regions.

Each in a process of its own with an empty Inductor cache. Not counted: the start of the
process, imports, the model's construction, what Inductor sets up once (something tiny is
compiled before), and running (a second, warm run is taken off). Capture is counted.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import dqar_fx
from benchmarks.command_line import Parser, at_least, folder_to_write
from benchmarks.geometry import Geometry, add_geometry, draw_timesteps, read_geometry
from benchmarks.machine import ROOT, can_compile, describe_machine, set_up_compiler
from benchmarks.measure import Compiled

CPU = torch.device("cpu")
KINDS = {
    "whole": "untransformed, torch.compile(fullgraph=True), first call",
    "regional": "linear schedule, regional, one trajectory with all its rows",
}


@dataclass(frozen=True)
class Cost:
    """What one process measured.

    Attributes:
        kind: A key of `KINDS`.
        compile_s: First run less a second one.
        run_s: The second run.
        graphs: Graphs compiled.
        breaks: Graph breaks.
        distinct_rows: Of the branch table; 1 for the untransformed model.
    """

    kind: str
    compile_s: float
    run_s: float
    graphs: int
    breaks: int
    distinct_rows: int


@torch.no_grad()
def measure(kind: str, geometry: Geometry, steps: int) -> Cost:
    """Compile cold, in this process."""
    model: Any = geometry.build()
    set_up_compiler(CPU)
    before = Compiled.so_far()
    if kind == "whole":
        module: Any = torch.compile(model, fullgraph=True)
        steps = 1
    else:
        schedule = dqar_fx.Schedule.linear(steps)
        module = dqar_fx.transform(model, schedule, compile="regional")
    first_s = run_trajectory(module, geometry, steps)
    second_s = run_trajectory(module, geometry, steps)
    done = Compiled.so_far() - before
    return Cost(
        kind=kind,
        compile_s=first_s - second_s,
        run_s=second_s,
        graphs=done.graphs,
        breaks=done.breaks,
        distinct_rows=1 if kind == "whole" else len(module.table.rows),
    )


def run_trajectory(model: Callable[..., Any], geometry: Geometry, steps: int) -> float:
    """Time of a trajectory, called as stock pipelines call."""
    labels = geometry.labels()
    latents = [geometry.draw_latent() for _ in range(steps)]
    start = time.perf_counter()
    for latent, timestep in zip(latents, draw_timesteps(steps), strict=True):
        model(latent, timestep=timestep.expand(geometry.batch), class_labels=labels)
    return time.perf_counter() - start


def measure_all(repeats: int, arguments: Sequence[str]) -> list[Cost]:
    """Both kinds in turn, each time in processes of their own."""
    order = [kind for _ in range(repeats) for kind in KINDS]
    return [measure_apart(kind, arguments) for kind in tqdm(order, desc="processes")]


def measure_apart(kind: str, arguments: Sequence[str]) -> Cost:
    """The same in a fresh process with an empty cache."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
        answer = subprocess.run(
            [sys.executable, "-m", "benchmarks.compile_cost", "--kind", kind, *arguments],
            cwd=ROOT.parent,
            env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    return Cost(**json.loads(answer.stdout.splitlines()[-1]))


def describe(costs: Sequence[Cost]) -> str:
    """The result in words: medians where there are several."""
    lines, medians = [], {}
    for kind, meaning in KINDS.items():
        mine = [cost for cost in costs if cost.kind == kind]
        medians[kind] = statistics.median(cost.compile_s for cost in mine)
        lines.append(
            f"{meaning:62s} {medians[kind]:7.1f} s  {mine[0].graphs:3d} graphs  "
            f"{mine[0].distinct_rows:3d} rows"
        )
    ratio = medians["regional"] / medians["whole"]
    return "\n".join(
        (*lines, f"regional by whole: {ratio:.2f} (processes of each: {len(mine)})")
    )


def write_costs(costs: Sequence[Cost], geometry: Geometry, path: Path) -> None:
    """Write one line of JSON per cost."""
    shared = asdict(geometry) | asdict(describe_machine(CPU))
    lines = (json.dumps(asdict(cost) | shared) for cost in costs)
    path.write_text("".join(f"{line}\n" for line in lines))


def build_parser() -> Parser:
    """The parser of this command."""
    parser = Parser(prog="python -m benchmarks.compile_cost", description=__doc__)
    add = parser.add_argument
    add("--steps", type=at_least(1), default=50, help="steps of the linear schedule (50)")
    add("--repeats", type=at_least(1), default=1, help="processes of each kind (1)")
    add("--out", type=folder_to_write, default="results/compile_cost", help="folder")
    add("--kind", choices=KINDS, help=argparse.SUPPRESS)  # what a process of its own measures
    add_geometry(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    parser = build_parser()
    args = parser.parse_args(arguments)
    geometry = read_geometry(parser, args)
    if not can_compile(CPU):
        parser.error("no C++ compiler was found, and this measures compilation")
    if args.kind:
        print(json.dumps(asdict(measure(args.kind, geometry, args.steps))))
        return 0
    print(geometry)
    try:
        costs = measure_all(args.repeats, [*arguments, "--out", str(args.out.resolve())])
    except subprocess.CalledProcessError as error:  # the process has said why
        print(
            f"error: the measuring process ended with code {error.returncode}", file=sys.stderr
        )
        return 1
    print(describe(costs), describe_machine(CPU), sep="\n")
    write_costs(costs, geometry, args.out / "rows.jsonl")
    print(f"wrote {args.out / 'rows.jsonl'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
