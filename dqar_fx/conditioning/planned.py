"""What counting and moving parameters need to know of a program."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from dqar_fx.capture.capture import Capture
    from dqar_fx.plan.plan import Plan


class PlannedModel(Protocol):
    """A captured model and the plan that says which part of it reads which parameter."""

    captured: Capture
    plan: Plan
