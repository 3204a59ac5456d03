"""What a stream keeps between its steps, and how the calls of its rows are bound."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from dqar_fx.conditioning.memo import Memo
from dqar_fx.notices import warn
from dqar_fx.plan.plan import bind, select_calls

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    from torch import fx

    from dqar_fx.capture.offloaded import OffloadedTensor
    from dqar_fx.passes import TensorSpec
    from dqar_fx.plan.liveness import Needs
    from dqar_fx.plan.plan import BoundCall, CallObserver, PackWeights, Plan, Static
    from dqar_fx.plan.slot_state import Actions, ForecastWeights, SlotState
    from dqar_fx.plan.slots import SlotKey, Slots

    from .lowering import Lowering


@dataclass(frozen=True)
class PreparedStep:
    """A step, worked out for what is kept when it begins.

    Attributes:
        actions: What each site does, int8 ``[sites]``.
        calls: What it runs.
        after: What is kept when it ends.
        needs: What of the conditioning they read.
        num_cold: Sites that start cold.
        is_checked: Whether to ask at its end for what is not finite.
    """

    actions: Actions
    calls: list[BoundCall]
    after: SlotState
    needs: Needs
    num_cold: int
    is_checked: bool


@dataclass
class Stream:
    """What one stream keeps between its steps.

    Attributes:
        slots: The kept outputs.
        memo: The conditioning that is known.
        rows: Bound calls by actions, and by places and weights of what is kept.
        prepared: Steps by what is kept when they begin.
        missed: Columns of sites that the latest step should have run, and did not.
    """

    slots: Slots
    memo: Memo = field(default_factory=Memo)
    rows: dict[Hashable, list[BoundCall]] = field(default_factory=dict)
    prepared: dict[tuple[SlotState, int], PreparedStep] = field(default_factory=dict)
    missed: list[int] = field(default_factory=list)

    def report_flags(self, sites: Sequence[str]) -> None:
        """Warn if something was kept that is not finite; ``sites`` are those of the table."""
        raised = self.slots.take_flags()
        if raised:
            paths = ", ".join(sites[column] for column in raised)
            warn(
                f"{len(raised)} of {len(sites)} sites kept NaN or infinity, or "
                f"numbers beyond the range of the cache format, in this trajectory: {paths}. "
                "Steps that reuse them give NaN or infinity, too. Expected finite numbers "
                "(below 65504 for cache='fp16'): try cache='bf16' or 'same', and look at "
                "what the original model gives"
            )


@dataclass(frozen=True)
class Binder:
    """Fills parameters, slots and weights of forecasts into calls of lowered regions.

    Attributes:
        plan: The step's stages and regions.
        lowering: Specialises and lowers the regions.
        model: The captured model, whose parameters are filled in.
        specs: The slots of one stream.
        observe: Gives what is called in the place of a variant's function; None to call the
            function itself.
        find_weight: Finds a parameter that is there for the time of a call only; None where
            all stay.
    """

    plan: Plan
    lowering: Lowering
    model: fx.GraphModule
    specs: Mapping[SlotKey, TensorSpec]
    observe: CallObserver | None = None
    find_weight: Callable[[str], OffloadedTensor] | None = None

    def bind_row(
        self, slots: Slots, actions: Actions, weights: ForecastWeights
    ) -> list[BoundCall]:
        """The calls of a row of the step's plan."""
        places = slots.slot_state.places(actions)
        fill = partial(self.fill, slots=slots, places=places, weights=weights)
        variant = partial(self.lowering.variant, self.plan, packs=True)
        calls = select_calls(self.plan, actions.tolist(), variant)
        return bind(calls, fill, self.lowering.packed_weights.pack, self.observe)

    def bind_stage(self, plan: Plan) -> list[BoundCall]:
        """The calls of a conditioning stage.

        Its weights are not packed: they may be released, or are read once.
        """
        calls = select_calls(plan, (), partial(self.lowering.variant, plan))
        return bind(calls, self.fill, observe=self.observe)

    def bind_unlowered(self, row: Sequence[int], pack: PackWeights) -> None:
        """Bind a row with nothing lowered; ``pack`` is shown the weights of each call."""

        def fill(static: Static) -> Any:
            return self.fill(static) if isinstance(static, str) else None

        unlowered = self.lowering.unlowered_of(self.plan, packs=True)
        bind(select_calls(self.plan, row, unlowered), fill, pack)

    def fill(
        self,
        static: Static,
        slots: Slots | None = None,
        places: tuple[int, ...] = (),
        weights: ForecastWeights = (),
    ) -> torch.Tensor | OffloadedTensor:
        """The slot of a key, weights of a column; else a parameter, without its gradient."""
        if isinstance(static, tuple):
            assert slots is not None, "conditioning has no slots"
            found = slots.buffer(static, places)
        elif isinstance(static, int):
            device = self.specs[static, 0, 0, 0].device
            found = torch.tensor(weights[static], dtype=torch.float32, device=device)
        else:
            assert static is not None, "actions are resolved before binding"
            if self.find_weight is not None:
                return self.find_weight(static)
            owner, _, name = static.rpartition(".")
            found = getattr(self.model.get_submodule(owner), name).detach()
        if self.lowering.backend.replays:
            # else a replayed graph copies every weight, and none is made of what writes slots
            torch._dynamo.mark_static_address(found, guard=False)  # blocks share one graph
        return found
