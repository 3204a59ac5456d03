"""What is captured of a denoiser: all of it as one graph, or its blocks one by one.

A tier is what one way of capturing gives. The best that fits is taken, and said aloud: where
the whole cannot be captured, the model's own forward runs around its captured blocks.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from dqar_fx.capture.adapters import (
    find_layers,
    find_scaled_argument,
    has_other_adapters,
)
from dqar_fx.capture.capture import capture
from dqar_fx.capture.offloaded import describe_offload
from dqar_fx.capture.patched import refuse_patches
from dqar_fx.capture.segments import capture_segments
from dqar_fx.errors import CaptureError, DqarError, OptionError, SiteError
from dqar_fx.notices import Once
from dqar_fx.passes.find_residuals import SPAN
from dqar_fx.passes.support.blocks import find_blocks
from dqar_fx.passes.support.module_slices import SLICE
from dqar_fx.program.block_program import BlockProgram
from dqar_fx.program.host import Host
from dqar_fx.program.program import Program

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dqar_fx.capture.capture import Capture
    from dqar_fx.capture.segments import SegmentCapture
    from dqar_fx.program.compile_options import CompileOptions

WANTED = ("auto", "graph", "blocks")
"""What ``capture`` of `dqar_fx.transform` may be."""


@dataclass(frozen=True)
class Captured:
    """What was captured of a denoiser.

    Attributes:
        capture: The graph: of the whole, or of its blocks.
        blocks: Which blocks they are; None for the whole.
        why: Why it is not the tier above; empty where that was not tried.
        offload: Who brings weights in, in words; empty where they stay.
    """

    capture: Capture
    blocks: SegmentCapture | None = None
    why: str = ""
    offload: str = ""

    @property
    def tier(self) -> str:
        """An entry of `TIERS`."""
        if self.blocks is not None:
            return "blocks"
        return "graph" if self.capture.reads is None else "graph by values"

    @property
    def reads(self) -> tuple[str, ...]:
        """What the forward reads on the host, for which the graph is captured."""
        reads = self.capture.reads
        return () if reads is None else tuple(map(str, reads.reads))

    @property
    def left(self) -> dict[str, str]:
        """Reason by path, for blocks that run as themselves."""
        return {} if self.blocks is None else self.blocks.left

    def find_blocks(self) -> tuple[str, ...]:
        """Paths of what is cut into regions."""
        found = find_blocks(self.capture.gm.graph.nodes)
        segments = () if self.blocks is None else self.blocks.segments
        return tuple(dict.fromkeys((*found, *(segment.path for segment in segments))))

    def make_program(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], **program: Any
    ) -> Program:
        """The program over the graph."""
        if self.blocks is None:
            return Program(**program)
        paths = [segment.path for segment in self.blocks.segments]
        return BlockProgram(
            host=Host(model, paths),
            blocks=self.blocks,
            inputs=make_inputs(model, args, kwargs),
            **program,
        )


def capture_best(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    options: CompileOptions,
    wanted: str,
    once: Once,
    *,
    symbolic: bool,
) -> Captured:
    """Capture a denoiser in the best tier that fits, or in the one that is asked for.

    Args:
        model: The denoiser.
        args: Positional arguments of one call.
        kwargs: Keyword arguments of the call.
        options: How to lower.
        wanted: An entry of `WANTED`.
        once: Warns where the best tier does not fit.
        symbolic: Whether the graph is to be for all shapes that it can be for.

    Raises:
        CaptureError: It cannot be captured in any of them.
        DqarError: A library has put something around it that is in no capture, or its
            weights come and go and something needs them to stay.
    """
    refuse_patches(model, moving=wanted != "graph")
    offload = describe_offload(model)
    if offload:
        refuse_with_offload(model, options, offload)
    else:
        refuse_no_values(model, pytree.tree_leaves((args, kwargs)))
    why = offload if wanted == "auto" else ""
    if wanted != "blocks" and not offload:
        try:
            return Captured(capture(model, args, kwargs, options.disable, symbolic=symbolic))
        except CaptureError as error:
            if wanted == "graph":
                raise
            failed, why = error, str(error)
    refuse_scales_of_its_own(model, args, kwargs)
    settles = options.backend.is_compiled
    try:
        blocks = capture_segments(model, args, kwargs, options.disable, settles=settles)
    except CaptureError as error:
        if not why or offload:
            raise
        raise CaptureError(f"{why}. Nor can its blocks be captured: {error}") from failed
    if why:
        once.warn(
            f"capture='auto' captures a denoiser's blocks one by one, since {why}. Blocks "
            "alone have no conditioning ahead and no spans. Give capture='blocks' where that "
            "is meant, and it is not tried again; denoiser.explain() has the reason",
            key=type(model).__name__,
        )
    return Captured(blocks.capture, blocks, why, offload)


def refuse_with_offload(model: nn.Module, options: CompileOptions, offload: str) -> None:
    """Raise for what needs weights that stay, where hooks bring them in and take them away.

    Raises:
        OptionError: An option does.
        DqarError: The model's weights are such.
    """
    rest = f"needs weights that stay where they are, but {offload}"
    if options.prepack:
        raise OptionError(f"compile={{'prepack': True}} {rest}. Leave 'prepack' out")
    if options.backend.replays:
        raise OptionError(
            f"compile={{'mode': ...}} with CUDA graphs, which know weights by their address, "
            f"{rest}. Leave 'mode' out"
        )
    if find_layers(model) or has_other_adapters(model):
        raise DqarError(
            f"a denoiser of a model with adapters {rest}. Merge them first, by "
            "pipe.fuse_lora() and pipe.unload_lora_weights(), and offload then"
        )
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if type(tensor) not in (torch.Tensor, nn.Parameter):
            raise DqarError(
                f"{name} is a {type(tensor).__name__}: a denoiser of quantised weights {rest}"
                ". Offload it as one, by pipe.enable_model_cpu_offload()"
            )


def refuse_no_values(model: nn.Module, leaves: Sequence[Any]) -> None:
    """Raise if parameters have no values, but inputs do.

    Raises:
        CaptureError: That is so.
    """
    named = chain(model.named_parameters(), model.named_buffers())
    empty = [name for name, tensor in named if tensor.is_meta]
    given = {leaf.device for leaf in leaves if isinstance(leaf, torch.Tensor)}
    if empty and given != {torch.device("meta")}:
        raise CaptureError(
            f"{len(empty)} tensors of {type(model).__name__}, such as {empty[0]}, are on the "
            f"meta device, where there are no values, but the inputs are on "
            f"{', '.join(sorted(map(str, given))) or 'no device'}. Something has offloaded "
            "them, or they were never loaded: bring them back, or give inputs on the meta "
            "device to look at graphs alone"
        )


def refuse_scales_of_its_own(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Raise for a scale of adapters that a forward sets around its blocks, which run alone.

    Raises:
        OptionError: One is given.
    """
    given = [value for value in (*args, *kwargs.values()) if isinstance(value, dict)]
    is_given = any(value.get("scale", 1) != 1 for value in given)
    if is_given and find_layers(model) and find_scaled_argument(model) is None:
        raise OptionError(
            f"the forward of {type(model).__name__} sets the scale of its adapters by itself, "
            "which blocks that are captured alone do not see. Expected capture='graph'; or "
            "set the scale before, by set_adapters(names, weights), and give none"
        )


