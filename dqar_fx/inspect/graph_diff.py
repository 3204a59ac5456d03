"""The difference of two graphs, as a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dqar_fx.json_value import JsonValue

from .amounts import Amounts
from .summary import describe_saved, tabulate_modules

CHANGES = ("removed", "added", "rewired", "moved")


@dataclass(frozen=True)
class NodeChange:
    """A node that only one graph has, or that both have and that is not the same in both.

    Attributes:
        name: The node's name in the text of the diff.
        kind: ``operator``, ``guard``, ``stage``, ``region``, ``read`` or ``write`` (of a
            slot), ``input`` or ``output``.
        operator: The operator, such as ``aten.linear.default``.
        path: Path of the module that made it; for a guard or a slot, the path of its site.
        site: Path of the site whose guard it is, or whose slot it reads or writes; else empty.
        within: The stages, guards and regions around it, outermost first.
        text: The node's line, in the graph after if both graphs have it.
        before: For a node that is rewired, its line in the graph before; for one that moved,
            what it was within; else empty.
        source: ``file:line`` of the call that made it.
        macs: Multiply-accumulates of the node.
        activation_bytes: Bytes that it computes.
    """

    name: str
    kind: str
    operator: str
    path: str
    site: str
    within: tuple[str, ...]
    text: str
    before: str
    source: str
    macs: int
    activation_bytes: int


@dataclass(frozen=True)
class GraphDiff(JsonValue):
    """What one graph has and another has not. Truthy if there is any difference.

    Attributes:
        delta: Operators gained or, negative, lost, by name. Guards count as
            ``compute_or_reuse``, reads of slots as ``read slot``, calls of outlined graphs as
            ``stage`` and ``region``; what is inside of them counts as if it were outside.
        removed: Nodes that only the graph before has, by module path.
        added: Nodes that only the graph after has, by module path.
        rewired: Nodes of both that read something else, or read it in another way, by module
            path.
        moved: Nodes of both that lie within another stage, guard or region, by module path.
        lines: Unified diff of the two texts.
        before: What the graph before takes.
        after: What the graph after takes.
        by_module: What is saved, by path of the module that computes or owns it; negative
            where the graph after takes more. Modules that save nothing are left out.
    """

    delta: Mapping[str, int]
    removed: Mapping[str, tuple[NodeChange, ...]]
    added: Mapping[str, tuple[NodeChange, ...]]
    rewired: Mapping[str, tuple[NodeChange, ...]]
    moved: Mapping[str, tuple[NodeChange, ...]]
    lines: tuple[str, ...]
    before: Amounts
    after: Amounts
    by_module: Mapping[str, Amounts]

    @property
    def saved(self) -> Amounts:
        """What the graph before takes beyond what the graph after does."""
        return self.before - self.after

    @property
    def macs(self) -> int:
        """Multiply-accumulates saved."""
        return self.saved.macs

    @property
    def parameter_bytes(self) -> int:
        """Bytes of parameters saved: those that the graph after does not read any more."""
        return self.saved.parameter_bytes

    @property
    def activation_bytes(self) -> int:
        """Bytes of intermediate results saved: those that are not computed any more."""
        return self.saved.activation_bytes

    def __bool__(self) -> bool:
        return bool(self.delta or self.lines or any(getattr(self, name) for name in CHANGES))

    def __str__(self) -> str:
        if not self:
            return "no difference"
        parts = [f"{name}: {count:+d}" for name, count in self.delta.items()]
        parts.append(describe_saved(self.before, self.after))
        counts = {
            name: {path: len(each) for path, each in getattr(self, name).items()}
            for name in CHANGES
        }
        return "\n".join((*parts, tabulate_modules(counts, self.by_module), *self.lines))
