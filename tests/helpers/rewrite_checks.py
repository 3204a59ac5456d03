"""What must hold of every rewrite, a stable printout of a graph, and networks to rewrite."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from functools import cache, partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from dqar_fx.capture.capture import capture
from dqar_fx.passes import FORMATS, find_attention, insert_guards, normalise
from dqar_fx.passes.support.graphs import is_call_output
from dqar_fx.passes.support.runner import fork, run_pass
from tests.helpers.models import make_dit, seeded

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import fx

    Pass = Callable[[fx.GraphModule], int]

aten = torch.ops.aten
WIDTH, HEADS, TOKENS = 8, 2, 3
LOSSY = tuple(name for name in FORMATS if name != "same")


# ---- graphs ------------------------------------------------------------------------------


def captured(model: nn.Module, *inputs: torch.Tensor) -> fx.GraphModule:
    """The graph of one call, without what does nothing; a test may edit it."""
    gm = fork(capture(model.eval(), inputs, {}).gm)
    run_pass(gm, normalise)
    return gm


@cache
def captured_dit() -> tuple[fx.GraphModule, tuple[torch.Tensor, ...]]:
    """Diffusers' DiT with two layers, and its flat inputs; not to be edited."""
    case = make_dit(layers=2)
    named = case.inputs(0)
    return captured_by_name(case.model, **named), tuple(named.values())


def captured_by_name(model: nn.Module, **inputs: torch.Tensor) -> fx.GraphModule:
    """As `captured`, of a call with keywords."""
    gm = fork(capture(model.eval(), (), inputs).gm)
    run_pass(gm, normalise)
    return gm


def rewritten(gm: fx.GraphModule, *passes: Pass) -> fx.GraphModule:
    """A fork of a graph after passes."""
    out = fork(gm)
    for each in passes:
        run_pass(out, each)
    return out


def guard_all(gm: fx.GraphModule, cache: str = "same") -> int:
    """Guard every site of a graph."""
    return insert_guards(gm, find_attention(gm)[0], FORMATS[cache])


def guarded(gm: fx.GraphModule, cache: str = "same") -> fx.GraphModule:
    """A fork of a graph with every site guarded."""
    return rewritten(gm, partial_named(guard_all, cache=cache))


def partial_named(function: Callable[..., int], **options: object) -> Pass:
    """A pass with its options bound."""
    return partial(function, **options)


def allocated_slots(gm: fx.GraphModule) -> list[torch.Tensor]:
    """A buffer for each slot of a guarded graph; flags are down, no site gives the rest."""
    slots = (n.meta["val"] for n in gm.graph.find_nodes(op="placeholder") if "slot" in n.meta)
    return [
        torch.empty_strided(slot.shape, slot.stride(), dtype=slot.dtype).fill_(
            False if slot.dtype == torch.bool else 99
        )
        for slot in slots
    ]


def operators(gm: fx.GraphModule) -> Counter[str]:
    """How often each operator occurs; calls of submodules count as ``call_module``."""
    return Counter(
        "call_module" if node.op == "call_module" else str(node.target)
        for node in gm.graph.nodes
        if node.op in ("call_function", "call_module")
    )


def printed(gm: fx.GraphModule) -> str:
    """``print_readable`` without what differs though the graph does not.

    Comments hold paths, the frees ``;  x = None`` move with their neighbours, and the class
    header tells where the graph has been.
    """
    lines = []
    for line in gm.print_readable(print_output=False).splitlines():
        code = re.sub(r";  (\w+ = )+None$", "", line).replace("torch.ops.aten.", "aten.")
        if not code.strip() or code.strip().startswith(("#", "class GraphModule")):
            continue
        margin = " " * (len(code) - len(code.lstrip()) + 4)
        lines += textwrap.wrap(
            code,
            width=90,
            subsequent_indent=margin,
            break_long_words=False,
            break_on_hyphens=False,
        )
    return textwrap.dedent("\n".join(lines))


# ---- checks ------------------------------------------------------------------------------


def check_rewrite(
    gm: fx.GraphModule,
    each: Pass,
    inputs: Sequence[object],
    *,
    rewrites: int,
    ops: dict[str, int] | None = None,
    more_inputs: Sequence[object] = (),
    relative: float = 0.0,
) -> fx.GraphModule:
    """Run a pass on a fork and check all that it owes.

    Args:
        gm: The graph; it stays as it is.
        each: The pass.
        inputs: Flat inputs of the graph.
        rewrites: The number that the pass must return.
        ops: Operators gained and lost, if they are to be checked.
        more_inputs: What the rewritten graph takes beyond ``inputs``.
        relative: Tolerance, relative to the largest value; 0 asks for equal bits.

    Returns:
        The rewritten fork.
    """
    before, out = printed(gm), fork(gm)
    report = run_pass(out, each)
    assert report.rewrites == rewrites, str(report)
    assert printed(gm) == before, "the pass reached into the original"
    assert (printed(out) != before) == (rewrites > 0), "an edit that is not counted"
    if ops is not None:
        change = operators(out)
        change.subtract(operators(gm))
        found = {name: n for name, n in change.items() if n}
        assert found == ops, found
    check_values(out(*inputs, *more_inputs), gm(*inputs), relative)
    return out


