"""The options of ``dqar-fx`` and of its three commands."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import torch

from dqar_fx.builder.tiers import WANTED
from dqar_fx.costs.profile import DATASHEETS
from dqar_fx.passes import FORMATS
from dqar_fx.program.backends import LOWERINGS
from dqar_fx.schedule.forecast import MAX_ORDER, METHODS
from dqar_fx.schedule.schedule_tiers import TIERS
from dqar_fx.transform import KINDS_KEPT

from .arguments import Parser, at_least, cell_of, pair_of_steps, sites_of, size_of, steps_of
from .commands import show_diff, show_report, show_table
from .example_inputs import input_of
from .schedules import NAMED

if TYPE_CHECKING:
    from collections.abc import Callable

    Commands = argparse._SubParsersAction[Parser]

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

AS_WRITTEN = argparse.RawDescriptionHelpFormatter

DESCRIPTION = """\
See what the compiler makes of a diffusion transformer: which attention it finds, what each
step computes and reuses, why, and what that saves. Nothing is run: by default the model is
built from its config alone, without weights.
"""
EXAMPLES = """\
examples:
  dqar-fx inspect facebook/DiT-XL-2-256 --schedule linear --steps 50 --html report.html
  dqar-fx inspect --config transformer/config.json --sites all --schedule fora --every 3
  dqar-fx table ./pipeline --schedule CCRRCRRC --why 2:0
  dqar-fx diff ./pipeline 4:17 --schedule interval --every 3

'dqar-fx COMMAND --help' tells the options of a command. Errors end with code 2.
"""
INSPECT_EXAMPLES = """\
examples:
  dqar-fx inspect ./pipeline                            # as a text
  dqar-fx inspect ./pipeline --html report.html         # as a page, one file
  dqar-fx inspect ./pipeline --json | jq .report.rows
  dqar-fx inspect ./pipeline --diff 4:17                # what step 17 has not that step 4 has
  dqar-fx inspect flux.1-dev --batch 1 --dtype bfloat16  # a published geometry
  dqar-fx inspect wan2.1-14b --frames 9 --size 60x104
  dqar-fx inspect --config flux.json --sites all --schedule interval --every 4 --forecast 2
  dqar-fx inspect org/model --input image_rotary_emb=none --input ids=512x3:float32
"""
TABLE_EXAMPLES = """\
examples:
  dqar-fx table ./pipeline --schedule linear --steps 50 --out table.json
  dqar-fx table ./pipeline --tier balanced --steps 20
  dqar-fx table table.json
  dqar-fx table ./pipeline --why 21:transformer_blocks.3.attn1
"""
DIFF_EXAMPLES = """\
examples:
  dqar-fx diff ./pipeline 4:17                           # two steps of one schedule
  dqar-fx diff ./pipeline 17 --against compute_all       # two schedules at a step
  dqar-fx diff ./pipeline 4:17 --json | jq .delta
  dqar-fx diff ./pipeline 4:17 --exit-code >/dev/null && echo "the same graph"
