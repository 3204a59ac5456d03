"""Capture: from a model and one call of it to a graph of ATen operators.

`torch.export` in non-strict mode runs the model once with fake tensors and records every
operator, exactly and without code for any particular model. Blocks that repeat run once
(`dqar_fx.capture.repeats`). Parameters are shared with the model, which stays as it is.
"""

from __future__ import annotations

import inspect
import logging
import warnings
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from dqar_fx.errors import CaptureError, listing
from dqar_fx.passes.pipeline import AFTER_TRACING, select_passes
from dqar_fx.passes.support.collection import no_collection
from dqar_fx.passes.support.editing import make_module
from dqar_fx.passes.support.graphs import tensor_value
from dqar_fx.passes.support.inner_tensors import as_plain, rebuild
from dqar_fx.passes.support.tracing_lock import TRACING

from .adapters import keep_active_adapters
from .compiled import copy_plain
from .failures import locate_failure
from .functional import trace_again, writes
from .host_reads import HostReads, MeetsReads
from .inputs import autocast_devices, refuse_kinds
from .marked_writes import refuse_writes_past_marks
from .offloaded import is_offloaded, put_hooks_on, share_weights
from .patched import refuse_hooks
from .put_away import PutAway
from .quantised import lay_open, refuse_classes, with_class_of
from .reads import Reads
from .repeats import RepeatedBlocks, hide_frames
from .scopes import inline_scopes
from .symbolic import SymbolicInputs, name_dynamic, put_numbers, read_inputs
from .tensor_data import DataAsOperators, without_kept_results
from .whole_numbers import keep_symbols

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Sequence

    from torch.export import ExportedProgram


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Capture:
    """A model as a graph.

    Attributes:
        gm: Maps the flat leaves of a call to a flat tuple; every node carries a fake tensor,
            its module path and its source line.
        in_spec: How the flat leaves become the arguments ``(args, kwargs)`` of the call.
        out_spec: How the flat outputs become what the model returns.
        cast_on: Types of the devices for which the graph is to run without autocast, since
            the casts that were made in the call are operators of its own.
        reads: The values of the conditioning that it is specialised by; None for none.
        symbolic: What it asks of inputs of other shapes; None if it is for one shape alone.
    """

    gm: fx.GraphModule
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec
    cast_on: tuple[str, ...] = ()
    reads: Reads | None = None
    symbolic: SymbolicInputs | None = None

    @property
    def key(self) -> Hashable:
        """What is another one for each graph."""
        return self.gm


@torch.inference_mode(mode=False)
def fork_model(model: nn.Module) -> nn.Module:
    """A copy that shares every parameter's and buffer's storage, in evaluation mode.

    Tensors of the copy are ordinary ones, also where the original was made in inference mode.
    Moving or converting the copy leaves the original where it is. Parameters of the copy
    need no gradients, which some models cannot be exported with; they are of the same class.
    Nothing of it is compiled. If weights come and go by hooks, it has hooks of its own, and
    the parameters themselves.
    """
    memo: dict[int, Any] = {}
    offloaded = is_offloaded(model)
    if offloaded:
        share_weights(model, memo)
    for parameter in () if offloaded else model.parameters():
        shared = share_memory(parameter)
        if type(shared) is torch.Tensor and type(parameter) is not nn.Parameter:
            memo[id(parameter)] = with_class_of(parameter, shared)
        else:
            memo[id(parameter)] = nn.Parameter(shared, requires_grad=False)
    memo.update({id(buffer): share_memory(buffer) for buffer in model.buffers()})
    fork = copy_plain(model, memo).eval()
    if offloaded:
        put_hooks_on(fork)
    return fork


def fork_to_trace(model: nn.Module) -> nn.Module:
    """A fork of ordinary tensors with active adapters alone: its graph is for all that fit.

    Moving or converting the denoiser leaves its parameters, which are the graph's, in place.
    """
    own = fork_model(model)
    keep_active_adapters(own)
    return lay_open(own)


