"""TaylorSeer, again as its counter and its factors."""

from hypothesis import given
from hypothesis import strategies as st

from dqar_fx import Schedule
from dqar_fx.prior_art import taylorseer
from tests.helpers.prior_art_decisions import FEW, computed, reasons_of, text_of
from tests.helpers.table_texts import texts_of

STEPS, EVERY = st.integers(1, 40), st.integers(1, 8)


def taylorseer_run(num_steps, every, order, first):
    """Letters and orders, by the counter and the factors that its DiT code has."""
    counter = factors = 0
    letters, orders = [], []
    for step in reversed(range(num_steps)):
        if step > num_steps - first - 1 or counter == every - 1:
            counter, grown = 0, 1
            for power in range(order):
                if power >= factors or step >= num_steps - first + 1:
                    break
                grown += 1
            factors = grown
            letters.append("C")
            orders.append(0)
        else:
            counter += 1
            letters.append("F" if factors > 1 else "R")
            orders.append(factors - 1)
    return "".join(letters), orders


@FEW
@given(STEPS, EVERY, st.integers(0, 3), st.integers(1, 6))
def test_taylorseer_equals_its_counter_and_its_factors(num_steps, every, order, first):
    schedule = taylorseer(num_steps, every, order, first=first)
    letters, orders = taylorseer_run(num_steps, every, order, first)
    table = schedule.resolve(["a", "b"])
    assert [text.replace("S", "C") for text in texts_of(table)] == [letters] * 2
    assert table.orders.T.tolist() == [orders] * 2
    assert table.method == "taylor"
    assert schedule.sites == "all"


@FEW
@given(STEPS, EVERY, st.integers(1, 6), st.integers(0, 6))
def test_taylorseer_start_moves_the_phase(num_steps, every, first, later):
    found = computed(taylorseer(num_steps, every, first=first, start=first + later))
    again = range(first + later, num_steps, every)
    assert found == sorted({*range(min(first, num_steps)), *again})


def test_taylorseer_golden():
    assert text_of(taylorseer(10)) == "SSFFFSFFFC"
    assert text_of(taylorseer(12, 3, 2, first=3)) == "CSSFFSFFSFFC"
    assert text_of(taylorseer(7, 3, 1, first=1)) == "SRRSFFC"
    assert text_of(taylorseer(7, 3, 0, first=2)) == "CSRRSRR"
    orders = taylorseer(12, 3, 2, first=3).resolve(["a"]).orders[:, 0]
    assert orders.tolist() == [0, 0, 0, 1, 1, 0, 2, 2, 0, 2, 2, 0]


def test_taylorseer_as_reuse_is_the_interval():
    for every in range(1, 5):
        for first in range(1, 4):
            reused = text_of(taylorseer(13, every, 0, first=first))
            assert reused == text_of(Schedule.interval(13, every, warmup=first))


def test_taylorseer_says_why():
    assert reasons_of(taylorseer(5, 3, 2)) == [
        "STORE, TaylorSeer: full steps are the first 2",
        "STORE, TaylorSeer: full steps are the first 2",
        "FORECAST of order 1 from step 1, "
        "TaylorSeer: order 2, full steps to take differences of: 2",
        "FORECAST of order 1 from step 1, "
        "TaylorSeer: order 2, full steps to take differences of: 2",
        "COMPUTE, TaylorSeer: full steps are each 3-th from 4 on",
    ]
