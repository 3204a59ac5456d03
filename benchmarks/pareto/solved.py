"""Contenders with other solvers: the teacher, and what benchmarks.solvers has found."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import solvers
from benchmarks.contenders import kinds
from benchmarks.contenders.contenders import Contender
from benchmarks.contenders.recipes import Solved
from benchmarks.harness.errors import InputError
from benchmarks.harness.rows import read_rows
from benchmarks.pareto.options import Options
from dqar_fx import MultistepScheduler, Teacher

CONFIG = "scheduler_config.json"


def list_teacher(options: Options) -> Iterator[Contender]:
    """The contender whose pictures count as converged, unless there shall be none."""
    if options.teacher:
        teacher = Teacher(options.teacher)
        recipe = Solved(teacher.scheduler_for, {"teacher": options.teacher})
        name = f"converged: {teacher}"
        yield Contender(name, kinds.TEACHER, options.teacher, recipe, kinds.EAGER)


def list_solved(options: Options, mode: str) -> Iterator[Contender]:
    """Solvers of a folder that evaluate once in a step: each at its best spacing.

    Raises:
        InputError: There are none.
    """
    if options.solvers is None:
        return
    rows = read_rows(options.solvers / "rows.jsonl", solvers.Row)
    if not rows:
        raise InputError(
            f"--solvers {options.solvers} has no rows.jsonl with rows: run python -m "
            f"benchmarks.solvers --out {options.solvers} first"
        )
    for budget in solvers.find_best(rows):
        for row in budget.by_solver.values():
            if row.solver == solvers.FITTED:
                yield make_fitted(options.solvers / f"fitted-{row.evaluations}", row, mode)
            elif row.solver not in solvers.TWICE and row.psnr_db is not None:
                yield make_plain(row, mode)


def make_plain(row: solvers.Row, mode: str) -> Contender:
    """A solver of diffusers."""
    make = partial(solvers.make_solver, name=row.solver, spacing=row.spacing)
    recipe = Solved(make, {"solver": row.solver, "spacing": row.spacing})
    name = f"{row.solver}, {row.spacing}, {row.evaluations} steps"
    return Contender(name, kinds.SOLVERS, row.evaluations, recipe, mode)


def make_fitted(folder: Path, row: solvers.Row, mode: str) -> Contender:
    """A solver that was fitted.

    Raises:
        InputError: It is not in the folder.
    """
    file = folder / CONFIG
    if not file.exists():
        raise InputError(f"--solvers: {file} is missing, which its rows.jsonl tells of")

    def load(_: Any) -> Any:
        return MultistepScheduler.from_pretrained(folder)

    recipe = Solved(load, {"fitted": file.read_text()})
    name = f"fitted solver, {row.evaluations} steps"
    return Contender(name, kinds.FITTED, row.evaluations, recipe, mode)