"""


def build_parser() -> Parser:
    """The parser of the command."""
    parser = Parser(
        prog="dqar-fx", description=DESCRIPTION, epilog=EXAMPLES, formatter_class=AS_WRITTEN
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_inspect(commands)
    add_table(commands)
    add_diff(commands)
    return parser


def add_inspect(commands: Commands) -> None:
    """Add ``inspect``, which shows everything there is to know."""
    parser = add_command(
        commands,
        "inspect",
        help="sites, branch table, costs; as text, page or JSON",
        description="Show sites, branch table, costs of rows and trajectory, and near misses.",
        epilog=INSPECT_EXAMPLES,
        run=show_report,
    )
    group = parser.add_argument_group("what to show").add_mutually_exclusive_group()
    group.add_argument("--html", metavar="FILE", help="write a page")
    group.add_argument("--json", action="store_true", help="print JSON")
    group.add_argument(
        "--diff",
        type=pair_of_steps,
        metavar="STEP:STEP",
        help="print what two steps differ in",
    )


def add_table(commands: Commands) -> None:
    """Add ``table``, which shows the branch table alone."""
    parser = add_command(
        commands,
        "table",
        help="the branch table of a schedule, or of a saved file",
        description="Print the branch table of a schedule for a model, or a table of a file.",
        epilog=TABLE_EXAMPLES,
        run=show_table,
        model="model or table file",
    )
    group = parser.add_argument_group("what to show")
    group.add_argument("--why", type=cell_of, metavar="STEP:SITE", help="explain one cell")
    group.add_argument("--out", metavar="FILE", help="save the table, for --schedule FILE")


def add_diff(commands: Commands) -> None:
    """Add ``diff``, which compares two rows, or two schedules at a step."""
    parser = add_command(
        commands,
        "diff",
        help="what the graphs of two steps, or of two schedules, differ in",
        description="Print what left the graph, what came, and what that saves.",
        epilog=DIFF_EXAMPLES,
        run=show_diff,
    )
    parser.add_argument("steps_shown", metavar="STEP[:STEP]", type=steps_of, help="which rows")
    group = parser.add_argument_group("what to show")
    group.add_argument(
        "--against", metavar="SCHEDULE", help="the schedule after; same options"
    )
    group.add_argument("--json", action="store_true", help="print JSON")
    group.add_argument("--exit-code", action="store_true", help="end with 1 if they differ")


def add_command(
    commands: Commands,
    name: str,
    *,
    run: Callable[[argparse.Namespace], int],
    model: str = "model",
    **texts: Any,
) -> Parser:
    """Add a command that is given a model, a schedule, and how it is transformed."""
    parser = commands.add_parser(name, formatter_class=AS_WRITTEN, **texts)
    parser.set_defaults(run=run)
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help=f"{model}: a folder, a name on the hub, or a card such as flux.1-dev",
    )
    add_model_options(parser.add_argument_group("model and its inputs").add_argument)
    add_schedule_options(parser.add_argument_group("schedule"))
    add_transform_options(parser.add_argument_group("transformation").add_argument)
    return parser


def add_model_options(add: Callable[..., argparse.Action]) -> None:
    """Add options that tell which model it is, and what it is given."""
    add("--config", metavar="FILE_OR_FOLDER", help="the model, by its config or card alone")
    add("--weights", action="store_true", help="load the weights (equal ones are merged)")
    add("--dtype", choices=DTYPES, default="float32", help="of the parameters (float32)")
    add("--batch", type=at_least(1), default=2, help="samples of a call, with guidance's (2)")
    add(
        "--size",
        type=size_of,
        metavar="SIDE_OR_HxW",
        help="height and width of the latent, or a sound's length (the config's; 128)",
    )
    add("--frames", type=at_least(1), help="frames of the latent (the config's; 21)")
    add("--text-tokens", type=at_least(1), help="tokens of text (the pipeline's; 512)")
    add(
        "--input",
        type=input_of,
        action="append",
        default=[],
        dest="inputs",
        metavar="NAME=SHAPE:DTYPE",
        help="an input that the config does not tell; NAME=none leaves it out",
    )


def add_schedule_options(group: argparse._ArgumentGroup) -> None:
    """Add options that tell which schedule it is."""
    add, which = group.add_argument, group.add_mutually_exclusive_group().add_argument
    which(
        "--schedule",
        default="linear",
        help=f"{', '.join(NAMED)}, actions such as CCRRCR, or a saved table (linear)",
    )
    which(
        "--tier",
        dest="schedule",
        choices=TIERS,
        default=argparse.SUPPRESS,
        help="a schedule tier, from the best pictures to the fastest; or --schedule NAME",
    )
    add(
        "--steps",
        type=at_least(1),
        help="rows of the table: evaluations of the denoiser (50, or what the schedule has)",
    )
    add("--warmup", type=at_least(1), help="first steps, which compute")
    add("--every", type=at_least(1), help="distance of computed steps")
    add("--full-from", type=at_least(1), help="linear: step from which all sites reuse")
    add("--max-age", type=at_least(1), help="steps that a kept output may live")
    orders = range(MAX_ORDER + 1)
    add("--forecast", type=int, choices=orders, help="order of forecasts instead of reuse")
    add("--method", choices=METHODS, help="of forecasts (taylor)")


def add_transform_options(add: Callable[..., argparse.Action]) -> None:
    """Add options that tell how the model is transformed."""
    add("--sites", type=sites_of, help="attention, all, block, ..., or paths (the schedule's)")
    add("--keep", choices=KINDS_KEPT, default="output", help="what a site keeps (output)")
    add("--cache", choices=FORMATS, default="same", help="how it is stored (same)")
    add("--capture", choices=WANTED, default="auto", help="whole, or block by block (auto)")
    add("--lowering", choices=LOWERINGS, default="regional", help="what runs it (regional)")
    add(
        "--device",
        default="A100",
        help=f"times are predicted for: {', '.join(DATASHEETS)}, or a device here (A100)",
    )
