"""Hooks of accelerate that move a model as a whole: its denoiser has them in its place."""

from __future__ import annotations

from typing import Any

from torch import nn

from dqar_fx.capture.offloaded import is_offloaded

HOOK = "_hf_hook"
"""Where accelerate keeps the hook of a module."""


def hand_hook_on(before: nn.Module, after: nn.Module, pipe: Any = None) -> None:
    """Let the hook around one module be around another, which stands in its place.

    Args:
        before: Who had the hook, if there was one; it is left as it is.
        after: Who gets it; one of its own goes.
        pipe: The pipeline that offloads them, which is told; None for none.
    """
    hook = vars(before).get(HOOK)
    if is_offloaded(
        before
    ):  # by hooks of its own parts; who stands there tells that it has some
        if hook is not None and HOOK not in vars(after):
            from accelerate.hooks import AlignDevicesHook, add_hook_to_module

            add_hook_to_module(after, AlignDevicesHook(io_same_device=True))
    elif hook is not None or HOOK in vars(after):
        from accelerate.hooks import add_hook_to_module, remove_hook_from_module

        if hook is None:
            remove_hook_from_module(after)
        else:
            add_hook_to_module(after, hook)
    for each in getattr(pipe, "_all_hooks", ()):
        if each.model is before:
            each.model = after
