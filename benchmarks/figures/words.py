"""What the architecture figure calls variants, boxes and slots."""

from benchmarks.figures.block import BLOCK, INPUT, OUTPUT, SLOT, Box, Variant
from dqar_fx import Action

VIEWS = {"view", "transpose", "reshape", "permute", "unsqueeze", "slice", "select"}
"""Operators that only look at a tensor in another shape."""
PARTS = {
    INPUT: "tokens from the block before",
    OUTPUT: "tokens to the next block",
    "to_q": "query",
    "to_k": "key",
    "to_v": "value",
    "attn": "attention",
    "to_out": "output projection",
    "norm": "normalisation",
    "ff": "feed-forward",
}
"""Usual names of modules; others are called what they are."""
VERBS = {"mul": "scale", "add": "add", "add_": "add"}
"""Of the operators that a block calls itself."""


def name_box(name: str, box: Box) -> str:
    """A box's title, from the path of its module in the block."""
    if name == BLOCK:
        verbs = dict.fromkeys(VERBS.get(operator, operator) for operator in box.operators)
        return ", ".join(verbs)
    part = name.rpartition(".")[2]
    return PARTS.get(part) or PARTS.get(part.rstrip("0123456789"), part)


def describe_box(name: str, box: Box) -> list[str]:
    """Module and operators, views apart, and multiply-accumulates: one or two lines."""
    calls = [operator for operator in box.operators if operator not in VIEWS]
    num_views = len(box.operators) - len(calls)
    more = [f"{num_views} views"] if num_views else []
    more += [f"{show_macs(box.macs)} MACs"] if box.macs else []
    first = f"{name.rpartition('.')[2]}: {', '.join(calls)}"
    return [first, ", ".join(more)] if more else [first]


def describe_slot(variant: Variant) -> str:
    """A slot, and the operators that write or read it in its format."""
    if variant.action == Action.COMPUTE:
        return "slot\nnot touched"
    operators = [
        o for (name, _), b in variant.boxes.items() if name == SLOT for o in b.operators
    ]
    if len(operators) > 2:
        return f"slot\n{len(operators)} operators"
    own = "kept for later" if variant.action == Action.STORE else "of an earlier step"
    return "\n".join(("slot", *(operators or [own])))


def describe_variant(variant: Variant, computed: Variant) -> str:
    """What the block does, and how much that is, in two lines."""
    size = f"{variant.num_operators} operators, {show_macs(variant.macs)} MACs"
    extra = variant.num_operators - computed.num_operators
    saved = variant.macs / computed.macs - 1
    return {
        Action.COMPUTE: f"computes all, as the original model\n{size}",
        Action.STORE: f"computes all, and keeps the output\n{size} (+{extra} to keep)",
        Action.REUSE: f"reads what was kept\n{size} ({saved:+.0%})",
    }[variant.action]


def show_macs(macs: int) -> str:
    """A number of multiply-accumulates."""
    return f"{macs / 1e9:.1f} G" if macs >= 1e9 else f"{macs / 1e6:.1f} M"
