"""The difference of two graphs: what left, what came, what reads something else."""

from .amounts import Amounts
from .compare import graph_diff
from .graph_diff import GraphDiff, NodeChange

__all__ = ["Amounts", "GraphDiff", "NodeChange", "graph_diff"]
