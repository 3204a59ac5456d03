"""Macros of the pages: tables that are made of rows, and entries that are made of docstrings.

mkdocs-macros calls `define_env` once per build; a page asks for ``{{ table("main_job") }}``.
"""

from __future__ import annotations

import ast
import importlib
import json
import tomllib
from decimal import Decimal
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mkdocs_macros.plugin import MacrosPlugin

    Row = dict[str, Any]

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parents[1]
PROVENANCE = ("hardware", "device", "dtype", "torch", "diffusers", "commit", "command")
"""What every row says of itself beside its figures."""


def define_env(env: MacrosPlugin) -> None:
    """Give the pages ``table(name)``, ``api``, ``pass_entries``, ``rooms`` and ``waiting``."""
    env.macro(render, "table")
    env.macro(document, "api")
    env.macro(pass_entries)
    env.macro(rooms)
    env.macro(waiting)


# ---- results -------------------------------------------------------------------------------


def read_tables() -> dict[str, Row]:
    """The columns of each table, by its name: header to template, or several templates."""
    return tomllib.loads((RESULTS / "tables.toml").read_text("utf-8"))


def read_rows(name: str) -> list[Row]:
    """The rows of a table, with all decimals of their file; ``inf`` is infinite there."""
    lines = (RESULTS / f"{name}.jsonl").read_text("utf-8").splitlines()
    rows = (json.loads(line, parse_float=Decimal) for line in lines)
    return [{k: float(v) if v == "inf" else v for k, v in row.items()} for row in rows]


def fill(templates: str | list[str], row: Row) -> str:
    """The first template whose fields the row has; a dash if there is none."""
    for template in [templates] if isinstance(templates, str) else templates:
        try:
            return template.format_map(row)
        except KeyError:
            continue
    return "-"


def render(name: str) -> str:
    """A table in Markdown, and under it where its figures come from."""
    columns, rows = read_tables()[name], read_rows(name)
    commits = {row["commit"] for row in rows}
    if len(commits) > 1:
        columns = {**columns, "commit": "`{commit:.7}`"}
    cells = [[fill(templates, row) for templates in columns.values()] for row in rows]
    table = tabulate(cells, [*columns], tablefmt="github", disable_numparse=True)
    box = f'<div class="figures" markdown="1">\n\n{table}\n\n</div>'
    return f"{box}\n\n{describe_origin(name, rows)}"


def describe_origin(name: str, rows: list[Row]) -> str:
    """The hardware, the versions and the command of rows, and a link to them."""
    (hardware,) = {row["hardware"] for row in rows}
    (command,) = {row["command"] for row in rows}
    first, commits = rows[0], sorted({row["commit"][:7] for row in rows})
    others = f", cache-dit {first['cache_dit']}" if "cache_dit" in first else ""
    others += f", dqar_fx at {first['measured_at']}" if "measured_at" in first else ""
    return (
        f"*{hardware}; {first['dtype']}; torch {first['torch']} (CPU), diffusers "
        f"{first['diffusers']}{others}; commit {', '.join(commits)}; `{command}`; "
        f"[rows](/results/{name}.jsonl)*"
    )


# ---- API -----------------------------------------------------------------------------------


def document(*names: str, of: str = "dqar_fx") -> str:
    """What mkdocstrings makes entries of: public names, where they are defined."""
    return "\n\n".join(entry(of, name) for name in names)


def entry(module: str, name: str) -> str:
    """One of them, under the name by which it is imported.

    The passes are looked for in their own folder, which only the installed package has inside.
    """
    value = getattr(importlib.import_module(module), name)
    path = f"{value.__module__}.{value.__qualname__}".replace("dqar_fx.passes.", "passes.")
    title = f"{module}.{name}"
    return f"::: {path}\n    options:\n      heading: {title}\n      toc_label: {name}"


# ---- passes --------------------------------------------------------------------------------


def pass_entries() -> str:
    """A heading and the module docstring of each pass."""
    return "\n\n".join(f"## {name}\n\n{to_markdown(text)}" for name, text in read_passes())


def to_markdown(text: str) -> str:
    """A docstring with its graphs, which are the paragraphs with an indented line, as code.

    An arrow before such a line may stand further to the left than Markdown has it in code.
    """
    return "\n\n".join(
        f"```text\n{dedent(each)}\n```" if "\n    " in f"\n{each}" else each
        for each in text.replace("::\n", ":\n").split("\n\n")
    )


def read_passes() -> Iterator[tuple[str, str]]:
    """Name and docstring of each module that defines a function of its own name."""
    for path in sorted((ROOT / "passes").glob("*.py")):
        module = ast.parse(path.read_text("utf-8"))
        functions = {node.name for node in module.body if isinstance(node, ast.FunctionDef)}
        text = ast.get_docstring(module)
        if path.stem in functions and text is not None:
            yield path.stem, text


# ---- layout --------------------------------------------------------------------------------


def rooms() -> str:
    """The rooms of the package from the lowest on, with what their docstrings say."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    (layers,) = (each["layers"] for each in contracts if each["type"] == "layers")
    paths = map(room_of, reversed(layers))
    lines = [(f"`{path.relative_to(ROOT)}`", first_paragraph(path)) for path in paths]
    return tabulate(lines, ["room", "what is in it"], tablefmt="github")


def room_of(name: str) -> Path:
    """The folder or the module of a room."""
    folder = ROOT / "passes" if name == "passes" else ROOT / "dqar_fx" / name
    return folder if folder.is_dir() else folder.with_suffix(".py")


def first_paragraph(path: Path) -> str:
    """What a room's docstring begins with."""
    module = path / "__init__.py" if path.is_dir() else path
    text = ast.get_docstring(ast.parse(module.read_text("utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split())


# ---- models --------------------------------------------------------------------------------


def waiting() -> str:
    """Models that are captured otherwise, or fail in a trial, as the tests have them."""
    path = ROOT / "benchmarks" / "zoo" / "waiting.toml"
    entries = tomllib.loads(path.read_text("utf-8"))
    lines = [
        (name, entry.get("tier", "graph"), ", ".join(entry.get("trials", ())), entry["note"])
        for name, entry in entries.items()
    ]
    return tabulate(lines, ["class", "tier", "do not hold", "why"], tablefmt="github")
