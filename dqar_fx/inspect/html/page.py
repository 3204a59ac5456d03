"""The page: texts and numbers of a report and its denoiser, in a template, all in one file."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dqar_fx.costs.rows import streams_of
from dqar_fx.errors import DqarError
from dqar_fx.program.explanation import describe_miss

from .blocks import BlockDiffs
from .drawing import describe_diff
from .facts import describe_model, describe_tensor, generalise, quantity
from .stream import TextTable, view_stream

if TYPE_CHECKING:
    from dqar_fx.costs.report import Report
    from dqar_fx.costs.rows import StreamTable
    from dqar_fx.denoiser.denoiser import Denoiser
    from dqar_fx.inspect.amounts import Amounts
    from dqar_fx.plan.slots import SlotKey


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


STREAMS = ("conditional", "unconditional")


def make_content(report: Report, denoiser: Denoiser) -> dict[str, Any]:
    """Make what the template is filled with, by name; ``data`` is what the script reads."""
    diffs, texts = BlockDiffs(denoiser.program), TextTable()
    streams = streams_of(denoiser)
    views = [
        view_stream(number, stream, report, diffs, texts)
        for number, stream in enumerate(streams)
    ]
    for view in views:
        view["name"] = STREAMS[view["number"]] if len(views) > 1 else ""
    return {
        "facts": describe_model(denoiser),
        "report": report,
        "streams": views,
        "modules": list_module_savings(diffs, streams, report),
        "slots": list_slots(denoiser),
        "memory": report.memory,
        "passes": denoiser.explain().reports,
        "sites": denoiser.program.explanation.sites,
        "near_misses": [describe_miss(m) for m in denoiser.program.explanation.near_misses],
        "data": {
            "streams": [view["data"] for view in views],
            "calls": [call.block or "between blocks" for call in diffs.calls],
            "columns": [call.columns for call in diffs.calls],
            "diffs": [describe_diff(each) for each in diffs.found],
            "texts": list(texts.found),
        },
    }


def list_module_savings(
    diffs: BlockDiffs, streams: list[StreamTable], report: Report
) -> list[dict[str, str]]:
    """List what the trajectory saves, by kind of module, most first."""
    rows = [
        stream.table.row(step)
        for stream in streams
        for step, is_called in enumerate(stream.called)
        if is_called
    ]
    total: dict[str, Amounts] = {}
    for path, saved in diffs.saved_by_module(rows).items():
        name = generalise(path) or "(outside of modules)"
        total[name] = total[name] + saved if name in total else saved
    all_macs = report.computed.macs * len(rows)
    return [
        {
            "path": path,
            "macs": quantity(each.macs),
            "share": f"{each.macs / all_macs:.1%}" if all_macs else "-",
            "parameters": f"{each.parameter_bytes / 1e6:.1f}",
            "activations": f"{each.activation_bytes / 1e6:.1f}",
        }
        for path, each in sorted(total.items(), key=lambda item: -item[1].macs)
    ]


def list_slots(denoiser: Denoiser) -> list[dict[str, Any]]:
    """List the slots of one stream by site.

    Bytes are those of slots that have buffers of their own.
    """
    program = denoiser.program
    sites, specs, owners = program.table.sites, program.slot_specs, program.slot_owners
    found: dict[int, list[SlotKey]] = {}
    for key in specs:
        found.setdefault(key[0], []).append(key)
    return [
        {
            "site": sites[column],
            "buffers": ", ".join(
                describe_tensor(specs[key].dtype, specs[key].shape) for key in keys
            ),
            "lenders": ", ".join(
                dict.fromkeys(sites[owners[key][0]] for key in keys if owners[key] != key)
            ),
            "nbytes": sum(specs[key].nbytes for key in keys if owners[key] == key),
        }
        for column, keys in sorted(found.items())
    ]
