"""The three commands: from parsed options to a denoiser that is not run, and to texts."""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dqar_fx.costs.rows import with_schedule
from dqar_fx.errors import CaptureError, DqarError, StepError, listing
from dqar_fx.inspect import graph_diff
from dqar_fx.inspect.html.facts import describe_model
from dqar_fx.program.backends import unit_of
from dqar_fx.schedule.table import BranchTable
from dqar_fx.transform import transform

from .cards import find_card_maybe
from .example_inputs import derive_inputs
from .geometry import Sizes
from .models import build_model, load_model
from .schedules import ScheduleOptions, make_schedule

if TYPE_CHECKING:
    import argparse

    from torch import nn

    from dqar_fx.denoiser.denoiser import Denoiser
    from dqar_fx.schedule.schedule import Schedule


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
    """Describe a denoiser and its report as a text."""
    facts = describe_model(denoiser)
    found = denoiser.explain()
    misses, spans = found.near_misses, [s for s in found.left_out if s.kind == "span"]
    parts = [
        "\n".join(f"{name}: {value}" for name, value in facts.items()),
        str(denoiser.table),
        str(denoiser.report(device=device)),
        *([f"{len(spans)} spans not chosen:{listing(spans)}"] if spans else []),
        f"{len(misses)} near misses:{listing(misses)}",
    ]
    return "\n\n".join(parts)


def to_json(denoiser: Denoiser, device: str) -> str:
    """Write a denoiser's explanation and report as JSON."""
    return json.dumps(
        {
            "model": describe_model(denoiser),
            "explanation": json.loads(denoiser.explain().to_json()),
            "report": json.loads(denoiser.report(device=device).to_json()),
        }
    )


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


def show_diff(options: argparse.Namespace) -> int:
    """Run the command; its exit code."""
    steps = options.steps_shown
    if options.against is None and len(steps) == 1:
        raise StepError(
            f"one step, {steps[0]}: give two such as {steps[0]}:{steps[0] + 1}, or --against "
            "SCHEDULE to compare two schedules"
        )
    before = prepare(options)
    after = before
    if options.against is not None:
        after = with_schedule(before, read_schedule(options, options.against))
    diff = graph_diff(before.row_graph(steps[0]), after.row_graph(steps[-1]))
    if options.json:
        print(diff.to_json())
    else:
        print(diff or "the same graph")
    return int(options.exit_code and bool(diff))


def prepare(options: argparse.Namespace) -> Denoiser:
    """The denoiser that the options describe.

    Raises:
        DqarError: Something in them does not fit.
    """
    schedule = read_schedule(options, options.schedule)
    model = read_model(options)
    return transform(
        model,
        schedule,
        sites=options.sites,
        example_inputs=derive_inputs(model, read_sizes(options)),
        keep=options.keep,
        cache=options.cache,
        compile=unit_of(options.lowering),
        capture=options.capture,
    )


def read_sizes(options: argparse.Namespace) -> Sizes:
    """Sizes of the inputs: what the options say, or else a card."""
    card = find_card_maybe(options.model or options.config)
    told = {name: getattr(options, name) for name in ("size", "frames", "text_tokens")}
    known = {name: value or getattr(card, name, None) for name, value in told.items()}
    return Sizes(options.batch, **known, given=dict(options.inputs))


def read_schedule(options: argparse.Namespace, text: str) -> Schedule:
    """The schedule of a text, with the other options of schedules."""
    names = [field.name for field in fields(ScheduleOptions)]
    made = make_schedule(text, ScheduleOptions(**{n: getattr(options, n) for n in names}))
    if made.notice:
        print(f"note: {made.notice}", file=sys.stderr)
    return made


def read_model(options: argparse.Namespace) -> nn.Module:
    """The model that the options name.

    Raises:
        CaptureError: They name none, or two.
    """
    source = options.model or options.config
    if source is None or (options.model and options.config):
        raise CaptureError(
            "give one model: a folder, a name on the hub, a card such as flux.1-dev, or "
            "--config FILE_OR_FOLDER"
        )
    if options.weights and options.config:
        raise CaptureError("--config has no weights: give the model's folder or name instead")
    dtype = getattr(torch, options.dtype)
    return load_model(source, dtype) if options.weights else build_model(source, dtype)
