"""Capture block by block: one graph of a model's blocks, with nothing between them.

Where a whole model cannot be captured, its blocks mostly can. A block is an entry of a
module list that holds an attention. What is captured is a forward that calls the blocks one
after the other, each with inputs of its own, under the paths that they have in the model:

    %tensors_0, %tensors_1 : f32[2, 36, 60], i64[2]
    24 nodes of transformer_blocks.0, which read %tensors_0, %tensors_1
    24 nodes of transformer_blocks.1, which read %tensors_2, %tensors_3
    return %output_of_0, %output_of_1

A block's part of this graph is a segment. All passes know such a graph, and equal blocks
are traced once as in any capture. Of a block that cannot be captured those modules are taken
that hold an attention and can be; what is left runs as itself.
"""

from __future__ import annotations

import inspect
from collections import Counter, defaultdict
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch._guards import detect_fake_mode
from torch.utils import _pytree as pytree

from dqar_fx.errors import CaptureError, listing
from dqar_fx.passes.support.conditioning_nodes import LATENT_NAMES
from dqar_fx.passes.support.graphs import written_inputs

from .block_calls import ModuleCall, record_calls
from .capture import Capture, capture, fork_model
from .equal_modules import describe_module
from .inputs import autocast_devices
from .offloaded import is_offloaded, without_weights
from .patterns import Group, Pattern, contiguous, fill, pattern_of, tensors_of, unknown_in
from .scopes import without_autocast

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from torch import fx

    from dqar_fx.passes import TensorSpec

HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
)
"""Where a module has the hooks of its calls."""


@dataclass(frozen=True)
class Segment:
    """A block's call, and its part of the graph.

    Attributes:
        path: The block's path.
        turn: How often the block was called before, in the same forward.
        given: What it is called with: ``(args, kwargs)``.
        casts: Devices for which autocast is on, and what it casts to.
        gives: What it returns.
    """

    path: str
    turn: int
    given: Pattern
    casts: tuple[tuple[str, torch.dtype], ...]
    gives: Pattern

    @property
    def key(self) -> tuple[str, int]:
        """What tells it from the others of a forward."""
        return self.path, self.turn


@dataclass(frozen=True)
class SegmentCapture:
    """The blocks of a model as one graph.

    Attributes:
        capture: The graph. It takes the tensors of all blocks' inputs, and returns those of
            their outputs; its specs are those of the whole model's call.
        segments: The blocks' calls, in order.
        result: What the model returned.
        left: Reason by path, for blocks that run as themselves.
        settles: Whether what blocks are given is laid out as in the graph, at every call.
    """

    capture: Capture
    segments: tuple[Segment, ...]
    result: Pattern
    left: dict[str, str]
    settles: bool


class Outputs(list[Any]):
    """What blocks returned while they were traced; copies of a forward have one of them."""

    def __deepcopy__(self, _memo: dict[int, Any]) -> Outputs:
        """Give itself."""
        return self


@dataclass(eq=False)
class BlocksForward:
    """A forward in the place of a model's own: its blocks, one after the other.

    Attributes:
        model: The model.
        calls: The blocks' calls.
        outputs: What they returned when the forward ran last.
    """

    model: nn.Module
    calls: Sequence[ModuleCall]
    outputs: Outputs = field(default_factory=Outputs)

    def forward(self, *tensors: torch.Tensor) -> list[torch.Tensor]:
        """Call each block; all tensors that they return."""
        given, results = iter(tensors), list[torch.Tensor]()
        self.outputs.clear()
        for call in self.calls:
            args, kwargs = fill(call.given, given)
            with ExitStack() as stack:
                for device, dtype in call.casts:
                    stack.enter_context(torch.autocast(device, dtype=dtype))
                result = self.model.get_submodule(call.path)(*args, **kwargs)
            pattern = pattern_of(result)
            unknown = unknown_in(pattern)
            if unknown:
                raise TypeError(f"{call.path} returns {unknown}, which no graph can")
            self.outputs.append(pattern)
            results += collect_tensors(result)
        return results


