"""Which passes run when: every ordered list of passes, each place with its reason.

A list is a tuple in the order in which its passes run. The lists of the first half keep every
value bit for bit in eager mode (guards as long as their actions are COMPUTE); those of the
second half are for compilers only: another layout may take another kernel, and another order
of sums rounds differently. `preserves_values` tells the halves apart by what is in a list.

Any pass may be left out by its name, ``transform(..., disable=("narrow_linears",))``, but for
those in `REQUIRED`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from dqar_fx.errors import OptionError, check_known

from .expand_repeats import expand_repeats
from .expose_attention import expose_attention
from .fix_sizes import fix_sizes
from .free_sizes import free_sizes
from .hoist_conditioning import hoist_conditioning
from .insert_guards import insert_guards
from .keep_keys_values import keep_keys_values
from .merge_duplicates import merge_duplicates
from .merge_equal_parameters import merge_equal_parameters
from .narrow_linears import narrow_linears
from .normalise import normalise
from .outline_regions import outline_regions
from .prepack_linears import prepack_linears
from .site_kinds import SITE_KINDS
from .specialise import specialise
from .turn_skinny_linears import turn_skinny_linears
from .unify_layouts import unify_layouts

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    Pass = Callable[..., Any]
    Pipeline = tuple[Pass, ...]

# ---- lists that keep values --------------------------------------------------------------

AFTER_TRACING: Pipeline = (
    expand_repeats,  # alone: everything below needs all blocks
)
BEFORE_SITES: Pipeline = (
    normalise,  # first: what matches below need not know what does nothing
    merge_equal_parameters,  # before hoisting, which merges what this makes equal
    hoist_conditioning,  # before sites are found: what is hoisted is no site's to compute
)
BEFORE_LOOKING_AT_SITES: Pipeline = (
    normalise,  # as above; parameters stay apart, since nothing is built
    hoist_conditioning,  # so that sites are those that a denoiser has
)
FINDING_SITES: Pipeline = tuple(
    dict.fromkeys(kind.find for kind in SITE_KINDS)  # as the table of kinds has them
)
AFTER_SITES: Pipeline = (
    insert_guards,  # before regions: a region has the guards of its block
)
ON_REGIONS: Pipeline = (
    outline_regions,  # stages first, each inside, then the step
)
BY_THEMSELVES: Pipeline = (
    merge_duplicates,  # inside of hoist_conditioning: before it, blocks would not be alike
    keep_keys_values,  # on matches, where keep="kv" asks: guards keep what these say
    specialise,  # on a region for each row: whatever follows sees no guard, nothing dead
    fix_sizes,  # on whatever a program is made of, for each shape of its inputs
    free_sizes,  # on a row's region, where it is compiled for all shapes
    expose_attention,  # in calibration: behind matching, on a graph without guards
)
"""Passes that are called alone, each with arguments of its own; their order says nothing."""

# ---- lists for compilers, which may change the last bits of values -----------------------

BEFORE_SITES_COMPILED: Pipeline = (
    *BEFORE_SITES,
    unify_layouts,  # last: copies what enters a block, so that equal blocks have one graph
)
COMPILED: Pipeline = (
    narrow_linears,  # first: it knows linears as they are captured
    turn_skinny_linears,  # last: what it makes of them, no other pass knows
)
PACKED: Pipeline = (
    narrow_linears,  # first: of a weight that is packed no rows can be left out
    prepack_linears,  # last: before `COMPILED`, which then finds few linears left
)
STAGE_AHEAD: Pipeline = (
    narrow_linears,  # alone: products of all steps at once add in another order anyway
)

# ---- what is said of them ----------------------------------------------------------------

PIPELINES: dict[str, Pipeline] = {
    "AFTER_TRACING": AFTER_TRACING,
    "BEFORE_SITES": BEFORE_SITES,
    "BEFORE_LOOKING_AT_SITES": BEFORE_LOOKING_AT_SITES,
    "FINDING_SITES": FINDING_SITES,
    "AFTER_SITES": AFTER_SITES,
    "ON_REGIONS": ON_REGIONS,
    "BY_THEMSELVES": BY_THEMSELVES,
    "BEFORE_SITES_COMPILED": BEFORE_SITES_COMPILED,
    "COMPILED": COMPILED,
    "PACKED": PACKED,
    "STAGE_AHEAD": STAGE_AHEAD,
}
"""All lists by name."""
PASS_NAMES = tuple(
    dict.fromkeys(each.__name__ for pipeline in PIPELINES.values() for each in pipeline)
)
"""Names of all passes, in the order in which they are listed first."""
ROUNDING = frozenset(
    {
        unify_layouts,
        narrow_linears,
        turn_skinny_linears,
        prepack_linears,
    }
)
"""Passes after which the last bits of a value may be others."""
REQUIRED = {
    "normalise": "without it dropout of no effect is random, and what is random is no site",
    "keep_keys_values": "keep='kv' asks for it. Use keep='output'",
    "insert_guards": "without it nothing could be reused. Call the original model",
    "outline_regions": "what runs is regions. For a single one use compile='whole'",
    "specialise": "it resolves the guards of what runs. Call the original model",
    "free_sizes": "compile={'dynamic': True} asks for it. Leave 'dynamic' out",
    "fix_sizes": "without it each shape would have a capture of its own",
    "expose_attention": "calibration alone runs it, and reads what it exposes",
    "prepack_linears": "compile={'prepack': True} asks for it. Leave 'prepack' out",
}
"""Passes that the rest cannot do without: the reason, and what to do instead."""


def preserves_values(pipeline: Iterable[Pass]) -> bool:
    """Whether all passes of a list keep every value bit for bit in eager mode."""
    return ROUNDING.isdisjoint(
        each.func if isinstance(each, partial) else each for each in pipeline
    )


def select_passes(
    pipeline: Iterable[Pass],
    disable: Collection[str] = (),
    options: Mapping[Pass, Mapping[str, Any]] | None = None,
) -> list[Pass]:
    """The passes of a list that are to run, in order, with keywords bound by pass."""
    known = options or {}
    return [
        partial(each, **known[each]) if each in known else each
        for each in pipeline
        if each.__name__ not in disable
    ]


def select_before_sites(
    *, compiled: bool, blocks: Collection[str], disable: Collection[str] = ()
) -> list[Pass]:
    """The passes of `BEFORE_SITES`, or for a compiler of `BEFORE_SITES_COMPILED`, bound."""
    options: dict[Pass, dict[str, Any]] = {
        hoist_conditioning: {"merges": merge_duplicates.__name__ not in disable},
        unify_layouts: {"blocks": blocks},
    }
    pipeline = BEFORE_SITES_COMPILED if compiled else BEFORE_SITES
    return select_passes(pipeline, disable, options)


def check_disable(disable: object) -> tuple[str, ...]:
    """The ``disable`` argument of ``transform``, as it was given.

    Raises:
        OptionError: It is no sequence of names, or one of them is unknown or required.
    """
    if isinstance(disable, str) or not isinstance(disable, (tuple, list, set, frozenset)):
        raise OptionError(
            f"disable={disable!r}: expected names of passes, such as ('narrow_linears',)"
        )
    for name in disable:
        check_known("disable=", name, PASS_NAMES)
        if name in REQUIRED:
            raise OptionError(f"disable={name!r}: it cannot be left out: {REQUIRED[name]}")
    return tuple(disable)
