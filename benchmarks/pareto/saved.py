"""Branch tables in a folder, such as an optimiser writes, checked before anything runs."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch

import dqar_fx
from benchmarks.harness.errors import InputError
from benchmarks.harness.macs import to_meta, to_meta_call
from benchmarks.harness.tables import first_line
from dqar_fx import Action, BranchTable, DqarError, Front, Guidance, Schedule


@dataclass(frozen=True)
class Saved:
    """A branch table of the folder.

    Attributes:
        name: Of its file.
        table: What is in it.
        digest: Tells it from another table of that name.
        guidance: What the unconditional half does, where the folder's front says so.
    """

    name: str
    table: BranchTable
    digest: str
    guidance: Guidance | None = None

    def to_schedule(self, bench: object = None) -> Schedule:
        """As a schedule of the sites in the table, for any bench."""
        del bench
        table = self.table
        texts = [
            # what is stored follows from what is read, also where a stream is left out
            "".join(Action(a).letter.replace("S", "C") for a in column)
            for column in table.actions.T
        ]
        weights = table.weights if table.weights.size else None
        return Schedule.from_actions(
            texts, orders=table.orders, method=table.method, weights=weights
        )


def read_tables(
    folder: Path, model: torch.nn.Module, call: dict[str, torch.Tensor], num_steps: int
) -> list[Saved]:
    """All tables of a folder, by name.

    Args:
        folder: Of JSON files that `BranchTable.save` wrote.
        model: The model they must be for, on any device.
        call: Keyword arguments of one call of it.
        num_steps: The steps they must have.

    Raises:
        InputError: There is no such folder or no table in it, or one is damaged, or for
            another number of steps or another model.
    """
    if not folder.is_dir():
        raise InputError(f"--tables {folder} is no folder")
    files = [file for file in sorted(folder.glob("*.json")) if not is_other(file)]
    if not files:
        raise InputError(f"--tables {folder} has no branch table (*.json) in it")
    meta, inputs = to_meta(model), to_meta_call(call)
    found = []
    try:
        guided = read_guidances(folder)
        for file in files:
            saved = read_table(file, guided.get(file.stem))
            check_table(f"--tables: {file}", saved, meta, inputs, num_steps)
            found.append(saved)
    except DqarError as error:
        raise InputError(f"--tables: {error}") from None
    return found


def is_other(file: Path) -> bool:
    """Whether a file is JSON but no table: an optimiser writes more than tables."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return False  # its name says that it is one: reading it will say what is wrong
    return isinstance(content, dict) and "actions" not in content


def read_guidances(folder: Path) -> dict[str, Guidance | None]:
    """Guidance by the name of a table, where an optimiser's front is in the folder."""
    if not (folder / "front.json").exists():
        return {}
    points = Front.load(folder).points
    return {f"table_{number:02d}": point.guidance for number, point in enumerate(points)}


def read_table(file: Path, guidance: Guidance | None) -> Saved:
    """One table with its guidance, which counts for its identity."""
    table = BranchTable.load(file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    if guidance is not None:
        digest = hashlib.sha256(f"{digest} {guidance}".encode()).hexdigest()[:16]
    return Saved(file.stem, table, digest, guidance)


def check_table(
    what: str,
    saved: Saved,
    meta: torch.nn.Module,
    inputs: dict[str, torch.Tensor],
    num_steps: int,
) -> None:
    """Raise unless a table has the steps, and the model its sites, in its order.

    Raises:
        InputError: It has not.
    """
    table, sites = saved.table, saved.table.sites
    if table.num_steps != num_steps:
        raise InputError(f"{what} is for {table.num_steps} steps, but --steps is {num_steps}")
    try:
        found = dqar_fx.transform(meta, saved.to_schedule(), sites=sites).prepare(**inputs)
    except DqarError as error:
        raise InputError(f"{what} does not fit the model: {first_line(str(error))}") from None
    known = found.table.sites
    if known != sites:
        raise InputError(
            f"{what} has {len(sites)} sites from {sites[0]} on, but the model has "
            f"{len(known)} from {known[0]} on"
        )