def collect_tensors(value: Any) -> list[torch.Tensor]:
    """The tensors of a value, in the order of its pattern."""
    leaves = pytree.tree_leaves(value)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def capture_segments(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    disable: Collection[str] = (),
    *,
    settles: bool = False,
) -> SegmentCapture:
    """Record the blocks of a model as a graph; the model itself runs once.

    Args:
        model: The model, which is not changed.
        args: Positional arguments of a call of it.
        kwargs: Keyword arguments of the call.
        disable: Names of passes to leave out.
        settles: Whether what blocks are given is to be laid out as it is now, or alike for
            equal blocks, at every call: what is compiled is compiled for strides.

    Raises:
        CaptureError: The model's forward fails, or no block can be captured.
    """
    name = type(model).__name__
    try:
        recording = record_calls(model, args, kwargs)
    except Exception as error:
        raise CaptureError(
            f"{name}: its blocks cannot be captured one by one, since its own forward fails "
            f"for these inputs: {say(error)}. Expected a forward that runs as it is; a model "
            "on the meta device has no values to read"
        ) from error
    left: dict[str, str] = {}
    if is_offloaded(model):  # nothing is brought in to trace
        model = without_weights(fork_model(model))
    while True:
        calls = find_block_calls(model, recording.root, left)
        if settles:
            calls = settle(model, calls)
        if not calls:
            raise CaptureError(
                f"{name}: it has no block that can be captured by itself. Expected entries "
                "of a ModuleList that hold an attention, called with tensors, numbers and "
                f"texts; blocks that cannot be:{listing([*map(': '.join, left.items())])}"
            )
        try:
            captured, outputs = trace_calls(model, calls, disable)
            refused = find_writers(captured, calls)
        except CaptureError as error:
            refused = find_refused(model, calls, disable)
            if not refused:
                raise CaptureError(
                    f"{name}: its blocks can be captured each alone but not together: "
                    f"{say(error.__cause__ or error)}. Try capture='graph'"
                ) from error
        if refused:
            left |= refused
            continue
        name_latents(captured.gm, find_latents(model, calls))
        in_spec = pytree.tree_structure((args, kwargs))
        return SegmentCapture(
            Capture(captured.gm, in_spec, recording.out_spec),
            number_segments(calls, outputs),
            recording.result,
            left,
            settles,
        )


def find_block_calls(
    model: nn.Module, root: ModuleCall, left: dict[str, str]
) -> list[ModuleCall]:
    """The calls to capture, in order; blocks that take something unknown join ``left``."""
    entries = {
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        for name, _ in module.named_children()
    }

    def walk(call: ModuleCall, *, is_inside: bool) -> Iterator[ModuleCall]:
        for each in call.inside:
            if not each.has_attention:
                continue
            is_block = is_inside or each.path in entries
            unknown = unknown_in(each.given) if is_block else ""
            if unknown and each.path not in left:
                left[each.path] = f"it is called with {unknown}, which no graph can take"
            if is_block and each.path not in left:
                yield each
            else:
                yield from walk(each, is_inside=is_block)

    return list(walk(root, is_inside=False))


def settle(model: nn.Module, calls: Sequence[ModuleCall]) -> list[ModuleCall]:
    """The same calls, with contiguous inputs where equal blocks are given other strides.

    What a compiled block is given is always laid out as it is here.
    """
    alike = defaultdict[Any, set[Pattern]](set)
    given = [contiguous(call.given, overlapping=True) for call in calls]
    kinds = [
        (describe_module(model.get_submodule(call.path)), contiguous(call.given))
        for call in calls
    ]
    for kind, pattern in zip(kinds, given, strict=True):
        alike[kind].add(pattern)
    return [
        ModuleCall(call.path, pattern if len(alike[kind]) == 1 else kind[1], call.casts)
        for kind, pattern, call in zip(kinds, given, calls, strict=True)
    ]


def trace_calls(
    model: nn.Module, calls: Sequence[ModuleCall], disable: Collection[str]
) -> tuple[Capture, list[Pattern]]:
    """Calls of blocks as one graph, and what they return."""
    own = fork_model(model)
    for path in {call.path for call in calls}:
        block = own.get_submodule(path)
        for name in HOOKS:  # they run where the block is called
            getattr(block, name).clear()
    blocks = BlocksForward(own, calls)
    own.forward = blocks.forward
    memory: dict[tuple[TensorSpec, int], torch.Tensor] = {}
    with detect_fake_mode([*own.parameters()]) or nullcontext():
        tensors = tuple(
            make_example(spec, memory, place)
            for call in calls
            for place, spec in enumerate(tensors_of(call.given))
        )
        with without_autocast(autocast_devices(tensors)):
            captured = capture(own, tensors, {}, disable, by_values=False)
    return captured, list(blocks.outputs)


