"""Models' graphs after passes, and the diff of the last one."""

from functools import cache, partial

import pytest

from dqar_fx import graph_diff
from dqar_fx.capture.capture import capture
from dqar_fx.passes import outline_regions, unify_layouts
from dqar_fx.passes.support.blocks import find_blocks
from dqar_fx.passes.support.runner import fork, run_pass
from tests.helpers.inspected_denoisers import MODELS
from tests.helpers.slow_cases import slow_but

every_model = pytest.mark.parametrize("name", slow_but("dit", "pixart", of=MODELS))


def nodes(changes):
    return [each for group in changes.values() for each in group]


def counts(found):
    """How many nodes are removed, added, rewired, moved."""
    return tuple(len(nodes(each)) for each in (found.removed, found.added, found.rewired))


@cache
def graph_after(name, *passes):
    """A model's graph after passes; not to be changed."""
    if not passes:
        case = MODELS[name]()
        return capture(case.model, (), case.inputs(0)).gm
    gm = fork(graph_after(name, *passes[:-1]))
    run_pass(gm, bound(passes[-1], name))
    return gm


def bound(each, name):
    """A pass with its blocks bound."""
    takes_blocks = each in (unify_layouts, outline_regions)
    return partial(each, blocks=blocks_of(name)) if takes_blocks else each


def blocks_of(name):
    return find_blocks(graph_after(name).graph.nodes)


def change_of(name, *passes):
    """What the last of some passes changed; its report agrees."""
    before = graph_after(name, *passes[:-1])
    after = fork(before)
    report = run_pass(after, bound(passes[-1], name))
    found = graph_diff(before, after)
    assert report.delta == found.delta
    assert bool(found) == (report.rewrites > 0)
    return found


def texts(changes):
    return sorted(each.text for each in nodes(changes))
