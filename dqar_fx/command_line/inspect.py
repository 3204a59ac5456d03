"""``dqar-fx inspect``: sites, branch table and costs, as text, page or JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from dqar_fx.errors import DqarError, listing
from dqar_fx.inspect import graph_diff
from dqar_fx.inspect.html.facts import describe_model

from .prepare import prepare

if TYPE_CHECKING:
    import argparse

    from dqar_fx.denoiser.denoiser import Denoiser


def show_report(options: argparse.Namespace) -> int:
    """Run the command; its exit code."""
    if options.html is not None and not Path(options.html).absolute().parent.is_dir():
        raise DqarError(f"--html {options.html}: its folder does not exist; make it first")
    denoiser = prepare(options)
    if options.diff is not None:
        before, after = (denoiser.row_graph(step) for step in options.diff)
        print(graph_diff(before, after) or "the same graph")
    elif options.html is not None:
        report = denoiser.report(device=options.device)
        report.to_html(options.html)
        print(f"wrote {options.html}")
    elif options.json:
        print(to_json(denoiser, options.device))
    else:
        print(describe(denoiser, options.device))
    return 0


def describe(denoiser: Denoiser, device: str) -> str:
    """All of it as a text."""
    facts = describe_model(denoiser)
    misses = denoiser.explain().near_misses
    parts = [
        "\n".join(f"{name}: {value}" for name, value in facts.items()),
        str(denoiser.table),
        str(denoiser.report(device=device)),
        f"{len(misses)} near misses:{listing(misses)}",
    ]
    return "\n\n".join(parts)


def to_json(denoiser: Denoiser, device: str) -> str:
    """All of it as JSON."""
    return json.dumps(
        {
            "model": describe_model(denoiser),
            "explanation": json.loads(denoiser.explain().to_json()),
            "report": json.loads(denoiser.report(device=device).to_json()),
        }
    )
