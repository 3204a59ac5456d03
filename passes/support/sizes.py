"""Numbers in a graph that depend on the sizes of a call's inputs.

A graph that is captured once for all shapes has such numbers among its arguments. Each is a
plain number, the one of the call that was captured, and knows as which expression of the
inputs' sizes it came about. So a pass that reads arguments sees numbers, and what is to be
equal for all shapes is asked of the expressions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import sympy
from torch import fx

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Sizes = Mapping[sympy.Symbol, int]


class Size(int):
    """A whole number of a captured call, and its expression.

    Attributes:
        expr: The expression, in symbols for the sizes of the call's inputs.
    """

    expr: sympy.Expr

    def __new__(cls, value: int, expr: sympy.Expr) -> Self:
        """Put a number and its expression together."""
        made = super().__new__(cls, value)
        made.expr = expr
        return made

    def __getnewargs__(self) -> tuple[int, sympy.Expr]:  # type: ignore[override]  # of a subclass
        """Let copies know the expression."""
        return int(self), self.expr


class SizeRatio(float):
    """A number of a captured call that is no whole one, such as the scale of a grid."""

    expr: sympy.Expr

    def __new__(cls, value: float, expr: sympy.Expr) -> Self:
        """Put a number and its expression together."""
        made = super().__new__(cls, value)
        made.expr = expr
        return made

    def __getnewargs__(self) -> tuple[float, sympy.Expr]:  # type: ignore[override]  # of a subclass
        """Let copies know the expression."""
        return float(self), self.expr


DEPENDENT = (Size, SizeRatio)
"""Types of numbers that depend on sizes."""


def make_size(value: float, expr: sympy.Expr) -> int | float:
    """A number, with its expression if it depends on sizes."""
    if expr.is_number:
        return value
    return SizeRatio(value, expr) if isinstance(value, float) else Size(value, expr)


def number_at(number: Any, sizes: Sizes) -> Any:
    """A number at other sizes of the inputs; anything else as it is."""
    if not isinstance(number, DEPENDENT):
        return number
    return evaluate(number.expr, sizes, float if isinstance(number, SizeRatio) else int)


def evaluate(expr: sympy.Basic, sizes: Sizes, kind: Callable[[Any], Any]) -> Any:
    """An expression at sizes."""
    return kind(expr.xreplace(dict(sizes)))


def map_sizes(args: Any, change: Callable[[Any], Any]) -> Any:
    """Arguments of a node with what ``change`` gives for each number that depends on sizes."""
    return fx.node.map_aggregate(
        args, lambda each: change(each) if isinstance(each, DEPENDENT) else each
    )


def spell_sizes(args: Any) -> Any:
    """Arguments of a node, such that only what is equal for all shapes has an equal text."""
    return map_sizes(args, lambda number: number.expr)


def reads_sizes(node: fx.Node) -> bool:
    """Whether an argument of a node depends on sizes."""
    found: list[Any] = []
    map_sizes((node.args, node.kwargs), found.append)
    return bool(found)
