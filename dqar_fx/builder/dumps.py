"""Graphs written to files as they are compiled, where one environment variable asks for it.

``DQAR_FX_DUMP=folder`` makes a folder inside of it for each captured signature:

    DiTTransformer2DModel_0/00_captured.py
    DiTTransformer2DModel_0/01_normalise.before.py, 01_normalise.after.py, ...
    DiTTransformer2DModel_0/regions/000_specialise.before.py, 000_specialise.after.py, ...
    DiTTransformer2DModel_0/regions/001_lowered_SC.py

Files are the text of `torch.fx.GraphModule.print_readable`: shapes, and the source line of
each node. What is lowered has the letters of its actions in its name. No pass knows of this: a
dump is an observer of the runner. The variable is read when a denoiser captures a call.
"""

from __future__ import annotations

import os
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from dqar_fx.errors import DqarError
from dqar_fx.passes.support.runner import ignore

if TYPE_CHECKING:
    from torch import fx

    from dqar_fx.passes.support.runner import Observer

VARIABLE = "DQAR_FX_DUMP"
"""Names the folder; unset or empty for no dump."""


class Dump:
    """An observer that writes numbered files.

    Args:
        folder: Where files are written; it exists.
        digits: How many digits the numbers of files have.
    """

    def __init__(self, folder: Path, digits: int = 2) -> None:
        self.folder = folder
        self._digits = digits
        self._next = 0

    def __call__(self, when: str, name: str, gm: fx.GraphModule) -> None:
        """Write a graph.

        Args:
            when: ``"captured"``; ``"before"`` or ``"after"`` a pass; ``"lowered"``.
            name: The name of the model or pass, or the letters of a lowered region's actions.
            gm: The graph.
        """
        number = f"{self._next:0{self._digits}d}"
        self._next += when != "before"  # what comes after a pass has the number of before
        titles = {"captured": "captured", "lowered": f"lowered_{name}".rstrip("_")}
        path = self.folder / f"{number}_{titles.get(when, f'{name}.{when}')}.py"
        path.write_text(f"# {when}: {name}\n{gm.print_readable(print_output=False)}\n")


def open_dump(model: str) -> tuple[Observer, Observer]:
    """Observers of a model's passes and of its regions; they do nothing if not asked to.

    Raises:
        DqarError: The folder cannot be made.
    """
    wanted = os.environ.get(VARIABLE)
    if not wanted:
        return ignore, ignore
    try:
        folder = make_folder(Path(wanted), model)
        (folder / "regions").mkdir()
    except OSError as error:
        raise DqarError(
            f"{VARIABLE}={wanted!r}: no graph can be written there: {error}. Expected a "
            "folder that exists or can be made; unset the variable for no dump"
        ) from error
    return Dump(folder), Dump(folder / "regions", digits=3)


def make_folder(parent: Path, name: str) -> Path:
    """A new folder with the first number that is free."""
    parent.mkdir(parents=True, exist_ok=True)
    for number in count():
        try:
            (parent / f"{name}_{number}").mkdir()
        except FileExistsError:
            continue
        return parent / f"{name}_{number}"
    raise AssertionError("numbers do not end")
