"""From two graphs to their difference."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from torch import fx

from dqar_fx.errors import DqarError
from dqar_fx.passes.support.graphs import source_line
from dqar_fx.passes.support.operators import count_changes, count_operators

from .amounts import Amounts, add_amounts, amounts_by_module, amounts_of
from .flatten import flatten_graph
from .graph_diff import GraphDiff, NodeChange
from .lines import diff_lines, indented, name_entries, write_line
from .match import match_entries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .flatten import FlatGraph, GraphEntry


def graph_diff(before: fx.GraphModule, after: fx.GraphModule) -> GraphDiff:
    """Find what one graph has and another has not.

    Nodes are matched by what they compute, so that names, numbers and cuts into regions are
    no difference of nodes. See `dqar_fx.inspect.flatten` for what is a node.

    Args:
        before: A graph whose nodes carry fake tensors, such as ``denoiser.row_graph(4)``.
        after: Another such graph.

    Returns:
        The difference; falsy if there is none.

    Raises:
        DqarError: One of them is no `torch.fx.GraphModule`.
    """
    for which, gm in (("before", before), ("after", after)):
        if not isinstance(gm, fx.GraphModule):
            raise DqarError(
                f"{which} is a {type(gm).__name__}: expected a torch.fx.GraphModule, such as "
                "denoiser.row_graph(step) or denoiser.program.guarded"
            )
    return Comparison(before, after).result()


class Comparison:
    """Two graphs, matched and named.

    Args:
        before: The first graph.
        after: The second graph.

    Attributes:
        delta: Operators that the second graph has more or, negative, fewer, by name.
        before: The first graph, flattened.
        after: The second graph, flattened.
        pairs: The entry of the first for each entry of the second that has a counterpart.
        names: The name of each entry of both; counterparts have one name.
        text: The line of each entry of both.
    """

    def __init__(self, before: fx.GraphModule, after: fx.GraphModule) -> None:
        self.delta = count_changes(count_operators(before), count_operators(after))
        self.before, self.after = flatten_graph(before), flatten_graph(after)
        self.pairs = match_entries(self.before.entries, self.after.entries)
        first = name_entries(self.before.entries, {}, {})
        self.names = {**first, **name_entries(self.after.entries, self.pairs, first)}
        self.text = {entry: write_line(entry, self.names) for entry in self.names}

    def result(self) -> GraphDiff:
        """Make the difference."""
        before, after = amounts_by_module(self.before), amounts_by_module(self.after)
        paths = dict.fromkeys((*before, *after))
        saved = {p: before.get(p, Amounts()) - after.get(p, Amounts()) for p in paths}
        kept = frozenset(self.pairs.values())
        return GraphDiff(
            delta=self.delta,
            removed=self._group(self.before.entries, lambda e: e not in kept),
            added=self._group(self.after.entries, lambda e: e not in self.pairs),
            rewired=self._group(self.after.entries, self._is_rewired, self._old_text),
            moved=self._group(self.after.entries, self._is_moved, self._old_place),
            lines=diff_lines(*(self._lines(flat) for flat in (self.before, self.after))),
            before=add_amounts(before.values()),
            after=add_amounts(after.values()),
            by_module={path: each for path, each in saved.items() if each},
        )

    def _lines(self, flat: FlatGraph) -> list[str]:
        return [indented(entry, self.text[entry]) for entry in flat.entries]

    def _is_rewired(self, entry: GraphEntry) -> bool:
        return entry in self.pairs and self.text[entry] != self._old_text(entry)

    def _is_moved(self, entry: GraphEntry) -> bool:
        return entry in self.pairs and entry.within != self.pairs[entry].within

    def _old_text(self, entry: GraphEntry) -> str:
        return self.text[self.pairs[entry]]

    def _old_place(self, entry: GraphEntry) -> str:
        return ", ".join(self.pairs[entry].within)

    def _group(
        self,
        entries: Iterable[GraphEntry],
        is_meant: Callable[[GraphEntry], bool],
        earlier: Callable[[GraphEntry], str] = lambda _: "",
    ) -> dict[str, tuple[NodeChange, ...]]:
        """Group the entries that are meant by module path, in order."""
        found = defaultdict[str, list[NodeChange]](list)
        for entry in filter(is_meant, entries):
            found[entry.path].append(self._change(entry, earlier(entry)))
        return {path: tuple(changes) for path, changes in found.items()}

    def _change(self, entry: GraphEntry, earlier: str) -> NodeChange:
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
