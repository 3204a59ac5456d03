"""The difference of two graphs: what left, what came, what reads something else, what it saves."""

from .amounts import Amounts
from .graph_diff import GraphDiff, NodeChange, graph_diff

__all__ = ["Amounts", "GraphDiff", "NodeChange", "graph_diff"]
