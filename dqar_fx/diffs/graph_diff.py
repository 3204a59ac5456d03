"""The difference of two graphs, as a value."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from dqar_fx.errors import DqarError
from dqar_fx.flatten import count_changes, flatten
from dqar_fx.passes.graphs import source_line

from .amounts import Amounts, amounts_by_module, amounts_of, sum_up
from .lines import diff_lines, indented, name_entries, write_line
from .match import match_entries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from torch import fx

    from dqar_fx.flatten import Entry, Flat

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
class GraphDiff:
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

    def to_json(self) -> str:
        """All of it, for `from_json`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> GraphDiff:
        """Read what `to_json` wrote.

        Raises:
            DqarError: It is something else.
        """
        try:
            content = json.loads(text)
            for name in CHANGES:
                content[name] = {
                    path: tuple(read_change(each) for each in changes)
                    for path, changes in content[name].items()
                }
            for name in ("before", "after"):
                content[name] = Amounts(**content[name])
            saved = {path: Amounts(**each) for path, each in content["by_module"].items()}
            return cls(**{**content, "lines": tuple(content["lines"]), "by_module": saved})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DqarError(
                f"this is no graph diff in JSON: {type(error).__name__}: {error}. Expected "
                "what GraphDiff.to_json() gives"
            ) from error

    def __str__(self) -> str:
        if not self:
            return "no difference"
        parts = [f"{name}: {count:+d}" for name, count in self.delta.items()]
        parts += [describe_saved(self.before, self.after)]
        paths = dict.fromkeys(path for name in CHANGES for path in getattr(self, name))
        parts += [self._describe_module(path) for path in sorted(paths)]
        return "\n".join((*parts, *self.lines))

    def _describe_module(self, path: str) -> str:
        counts = ((name, len(getattr(self, name).get(path, ()))) for name in CHANGES)
        told = ", ".join(f"{count} {name}" for name, count in counts if count)
        return f"{path or '(model)'}: {told}"


def read_change(content: dict[str, object]) -> NodeChange:
    """A change from JSON."""
    within = content["within"]
    assert isinstance(within, list)
    return NodeChange(**{**content, "within": tuple(within)})  # type: ignore[arg-type]


def describe_saved(before: Amounts, after: Amounts) -> str:
    """What is saved, of how much, in one line."""
    saved = before - after
    return (
        f"saved: {saved.macs / 1e6:.3f} of {before.macs / 1e6:.3f} MMACs, "
        f"{saved.parameter_bytes / 1e6:.3f} of {before.parameter_bytes / 1e6:.3f} MB of "
        f"parameters, {saved.activation_bytes / 1e6:.3f} of "
        f"{before.activation_bytes / 1e6:.3f} MB of activations"
    )


def graph_diff(before: fx.GraphModule, after: fx.GraphModule) -> GraphDiff:
    """What one graph has and another has not.

    Nodes are matched by what they compute, so that names, numbers and cuts into regions are
    no difference of nodes. See `dqar_fx.flatten` for what is a node.

    Args:
        before: A graph whose nodes carry fake tensors, such as ``denoiser.row_graph(4)``.
        after: Another one.

    Returns:
        The difference; falsy if there is none.

    Raises:
        DqarError: One of them is no `torch.fx.GraphModule`.
    """
    return Comparison(read_graph("before", before), read_graph("after", after)).result()


def read_graph(which: str, gm: fx.GraphModule) -> Flat:
    """A graph, flattened.

    Raises:
        DqarError: It is none.
    """
    if not hasattr(gm, "graph"):
        raise DqarError(
            f"{which}={type(gm).__name__}: expected a torch.fx.GraphModule, such as "
            "denoiser.row_graph(step) or denoiser.program.guarded"
        )
    return flatten(gm)


class Comparison:
    """Two graphs, matched and named.

    Args:
        before: One.
        after: The other.
    """

    def __init__(self, before: Flat, after: Flat) -> None:
        self.before, self.after = before, after
        self.pairs = match_entries(before.entries, after.entries)
        first = name_entries(before.entries, {}, {})
        self.names = {**first, **name_entries(after.entries, self.pairs, first)}
        self.text = {
            entry: write_line(entry, self.names)
            for flat in (before, after)
            for entry in flat.entries
        }

    def result(self) -> GraphDiff:
        """The difference."""
        before, after = amounts_by_module(self.before), amounts_by_module(self.after)
        paths = dict.fromkeys((*before, *after))
        saved = {p: before.get(p, Amounts()) - after.get(p, Amounts()) for p in paths}
        kept = frozenset(self.pairs.values())
        return GraphDiff(
            delta=count_changes(self.before.count(), self.after.count()),
            removed=self._group(self.before.entries, lambda e: e not in kept),
            added=self._group(self.after.entries, lambda e: e not in self.pairs),
            rewired=self._group(self.after.entries, self._is_rewired, self._old_text),
            moved=self._group(self.after.entries, self._is_moved, self._old_place),
            lines=diff_lines(*(self._lines(flat) for flat in (self.before, self.after))),
            before=sum_up(before.values()),
            after=sum_up(after.values()),
            by_module={path: each for path, each in saved.items() if each},
        )

    def _lines(self, flat: Flat) -> list[str]:
        return [indented(entry, self.text[entry]) for entry in flat.entries]

    def _is_rewired(self, entry: Entry) -> bool:
        return entry in self.pairs and self.text[entry] != self._old_text(entry)

    def _is_moved(self, entry: Entry) -> bool:
        return entry in self.pairs and entry.within != self.pairs[entry].within

    def _old_text(self, entry: Entry) -> str:
        return self.text[self.pairs[entry]]

    def _old_place(self, entry: Entry) -> str:
        return ", ".join(self.pairs[entry].within)

    def _group(
        self,
        entries: Iterable[Entry],
        is_meant: Callable[[Entry], bool],
        earlier: Callable[[Entry], str] = lambda _: "",
    ) -> dict[str, tuple[NodeChange, ...]]:
        """Changes by module path, in order."""
        found = defaultdict[str, list[NodeChange]](list)
        for entry in filter(is_meant, entries):
            found[entry.path].append(self._change(entry, earlier(entry)))
        return {path: tuple(changes) for path, changes in found.items()}

    def _change(self, entry: Entry, earlier: str) -> NodeChange:
        amounts = amounts_of(entry)
        return NodeChange(
            name=self.names[entry],
            kind=entry.kind,
            operator=entry.operator,
            path=entry.path,
            site=entry.site,
            within=entry.within,
            text=self.text[entry],
            before=earlier,
            source=source_line(entry.node),
            macs=amounts.macs,
            activation_bytes=amounts.activation_bytes,
        )
