"""Cases of which only some are tried where slow tests are left out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable


def slow_but(*quick: Any, of: Iterable[Any]) -> list[Any]:
    """Cases for `pytest.mark.parametrize`, all marked slow but those that are named.

    Args:
        quick: Cases that stay quick; each must be among `of`.
        of: All cases, in order; a tuple is a case of several arguments.

    Raises:
        ValueError: A case that should stay quick is not there.
    """
    cases = list(of)
    if lacking := [case for case in quick if case not in cases]:
        raise ValueError(f"no such cases: {lacking}; they are {cases}")
    return [case if case in quick else slow_case(case) for case in cases]


def slow_case(case: Any) -> Any:
    """One case, marked slow."""
    arguments = case if isinstance(case, tuple) else (case,)
    return pytest.param(*arguments, marks=pytest.mark.slow)
