"""The figures: from the command line to the files."""

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.figures import architecture, mismatch, quality, reuse, speed
from benchmarks.figures.options import FIGURES, Options
from benchmarks.figures.speed import RowsError
from benchmarks.figures.studio import Studio
from benchmarks.harness.options import run_command
from benchmarks.harness.plots import styled, write_figure

DRAW = {
    "speed": speed.draw,
    "reuse": reuse.draw,
    "quality": quality.draw,
    "architecture": architecture.draw,
    "mismatch": mismatch.draw,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code: 1 if a figure cannot be drawn, 2 for all."""
    return run_command(Options, run, argv)


def run(options: Options) -> int:
    """Draw and write; the exit code."""
    studio = Studio(options)
    captions: dict[str, str] = {}
    errors = 0
    for name in (name for name in FIGURES if name in options.only):
        print(f"drawing {name} ...", file=sys.stderr)
        try:
            with styled():
                drawn = DRAW[name](studio)
                paths = write_figure(drawn, options.out, name)
        except RowsError as error:  # the others need no rows
            print(f"error: {error}", file=sys.stderr)
            errors += 1
            continue
        captions[name] = drawn.caption
        print(f"wrote {' and '.join(map(str, paths))}")
    if captions:
        page = options.out / "figures.md"
        write_captions(captions, FIGURES, page)
        print(f"wrote {page}")
    return 1 if errors else 0


def read_captions(page: Path) -> dict[str, str]:
    """Sections of a page of captions by figure; none if there is no page."""
    text = page.read_text() if page.exists() else ""
    sections = (part.partition("\n") for part in f"\n{text}".split("\n## ")[1:])
    return {name.strip(): body.strip() for name, _, body in sections}


def write_captions(captions: dict[str, str], order: tuple[str, ...], page: Path) -> None:
    """Write captions beside those that are on the page from earlier runs."""
    known = read_captions(page) | {
        name: f"![{name}]({name}.png)\n\n{caption}" for name, caption in captions.items()
    }
    sections = [f"## {name}\n\n{known[name]}\n" for name in order if name in known]
    page.write_text("\n".join(["# Figures\n", *sections]))
