"""From a report and its denoiser to what a page shows: texts and numbers, nothing of torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dqar_fx.costs.rows import streams_of
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