def refuse_without_whole(
    sites: str | Sequence[str], way: str, options: CompileOptions, why: str = ""
) -> None:
    """Raise for what needs one graph of the whole denoiser.

    Args:
        sites: As `dqar_fx.transform` takes it.
        way: When conditioning is evaluated.
        options: How to lower.
        why: Why there is no such graph; empty where none was wanted.

    Raises:
        SiteError: A span is among the sites.
        OptionError: Something else needs the whole.
    """
    because = f"capture='auto' fell back to blocks, since {why}" if why else "capture='blocks'"
    rest = f"one graph of the whole denoiser, which is not there: {because}"
    for pattern in [sites] if isinstance(sites, str) else sites:
        if pattern == "span" or SPAN.fullmatch(pattern) or SLICE.fullmatch(pattern):
            raise SiteError(f"sites={pattern!r}: a span of blocks needs {rest}. Use 'block'")
    if not options.backend.cuts_blocks:
        raise OptionError(f"compile={options.backend.name!r} needs {rest}. Use 'regional'")
    if options.dynamic:
        raise OptionError(
            f"compile={{'dynamic': True}} needs {rest}. Leave 'dynamic' out: each batch size "
            "is captured when it comes"
        )
    if way == "trajectory":
        raise OptionError(
            f"conditioning='trajectory', which release= asks for too, needs {rest}. Leave it "
            "out: what is between the blocks is evaluated at each step"
        )


def make_inputs(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> fx.GraphModule:
    """A graph whose placeholders are named after a call's inputs, as in a captured one."""
    names = list(inspect.signature(model.forward).parameters)
    graph = fx.Graph()
    found, _ = pytree.tree_flatten_with_path((args, kwargs))
    for (_, first, *rest), leaf in found:
        top = first.idx if isinstance(first, pytree.SequenceKey) else first.key  # type: ignore[attr-defined]
        name = names[min(top, len(names) - 1)] if isinstance(top, int) else top
        inner = (str(getattr(each, "idx", getattr(each, "key", each))) for each in rest)
        node = graph.placeholder("_".join([name, *inner]))
        node.meta["val"] = describe_leaf(leaf)
    graph.output(())
    return fx.GraphModule({}, graph)


def describe_leaf(leaf: Any) -> Any:
    """A leaf as a graph's inputs have it: a tensor without memory, or the value."""
    if not isinstance(leaf, torch.Tensor):
        return leaf
    return torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device="meta")
