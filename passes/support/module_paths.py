"""Which module made a node: its path, its call, and paths of equal blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .graphs import is_computing

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from torch import fx


def module_stack(node: fx.Node) -> list[tuple[str, str]]:
    """``(call key, module path)`` from the root down to the module that made the node.

    The call key tells two calls of one module apart; the path does not.
    """
    stack: dict[str, tuple[str, str]] = node.meta.get("nn_module_stack") or {}
    return [(key, path) for key, (path, _) in stack.items()]


def module_path(node: fx.Node) -> str:
    """Path of the innermost module that made the node; empty for the root."""
    stack = node.meta.get("nn_module_stack")
    return str(stack[next(reversed(stack))][0]) if stack else ""


def call_key(node: fx.Node) -> str:
    """Call key of the innermost module around a node."""
    return next(reversed(node.meta.get("nn_module_stack") or {}), "")


def belongs_to(node: fx.Node, key: str) -> bool:
    """Whether a node was made during the module call ``key``."""
    return is_computing(node) and key in (node.meta.get("nn_module_stack") or ())


def group_by_call(nodes: Iterable[fx.Node], keys: Iterable[str]) -> dict[str, list[fx.Node]]:
    """The nodes of each module call, in order."""
    groups: dict[str, list[fx.Node]] = {key: [] for key in keys}
    for node in nodes:
        for key in node.meta.get("nn_module_stack") or ():
            if key in groups and is_computing(node):
                groups[key].append(node)
    return groups


def is_inside(path: str, block: str) -> bool:
    """Whether a module path is that of a block, or of a module inside of it."""
    return path == block or path.startswith(f"{block}.")


def rename_path(path: str, block: str, other: str) -> str:
    """The path of a module of one block as it is in another block.

    Paths outside of ``block`` stay as they are.
    """
    return other + path[len(block) :] if is_inside(path, block) else path


def find_enclosing(path: str, blocks: Collection[str]) -> str:
    """The innermost of some blocks that a module is, or is inside of; empty for none."""
    parts = path.split(".")
    prefixes = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((prefix for prefix in prefixes if prefix in blocks), "")
