"""``dqar-fx table``: a branch table, printed, saved, or one cell of it explained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from dqar_fx.schedule.table import BranchTable

from .prepare import prepare

if TYPE_CHECKING:
    import argparse


def show_table(options: argparse.Namespace) -> int:
    """Run the command; its exit code."""
    table = read_table(options)
    if options.out is not None:
        table.save(options.out)
    print(table if options.why is None else table.why(*options.why))
    return 0


def read_table(options: argparse.Namespace) -> BranchTable:
    """The table of a file, or of a model with a schedule."""
    if options.model is not None and is_table(Path(options.model)):
        return BranchTable.load(options.model)
    return prepare(options).table


def is_table(path: Path) -> bool:
    """Whether a file looks like a saved table: what is no config of a model."""
    if not path.is_file():
        return False
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return True  # reading it as a table says what is wrong
    return not (isinstance(content, dict) and "_class_name" in content)
