"""Which nodes of a graph do not depend on the latent, and may leave the step."""

from __future__ import annotations

import re
from itertools import chain, compress, count, islice
from typing import TYPE_CHECKING

from .blocks import find_blocks, find_runs, find_siblings
from .graphs import is_computing, is_pure, tensor_value
from .unpacking import find_left, find_unpacking

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from torch import fx

LATENT_NAMES = ("hidden_states", "sample", "latents", "x", "vision_tokens")
"""Names of the latent argument in the field; else the first floating-point tensor."""
LATENTS_BESIDE = ("audio_hidden_states", "sound_tokens", "action_tokens")
"""Names of further latents, which the field has beside the first one."""
TIMESTEP_NAMES = ("timestep", "timesteps", "t", "time", "time_step")
"""Names of the argument that is another one at every step."""
TIMESTEP_ENDINGS = re.compile(r"(^|_)(timesteps?|sigmas?)$")
"""What its name ends in where it has none of these."""


def find_conditioning(gm: fx.GraphModule) -> list[fx.Node]:
    """Nodes that may leave the step, in order."""
    nodes = [n for n in gm.graph.nodes if is_computing(n)]
    latents = find_latents(gm)
    if not latents:
        return []
    return choose_nodes(nodes, latents, find_runs(nodes, find_blocks(nodes)))


def find_latents(gm: fx.GraphModule) -> list[fx.Node]:
    """The placeholders of what is denoised; none where no input is a floating-point tensor.

    One, or one for each tensor of a list, and the sound that is denoised beside a video.
    """
    inputs = [n for n in gm.graph.find_nodes(op="placeholder") if tensor_value(n) is not None]
    names = [str(node.target) for node in inputs]
    floats = [node.meta["val"].is_floating_point() for node in inputs]
    return [inputs[place] for place in choose_latents(names, floats)]


def choose_latents(names: Sequence[str], floats: Sequence[bool]) -> list[int]:
    """Which tensors of a call are denoised, by their names and whether they have fractions."""
    for latent in LATENT_NAMES:
        found = [i for i, name in enumerate(names) if is_of_argument(name, latent)]
        if found:
            beside = (
                i
                for i, each in enumerate(names)
                if any(is_of_argument(each, name) for name in LATENTS_BESIDE)
            )
            return [*found, *beside]
    return list(islice(compress(count(), floats), 1))


def find_timestep(names: Collection[str]) -> str | None:
    """The argument that is another one at every step; None where no name says so."""
    known = (name for name in TIMESTEP_NAMES if name in names)
    return next(chain(known, filter(TIMESTEP_ENDINGS.search, names)), None)


def is_of_argument(placeholder: str, name: str) -> bool:
    """Whether an input is an argument, or a tensor of the list that is given for it."""
    return placeholder == name or bool(re.fullmatch(rf"{re.escape(name)}_\d+", placeholder))


def choose_nodes(
    nodes: Sequence[fx.Node], latents: Sequence[fx.Node], runs: list[tuple[str, list[fx.Node]]]
) -> list[fx.Node]:
    """Nodes that may leave the step: latent-independent in every sibling of their block.

    What unpacks weights for the step does not read the latent, and stays.
    """
    pinned = {n for n in nodes if not is_pure(n)}
    unpacking = find_unpacking(nodes)
    while True:
        free = independent_nodes(nodes, {*latents} | pinned)
        left, shared = find_left(free, unpacking)
        irregular = counterparts_of_dependent(free, runs) | shared
        if not irregular:
            break
        pinned |= irregular
    return [n for n in nodes if n in free and n not in left and n.users]


def independent_nodes(nodes: Iterable[fx.Node], dependent: set[fx.Node]) -> set[fx.Node]:
    """Nodes that neither are in ``dependent`` nor descend from it."""
    bound = set(dependent)
    for node in nodes:
        if node in bound or any(source in bound for source in node.all_input_nodes):
            bound.add(node)
    return {n for n in nodes if n not in bound}


def counterparts_of_dependent(
    free: Collection[fx.Node], runs: Iterable[tuple[str, list[fx.Node]]]
) -> set[fx.Node]:
    """Free nodes that stand where an equal block has a node that is not free."""
    return {
        node
        for group in find_siblings(runs)
        for counterparts in zip(*group, strict=True)
        if not all(n in free for n in counterparts)
        for node in counterparts
        if node in free
    }
