"""Why less was reused than a table lets: what the run log says, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reason:
    """Why outputs were not kept that the table reads.

    Attributes:
        kind: A word that is the same for all reasons of a kind.
        text: What happened.
        mend: What to do; empty where it is as it should be, which needs no warning.
    """

    kind: str
    text: str
    mend: str = ""

    def __str__(self) -> str:
        return self.text


OTHER_SHAPES = Reason(
    "shapes",
    "its inputs have other shapes, or other arguments, than before, as where guidance ends or "
    "begins or the batch is another one",
    "where both streams of guidance are halves of one batch, Guidance(batched=...) keeps them "
    "apart, so that what one half has kept is carried over",
)
MIXED = Reason(
    "mixed",
    "its samples stand at different timesteps",
    "call the denoiser with samples of one step at a time, each group in "
    "denoiser.cache_context(name), to reuse",
)
LOST = Reason(
    "lost",
    "what it had kept was given up, since a call before it failed or did not come",
    "look at the error before; or give the step, denoiser.cache_context(name, step_index=...)",
)


def other_conditioning(names: str) -> Reason:
    """Another prompt than at the step before."""
    return Reason(
        f"conditioning: {names}",
        f"its conditioning is another one than before ({names})",
        "where that is another request, there is nothing to do; streams that alternate need "
        "denoiser.cache_context(name) around their calls, each with a name of its own",
    )


def late(step: int) -> Reason:
    """A run that begins after its first step, as image-to-image does."""
    return Reason("late", f"its run began at step {step}")


def joined(step: int) -> Reason:
    """A stream that is present in some steps only."""
    return Reason("joined", f"it came for the first time at step {step}")


def absent(first: int, last: int) -> Reason:
    """A stream that was not called for a while."""
    steps = f"step {first}" if first == last else f"steps {first} to {last}"
    return Reason("absent", f"it was not called at {steps}")
