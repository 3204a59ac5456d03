"""The page: a template with a style and a script of its own, all in one file."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dqar_fx.errors import DqarError

from .content import make_content

if TYPE_CHECKING:
    from dqar_fx.costs.report import Report

MANY = 40
"""Most lines of a list that is open when the page opens."""


def write_html(report: Report, path: str | Path) -> None:
    """Write a report as a page.

    Raises:
        DqarError: The report was read from JSON, which has no graphs.
    """
    Path(path).write_text(render(report), encoding="utf-8")


def render(report: Report) -> str:
    """Make the page of a report.

    Raises:
        DqarError: The report was read from JSON, which has no graphs.
    """
    if report.denoiser is None:
        raise DqarError(
            "this report was read from JSON, which has no graphs to draw. Expected one that "
            "Denoiser.report gave: call to_html on that"
        )
    environment = Environment(
        loader=PackageLoader("dqar_fx.inspect.html", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    folder = files("dqar_fx.inspect.html")
    own = {
        name: Markup(folder.joinpath(f"page.{name}").read_text(encoding="utf-8"))
        for name in ("css", "js")
    }
    content = make_content(report, report.denoiser)
    return environment.get_template("page.html").render(**content, **own, many=MANY)
