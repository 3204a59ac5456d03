"""The difference of two graphs, as a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dqar_fx.json_value import JsonValue

from .amounts import Amounts
from .summary import describe_saved, list_modules

CHANGES = ("removed", "added", "rewired", "moved")


@dataclass(frozen=True)
class NodeChange:
    """A node that only one graph has, or that both have and that is not the same in both.

    Attributes:
        name: Its name in the text of the diff.
        kind: ``operator``, ``guard``, ``stage``, ``region``, ``read`` or ``write`` (of a
            slot), ``input`` or ``output``.
        operator: The operator, such as ``aten.linear.default``.
        path: The module that made it; of a guard or slot, the site.
        site: The site whose guard it is, or whose slot it reads or writes; else empty.
        within: The stages, guards and regions around it, outermost first.
        text: Its line; in the graph after, if both have it.
        before: Of a node that is rewired, its line in the graph before; of one that moved,
            what it was within; else empty.
        source: ``file:line`` of the call that made it.
        macs: Multiply-accumulates.
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
        removed: Nodes of the graph before alone, by module path.
        added: Nodes of the graph after alone, by module path.
        rewired: Nodes of both that read something else or do it in another way.
        moved: Nodes of both that lie within another stage, guard or region.
        lines: Unified diff of the two texts.
        before: What the graph before takes.
        after: What the graph after takes.
        by_module: What is saved, by the module that computes or owns it; negative where the
            graph after takes more. Modules where nothing is are left out.
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
        """What the graph before takes and the graph after does not."""
        return self.before - self.after

    @property
    def macs(self) -> int:
        """Multiply-accumulates saved."""
        return self.saved.macs

    @property
    def parameter_bytes(self) -> int:
        """Bytes of parameters that only the graph before reads, less those of the other."""
        return self.saved.parameter_bytes

    @property
    def activation_bytes(self) -> int:
        """Bytes of intermediate results that are not computed any more."""
        return self.saved.activation_bytes

    def __bool__(self) -> bool:
        return bool(self.delta or self.lines or any(getattr(self, name) for name in CHANGES))

    def __str__(self) -> str:
        if not self:
            return "no difference"
        parts = [f"{name}: {count:+d}" for name, count in self.delta.items()]
        parts.append(describe_saved(self.before, self.after))
        counts = {name: count_by_path(getattr(self, name)) for name in CHANGES}
        return "\n".join((*parts, list_modules(counts, self.by_module), *self.lines))


def count_by_path(changes: Mapping[str, tuple[NodeChange, ...]]) -> dict[str, int]:
    """How many changes there are, by module path."""
    return {path: len(each) for path, each in changes.items()}
