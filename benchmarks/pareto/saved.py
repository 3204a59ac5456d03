"""Branch tables in a folder, such as an optimiser writes, checked before anything runs."""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import dqar_fx
from benchmarks.harness.errors import InputError
from benchmarks.harness.macs import to_meta, to_meta_call
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

    @property
    def schedule(self) -> Schedule:
        """As a schedule of the sites in the table."""
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

    def with_guidance(self, guidance: Guidance | None) -> "Saved":
        """The table with its guidance, which counts for its identity."""
        if guidance is None:
            return self
        digest = hashlib.sha256(f"{self.digest} {guidance}".encode()).hexdigest()[:16]
        return replace(self, guidance=guidance, digest=digest)


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
    guided = read_guidances(folder)
    saved = (read_table(file, meta, inputs, num_steps) for file in files)
    return [each.with_guidance(guided.get(each.name)) for each in saved]


def read_guidances(folder: Path) -> dict[str, Guidance]:
    """Guidance by the name of a table, where an optimiser's front is in the folder.

    Raises:
        InputError: The front is damaged.
    """
    if not (folder / "front.json").exists():
        return {}
    try:
        front = Front.load(folder)
    except DqarError as error:
        raise InputError(f"--tables: {error}") from None
    names = (f"table_{number:02d}" for number in range(len(front.points)))
    pairs = zip(names, front.points, strict=True)
    return {name: point.guidance for name, point in pairs if point.guidance is not None}


def is_other(file: Path) -> bool:
    """Whether a file is JSON but no table: an optimiser writes more than tables."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return False  # its name says that it is one: reading it will say what is wrong
    return isinstance(content, dict) and "actions" not in content


def read_table(
    file: Path, meta: torch.nn.Module, inputs: dict[str, torch.Tensor], num_steps: int
) -> Saved:
    """One table.

    Raises:
        InputError: It cannot be used.
    """
    try:
        table = BranchTable.load(file)
    except DqarError as error:
        raise InputError(f"--tables: {error}") from None
    if table.num_steps != num_steps:
        raise InputError(
            f"--tables: {file} is for {table.num_steps} steps, but --steps is {num_steps}"
        )
    saved = Saved(file.stem, table, hashlib.sha256(file.read_bytes()).hexdigest()[:16])
    check_sites(file, saved, meta, inputs)
    return saved


def check_sites(
    file: Path, saved: Saved, meta: torch.nn.Module, inputs: dict[str, torch.Tensor]
) -> None:
    """Raise unless the model has the sites of a table, in its order.

    Raises:
        InputError: It has not.
    """
    try:
        denoiser = dqar_fx.transform(meta, saved.schedule, sites=saved.table.sites)
        found = denoiser.prepare(**inputs).table.sites
    except DqarError as error:
        reason = (str(error).splitlines() or [""])[0]
        raise InputError(f"--tables: {file} does not fit the model: {reason}") from None
    if found != saved.table.sites:
        raise InputError(
            f"--tables: {file} has {len(saved.table.sites)} sites from "
            f"{saved.table.sites[0]} on, but the model has {len(found)} from {found[0]} on"
        )