def share_memory(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor over the memory of another; an ordinary one, also of an inference tensor."""
    if is_traceable_wrapper_subclass(tensor):
        return rebuild(tensor, share_memory)
    if not tensor.is_inference():
        return as_plain(tensor)
    memory = tensor.untyped_storage()
    shared = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return shared.set_(memory, tensor.storage_offset(), tensor.shape, tensor.stride())


def capture(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    disable: Collection[str] = (),
    *,
    symbolic: bool = False,
    by_values: bool = True,
) -> Capture:
    """Record one call of a model as a graph.

    Args:
        model: The model.
        args: Positional arguments of the call.
        kwargs: Keyword arguments of the call.
        disable: Names of passes to leave out.
        symbolic: Whether to take sizes for symbols, where the forward allows that.
        by_values: Whether the graph may be for values that the forward reads on the host.

    Raises:
        CaptureError: The model's forward cannot be exported for these inputs.
        DqarError: A library has put hooks around modules of it.
    """
    start = perf_counter()
    refuse_hooks(model)
    refuse_classes(model)
    refuse_kinds(inspect.signature(model.forward).bind(*args, **kwargs).arguments)
    try:
        with TRACING, no_collection(), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of export's internals; failures raise
            args, kwargs = separate((args, kwargs))
            expands = bool(select_passes(AFTER_TRACING, disable))
            captured = None
            if symbolic:
                captured = try_symbolic(model, args, kwargs, expands=expands)
            if captured is None:
                way = trace_any if by_values else trace_plainly
                captured = way(model, args, kwargs, expands=expands)
            check_reads(captured, pytree.tree_leaves((args, kwargs)))
    except Exception as error:
        lines = str(error).strip().rstrip(".").splitlines() or ["nothing"]
        raise CaptureError(
            f"{type(model).__name__} cannot be captured as one graph: it fails"
            f"{locate_failure(error, type(model))}. torch.export said: "
            f"{type(error).__name__}: {lines[0]}. Expected a forward without data-dependent "
            "control flow that accepts these inputs; found inputs "
            f"{spell_inputs(model, args, kwargs)}. Try torch.export.export(model, args, "
            "kwargs, strict=False) on its own for the whole report"
        ) from error
    ms, size = 1e3 * (perf_counter() - start), len(captured.gm.graph.nodes)
    logger.info("captured %s: %d nodes, %.0f ms", type(model).__name__, size, ms)
    return captured


def try_symbolic(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, expands: bool
) -> Capture | None:
    """A graph whose sizes are symbols; None where that cannot be."""
    try:
        shapes = name_dynamic(model, args, kwargs)
        meets = MeetsReads(model, args, kwargs)
        with keep_symbols(model):
            return trace_best(model, args, kwargs, meets, shapes, expands=expands)
    except Exception as error:  # if it is the model's own, tracing these shapes says it better
        logger.info(
            "%s is captured for each shape alone: %s: %s",
            type(model).__name__,
            type(error).__name__,
            (str(error).strip().splitlines() or ["nothing"])[0],
        )
        return None


def trace_plainly(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, expands: bool
) -> Capture:
    """All of a model as a graph; what reads a value on the host fails."""
    return trace_best(model, args, kwargs, MeetsReads(model, args, kwargs), expands=expands)


def trace_any(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, expands: bool
) -> Capture:
    """All of a model as a graph; specialised by what it reads on the host, if anything."""
    meets = MeetsReads(model, args, kwargs)
    try:
        return trace_best(model, args, kwargs, meets, expands=expands)
    except Exception:
        if not meets.has_met:
            raise
    reads = HostReads(model, args, kwargs)
    try:
        return trace_best(model, args, kwargs, reads, expands=expands)
    except Exception as error:
        refused = error
    try:
        captured = trace_best(model, args, kwargs, expands=expands)
    except Exception as error:
        raise refused from error
    if has_unknown_sizes(captured.gm):
        raise refused
    return captured  # with numbers that the graph itself reads at every step


def trace_best(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    reads: HostReads | None = None,
    shapes: Any = None,
    *,
    expands: bool,
) -> Capture:
    """All of a model as a graph, with repeated blocks traced once where that can be."""
    once = trace_repeats(model, args, kwargs, reads, shapes) if expands else None
    return once or trace(model, args, kwargs, reads, shapes)


def trace_repeats(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    reads: HostReads | None = None,
    shapes: Any = None,
    *,
    puts_away: bool = True,
) -> Capture | None:
    """What `trace` gives, with repeated blocks traced once; None where that cannot be.

    ``puts_away`` is whether to trace without what blocks hold that are unlikely to run.
    """
    own = fork_to_trace(model)
    repeats = RepeatedBlocks.watch(own)
    if repeats is None:
        return None
    away = PutAway(own, repeats.find_spare() if puts_away else ())
    passes = (away.give_back, hide_frames, *AFTER_TRACING)
    try:
        return trace_own(own, args, kwargs, reads, shapes, passes)
    except Exception as error:  # if it is the model's own, tracing all blocks says it better
        if away.is_met:
            return trace_repeats(model, args, kwargs, reads, shapes, puts_away=False)
        if isinstance(reads, MeetsReads) and reads.has_met:
            raise
        logger.info("all blocks of %s are traced: %s", type(model).__name__, error)
        return None


def trace(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    reads: HostReads | None = None,
    shapes: Any = None,
) -> Capture:
    """All of a model as a graph; ``shapes`` are the sizes that are symbols."""
    return trace_own(fork_to_trace(model), args, kwargs, reads, shapes)


def trace_own(
    own: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    reads: HostReads | None,
    shapes: Any,
    passes: Sequence[Callable[[fx.GraphModule], object]] = (),
) -> Capture:
    """All of a model, which is the capture's own, as a graph after some passes."""
    if reads is not None:
        reads.watch(own)
    exported = export(own, args, kwargs, shapes)
    leaves = pytree.tree_leaves((args, kwargs))
    ambient = autocast_devices(leaves)
    is_retraced = inline_scopes(exported, ambient) or writes(exported)
    if is_retraced:  # the same in functional form, and all casts are operators
        refuse_writes_past_marks(exported.graph)
        exported = trace_again(exported)
    written = exported.graph_signature.buffers_to_mutate
    if written:  # a step would depend on the last
        raise ValueError(f"its forward writes to its buffers {sorted(written.values())}")
    gm, symbolic = flatten_export(exported), None
    if shapes is not None:
        symbolic = read_inputs(exported, leaves)
        put_numbers(gm)
    for each in passes:
        each(gm)
    return finish(gm, exported, reads, ambient if is_retraced else (), symbolic)


def finish(
    gm: fx.GraphModule,
    exported: ExportedProgram,
    reads: HostReads | None,
    cast_on: tuple[str, ...],
    symbolic: SymbolicInputs | None,
) -> Capture:
    """A captured graph, of which what was read on the host is taken out."""
    spec = exported.call_spec
    captured = Capture(gm, spec.in_spec, spec.out_spec, cast_on, symbolic=symbolic)
    if reads is None:
        return captured
    split = Reads.split_off(gm, reads.reads, cast_on) if reads.reads else None
    return replace(captured, out_spec=spec.out_spec.children()[0], reads=split)


def check_reads(captured: Capture, leaves: Sequence[Any]) -> None:
    """Raise if the call that was captured does not read what it was captured for."""
    if captured.reads is not None and not captured.reads.hold(leaves):
        raise ValueError(
            "what its forward reads on the host is another value when it is computed again:"
            f"{listing(captured.reads.reads)}\n"
        )


def has_unknown_sizes(gm: fx.GraphModule) -> bool:
    """Whether a graph has tensors whose sizes it reads from others."""
    values = (tensor_value(node) for node in gm.graph.nodes)
    return any(free_unbacked_symbols(value) for value in values if value is not None)


def export(
    own: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any
) -> ExportedProgram:
    """A model's forward as a program, with some sizes as symbols.

    Raises:
        ValueError: It registers buffers, which export mixes up with its inputs.
    """
    buffers = dict(own.named_buffers())
    with DataAsOperators(), without_kept_results(own):
        exported = torch.export.export(own, args, kwargs, strict=False, dynamic_shapes=shapes)
    added = dict(own.named_buffers()).keys() - buffers
    if added:
        raise ValueError(f"its forward registers buffers {sorted(added)}: do it before")
    return exported


def flatten_export(exported: ExportedProgram) -> fx.GraphModule:
    """A program as a module that takes flat inputs, with no checks of them."""
    module = exported.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    module.graph.set_codegen(fx.graph.CodeGen())  # flat inputs, flat outputs
    return make_module(module, module.graph)  # without the input checks in hooks


def separate(inputs: Any) -> Any:
    """Inputs of which no two are one tensor object: export would make them one input."""
    seen: set[int] = set()

    def own(leaf: Any) -> Any:
        is_again = isinstance(leaf, torch.Tensor) and id(leaf) in seen
        seen.add(id(leaf))
        return leaf.clone() if is_again else leaf

    return pytree.tree_map(own, inputs)


def spell_inputs(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Shapes and dtypes of a call's inputs, by name."""

    def describe(value: object) -> str:
        if isinstance(value, torch.Tensor):
            return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
        return repr(value)

    named = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    return ", ".join(f"{name}={describe(value)}" for name, value in named.items())
