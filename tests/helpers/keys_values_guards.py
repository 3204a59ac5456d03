"""Guards that keep keys and values, the steps around them, and the smallest site."""

from torch import nn

from dqar_fx.passes import FORMATS, find_attention, insert_guards, keep_keys_values, specialise
from dqar_fx.schedule.action import Action
from tests.helpers.rewrite_checks import (
    WIDTH,
    allocated_slots,
    captured,
    fused,
    partial_named,
    rewritten,
    tokens,
)

COMPUTE, STORE, REUSE = Action.COMPUTE, Action.STORE, Action.REUSE
SDPA = "aten.scaled_dot_product_attention.default"
WORDS = tokens(2, 5, WIDTH)
LATER = tokens().flip(0).exp()
"""The input of a later step."""


class Own(nn.Module):
    """Computes keys and values without parameters: the smallest site."""

    def forward(self, x):
        return fused(x, x.neg(), x.cos())


def keep_all(gm, cache="same"):
    """Guard every site of a graph by its keys and values."""
    matches = [keep_keys_values(match) for match in find_attention(gm)[0]]
    return insert_guards(gm, matches, FORMATS[cache])


def kept(gm, cache="same"):
    """A fork of a graph that keeps keys and values."""
    return rewritten(gm, partial_named(keep_all, cache=cache))


def specialised(gm, *actions):
    return rewritten(gm, partial_named(specialise, actions=actions))


def input_names(gm):
    return [node.name for node in gm.graph.find_nodes(op="placeholder")]


def by_name(gm, named):
    """Call a graph with those of its inputs that it still has."""
    return gm(*(named[name] for name in input_names(gm)))


def trajectory(gm, first, later, cache="same"):
    """A step that stores and one that reuses, each specialised; their outputs."""
    guards = kept(gm, cache)
    slots = allocated_slots(guards)
    names = input_names(guards)
    fixed = dict(zip([n for n in names if n.startswith("slot")], slots, strict=True))
    flowing = names[: len(first)]
    stored, reused = (
        by_name(
            specialised(guards, action), {**fixed, **dict(zip(flowing, given, strict=True))}
        )
        for action, given in ((STORE, first), (REUSE, later))
    )
    return stored, reused, slots


def match_of(model, *inputs):
    (match,), _ = find_attention(captured(model, *inputs))
    return match
