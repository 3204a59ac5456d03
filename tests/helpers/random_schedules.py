"""Schedules that rules give, drawn at random, and their columns by the words of the rules."""

from hypothesis import settings
from hypothesis import strategies as st

from dqar_fx import Schedule

FEW = settings(max_examples=50, deadline=None)
AGES = st.none() | st.integers(1, 6)
SITES = st.integers(1, 12)
STEPS = st.integers(1, 40)


def paths(num_sites):
    return [f"blocks.{i}.attn" for i in range(num_sites)]


def brute_column(may_reuse, max_age):
    """A column by the words of the rules, one step after another."""
    letters, kept = [], None
    for step, may in enumerate(may_reuse):
        fresh = kept is not None and (max_age is None or step - kept <= max_age)
        if may and fresh:
            letters.append("R")
            letters[kept] = "S"
        else:
            letters.append("C")
            kept = step
    return "".join(letters)


@st.composite
def linear_arguments(draw):
    num_steps, warmup = draw(STEPS), draw(st.integers(1, 8))
    full_from = draw(st.none() | st.integers(warmup, warmup + 40))
    named = {"full_from": full_from, "max_age": draw(AGES)}
    return num_steps, warmup, named


@st.composite
def interval_arguments(draw):
    named = {"warmup": draw(st.integers(1, 8)), "max_age": draw(AGES)}
    return draw(STEPS), draw(st.integers(1, 8)), named


@st.composite
def schedules(draw):
    """Any schedule that a rule gives."""
    if draw(st.booleans()):
        num_steps, warmup, named = draw(linear_arguments())
        return Schedule.linear(num_steps, warmup, **named)
    num_steps, every, named = draw(interval_arguments())
    return Schedule.interval(num_steps, every, **named)
