"""Split off what does not depend on the latent, so that it runs only when its inputs change.

Legal because the nodes are pure and read neither the latent nor anything computed from it:

    %silu : f32[2, 60] = silu(%timestep_embedding)
    %shift, %scale, ... : f32[2, 60] = chunk(linear(%silu), 6, 1)
    %x : f32[2, 36, 60] = add(mul(layer_norm(%latent), %scale), %shift)
 -> %conditioning_2 = call_module[conditioning_2](%timestep, ..., parameters)
    %shift, %scale, ... : f32[2, 60] = getitem(%conditioning_2, 0), ...
    %x : f32[2, 36, 60] = add(mul(layer_norm(%latent), %scale), %shift)

Nodes that read the same set of the denoiser's inputs form one stage: constants, what reads
the labels, what reads the text; all that reads the timestep, alone or with others, forms the
last, since it changes at every step. A stage runs again only if one of its own inputs
changed, so that text projections run once per trajectory.

Values that blocks compute alike, such as the sinusoids of a timestep, are merged on the way.

What unpacks a quantised weight for a stage is in that stage, and what does so for the step
stays in the step: it reads no input, but to keep it would keep the weight unpacked.

Leaves alone: a node inside a repeated block whose counterpart in an equal block depends on
the latent. In joint attention the text stream of the first block does not depend on the
latent and that of every later block does; hoisting the first would make it a block of its
own kind, compiled apart, for work that each step needs anyway. Random operators, and what
reads them, stay as well.

Source: partial evaluation (Jones, Gomard, Sestoft 1993); DQAR report, future work.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from .merge_duplicates import merge_duplicates
from .support.conditioning_nodes import TIMESTEP_NAMES, find_conditioning, find_timestep
from .support.editing import move_to_submodule
from .support.graphs import parameter_path, used_by_others
from .support.unpacking import find_unpacking, unpack_where_read

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import fx

EVERY_STEP = frozenset({"timestep"})
"""What stands for what the stage of every step reads."""


def hoist_conditioning(gm: fx.GraphModule, *, merges: bool = True) -> int:
    """Move latent-independent nodes into stages; the number of nodes moved.

    Args:
        gm: The graph.
        merges: Whether to merge what blocks compute alike, with `merge_duplicates`.
    """
    hoisted = find_conditioning(gm)
    if not hoisted:
        return 0
    if merges:  # only now: where blocks share a value, the first differs from its siblings
        merge_duplicates(gm, among=frozenset(hoisted))
    left = frozenset(gm.graph.nodes)
    moved, given = frozenset(hoisted), ("placeholder", "get_attr")
    first = next(n for n in gm.graph.nodes if n.op not in given and n not in moved)
    for number, stage in enumerate(group_by_inputs([n for n in hoisted if n in left])):
        inside = frozenset(stage)
        outputs = [n for n in stage if used_by_others(n, inside)]
        call = move_to_submodule(gm, stage, outputs, f"conditioning_{number}", before=first)
        call.meta["stage"] = number
    return len(hoisted)


def group_by_inputs(hoisted: Sequence[fx.Node]) -> list[list[fx.Node]]:
    """Stages of nodes that depend on the same graph inputs, in an order that can run."""
    reads: dict[fx.Node, frozenset[str]] = {}
    inputs = [str(n.target) for n in hoisted[0].graph.find_nodes(op="placeholder")]
    timesteps = {*TIMESTEP_NAMES, find_timestep(inputs)}
    for node in hoisted:
        reads[node] = frozenset().union(*(inputs_of(n, reads) for n in node.all_input_nodes))
    stages: dict[frozenset[str], list[fx.Node]] = defaultdict(list)
    keys = {node: EVERY_STEP if timesteps & read else read for node, read in reads.items()}
    unpacking = frozenset(find_unpacking(hoisted))
    for node, key in unpack_where_read(hoisted, unpacking, keys.__getitem__).items():
        stages[key].append(node)
    last = stages.pop(EVERY_STEP, None)
    ordered = [stages[key] for key in sorted(stages, key=lambda key: (len(key), sorted(key)))]
    return ordered if last is None else [*ordered, last]


def inputs_of(node: fx.Node, known: dict[fx.Node, frozenset[str]]) -> frozenset[str]:
    """Names of the graph inputs that a source node carries."""
    if node in known:
        return known[node]
    return frozenset() if parameter_path(node) else frozenset({str(node.target)})
