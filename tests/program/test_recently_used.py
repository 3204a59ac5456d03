"""What is made by key, for threads that ask at a time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from dqar_fx.program.recently_used import RecentlyUsed


class SlowKey:
    """A key that is compared by code of Python, between whose lines threads change."""

    def __init__(self, number):
        self.number = number

    def __hash__(self):
        return hash(self.number)

    def __eq__(self, other):
        return sum(1 for _ in range(50)) > 0 and self.number == other.number


def test_recently_used_leaves_out_what_was_found_longest_ago():
    known = RecentlyUsed()
    for number in range(3):
        known.keep(number, str(number), most=3)
    assert known.find(0) == "0"
    known.keep(3, "3", most=3)
    assert list(known) == ["2", "0", "3"]
    assert known.find(1) is None
    known.clear()
    assert len(known) == 0


def test_recently_used_makes_each_once_while_threads_find_and_look_through():
    known, made = RecentlyUsed(), []

    def work(start):
        for number in range(start, start + 300):
            key = number % 6
            assert (
                known.find_or_make(SlowKey(key), lambda key=key: made.append(key) or key, 8)
                == key
            )
            seen = list(known)
            assert len(seen) == len(set(seen))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert sorted(made) == list(range(6))