def check_twice(gm: fx.GraphModule, each: Pass) -> None:
    """A second run finds nothing to do, and does nothing."""
    out = rewritten(gm, each)
    once = printed(out)
    report = run_pass(out, each)
    assert report.rewrites == 0, str(report)
    assert printed(out) == once, "an edit that is not counted"


def check_values(
    found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], relative: float = 0.0
) -> None:
    """Equal shapes, dtypes and, up to a tolerance, values."""
    for a, b in zip(found, expected, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), (a.shape, a.dtype)
        if relative:
            assert (a - b).abs().max() <= relative * b.abs().max(), (a - b).abs().max()
        else:
            assert torch.equal(a, b), (a - b).abs().max()


def check_metadata(
    gm: fx.GraphModule, inputs: Sequence[object], *, is_settled: bool = False
) -> None:
    """Each fake tensor has the shape, strides and dtype of the tensor it stands for.

    ``is_settled`` where what stages give is made contiguous, as a compiled denoiser does.
    """

    class Checking(torch.fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            value = super().run_node(n)
            if is_settled and is_call_output(n) and isinstance(value, torch.Tensor):
                value = value.contiguous()
            fake = n.meta.get("val")
            if isinstance(value, torch.Tensor) and isinstance(fake, torch.Tensor):
                found = (value.shape, value.stride(), value.dtype)
                assert (fake.shape, fake.stride(), fake.dtype) == found, n
            return value

    Checking(gm).run(*inputs)


# ---- networks ----------------------------------------------------------------------------


def tokens(*shape: int) -> torch.Tensor:
    """A stream of tokens; the same numbers in every run."""
    return seeded(*(shape or (2, TOKENS, WIDTH)))


def split_heads(x: torch.Tensor) -> torch.Tensor:
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def merge_heads(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(1, 2).flatten(2)


def fused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def unfused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return scores.softmax(-1) @ v


class Attention(nn.Module):
    """Self attention, or cross attention to a second stream."""

    def __init__(self, attend: Callable[..., torch.Tensor] = fused) -> None:
        super().__init__()
        self.attend = attend
        self.to_q, self.to_k, self.to_v, self.to_out = projections()

    def forward(self, x: torch.Tensor, source: torch.Tensor | None = None) -> torch.Tensor:
        source = x if source is None else source
        q, k, v = self.to_q(x), self.to_k(source), self.to_v(source)
        return self.to_out(merge_heads(self.attend(*map(split_heads, (q, k, v)))))


class JointAttention(nn.Module):
    """Two streams attend to both of them; two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v, self.to_out = projections()
        self.add_q, self.add_k, self.add_v, self.add_out = projections()

    def forward(self, x: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, ...]:
        streams = zip(self.project_image(x), self.project_text(text), strict=True)
        q, k, v = (split_heads(torch.cat(pair, 1)) for pair in streams)
        y = merge_heads(fused(q, k, v))
        return self.to_out(y[:, : x.shape[1]]), self.add_out(y[:, x.shape[1] :])

    def project_image(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.to_q(x), self.to_k(x), self.to_v(x)

    def project_text(self, text: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.add_q(text), self.add_k(text), self.add_v(text)


def projections() -> tuple[nn.Linear, ...]:
    return tuple(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))


class Bare(nn.Module):
    """Self attention without parameters: the smallest site."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return fused(x, x.neg(), x)


class Around(nn.Module):
    """A residual around a module called ``attn``."""

    def __init__(self, attn: nn.Module) -> None:
        super().__init__()
        self.attn = attn

    def forward(self, x: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        return x + self.attn(x.sin(), *others)


class Joined(nn.Module):
    """Joint attention whose outputs both matter."""

    def __init__(self, attention: Callable[[], nn.Module] = JointAttention) -> None:
        super().__init__()
        self.attn = attention()

    def forward(self, x: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, ...]:
        image, words = self.attn(x, text)
        return x + image, text + words


class Block(nn.Module):
    """Norm, attention, residual, and a linear."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.attn = Attention()
        self.last = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(x + self.attn(self.norm(x)))


class Stack(nn.Module):
    """Equal blocks between two layers."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.sin()
        for block in self.blocks:
            x = block(x)
        return x.cos()
