"""The figures: from the command line to the files."""

import sys
from collections.abc import Sequence

from benchmarks.figures import architecture, mismatch, quality, reuse, speed
from benchmarks.figures.captions import write_captions
from benchmarks.figures.options import FIGURES, Options, parse_options
from benchmarks.figures.rows import RowsError
from benchmarks.figures.studio import Studio
from benchmarks.harness.errors import InputError
from benchmarks.harness.plots import styled, write_figure
from dqar_fx import DqarError

DRAW = {
    "speed": speed.draw,
    "reuse": reuse.draw,
    "quality": quality.draw,
    "architecture": architecture.draw,
    "mismatch": mismatch.draw,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code: 1 if a figure cannot be drawn, 2 for all."""
    options = parse_options(argv)
    try:
        return run(options)
    except (InputError, DqarError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


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