def make_example(
    spec: TensorSpec, memory: dict[tuple[TensorSpec, int], torch.Tensor], place: int
) -> torch.Tensor:
    """A tensor to trace with; equal ones of several calls show one memory."""
    if (spec, place) not in memory:
        memory[spec, place] = torch.empty_strided(
            spec.shape, spec.stride, dtype=spec.dtype, device=spec.device
        )
    return memory[spec, place].detach()


def find_refused(
    model: nn.Module, calls: Sequence[ModuleCall], disable: Collection[str]
) -> dict[str, str]:
    """Reason by path, for blocks that cannot be captured alone: one of each kind is tried."""
    known: dict[Any, str] = {}
    refused: dict[str, str] = {}
    for call in calls:
        kind = describe_module(model.get_submodule(call.path)), call.given, call.casts
        if kind not in known:
            try:
                captured, _ = trace_calls(model, [call], disable)
                known[kind] = "".join(find_writers(captured, [call]).values())
            except CaptureError as error:
                known[kind] = say(error.__cause__ or error)
        if known[kind]:
            refused[call.path] = known[kind]
    return refused


def find_writers(captured: Capture, calls: Sequence[ModuleCall]) -> dict[str, str]:
    """Reason by path, for blocks that write to what they are given."""
    owners = [call for call in calls for _ in tensors_of(call.given)]
    inputs = captured.gm.graph.find_nodes(op="placeholder")
    owner_of = dict(zip(inputs, owners, strict=True))
    written = {n for node in captured.gm.graph.nodes for n in written_inputs(node)}
    return {
        owner_of[node].path: "it writes to what it is given"
        for node in written
        if node in owner_of
    }


def number_segments(
    calls: Sequence[ModuleCall], outputs: Sequence[Pattern]
) -> tuple[Segment, ...]:
    """The segments of blocks' calls, each with how often its block was called before."""
    turns, segments = Counter[str](), list[Segment]()
    for call, gives in zip(calls, outputs, strict=True):
        turn = turns[call.path]
        segments.append(Segment(call.path, turn, call.given, call.casts, gives))
        turns[call.path] += 1
    return tuple(segments)


def find_latents(model: nn.Module, calls: Sequence[ModuleCall]) -> tuple[int, ...]:
    """Which of all tensors that blocks are given are what they denoise."""
    found, first = list[int](), 0
    for call in calls:
        forward = inspect.signature(model.get_submodule(call.path).forward)
        names = name_tensors(call.given, list(forward.parameters))
        known = (name for name in LATENT_NAMES if name in names)
        name = next(known, None)
        if name is None:
            floats = [spec.dtype.is_floating_point for spec in tensors_of(call.given)]
            own = [floats.index(True)] if any(floats) else []
        else:
            own = [place for place, each in enumerate(names) if each == name]
        found += [first + place for place in own]
        first += len(names)
    return tuple(found)


def name_latents(gm: fx.GraphModule, latents: Collection[int]) -> None:
    """Give some inputs of a graph the name by which passes know what is denoised."""
    inputs = gm.graph.find_nodes(op="placeholder")
    for place in latents:
        inputs[place].target = f"{LATENT_NAMES[0]}_{place}"
        inputs[place]._rename(inputs[place].target)


def name_tensors(given: Pattern, parameters: Sequence[str]) -> list[str]:
    """Per tensor of ``(args, kwargs)``, the parameter of the forward that it comes in."""
    assert isinstance(given, Group), "it is a tuple of both"
    args, kwargs = given.parts
    assert isinstance(args, Group)
    assert isinstance(kwargs, Group)
    named = [*zip(parameters, args.parts, strict=False)]
    named += zip(kwargs.keys or (), kwargs.parts, strict=True)
    return [name for name, part in named for _ in tensors_of(part)]


def say(error: BaseException) -> str:
    """The class and the first line of an error."""
    lines = str(error).strip().splitlines() or ["nothing"]
    return f"{type(error).__name__}: {lines[0]}"
