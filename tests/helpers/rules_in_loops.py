"""Every rule again in plain loops: the second implementation of gates and schedules."""

import math

from tests.helpers.random_calibrations import PATHS
from tests.helpers.table_texts import texts_of


def simulated(num_steps, num_sites, allows, max_age=None):
    """A text per site by the words of the rule ``allows(step, site, age)``."""
    texts = []
    for site in range(num_sites):
        letters, kept = ["C"], 0
        for step in range(1, num_steps):
            age = step - kept
            if allows(step, site, age) and (max_age is None or age <= max_age):
                letters.append("R")
                letters[kept] = "S"
            else:
                letters.append("C")
                kept = step
        texts.append("".join(letters))
    return texts


def check(schedule, allows, max_age=None, paths=PATHS):
    """A schedule gives the table of the second implementation; that table."""
    table = schedule.resolve(paths)
    expected = simulated(schedule.num_steps, len(paths), allows, max_age)
    assert texts_of(table) == expected
    return table


def snr_rule(snr, low=0.0, high=math.inf, most=math.inf):
    def allows(step, site, age):
        del site
        if not low <= snr[step] <= high:
            return False
        moved = 0 if most == math.inf else math.log(snr[step] / snr[step - age])
        return abs(moved) <= most

    return allows


def entropy_rule(entropy, limits, reuse="above"):
    def allows(step, site, age):
        del age
        broad = entropy[step][site] >= limits[site]
        return broad if reuse == "above" else not broad

    return allows


def policy_rule(predicted, limit):
    def allows(step, site, age):
        return age <= len(predicted[step][site]) and predicted[step][site][age - 1] <= limit

    return allows


def linear_rule(warmup, full_from, num_sites):
    def allows(step, site, age):
        del age
        exact = warmup + site * (full_from - warmup) / max(num_sites - 1, 1)
        return step >= math.floor(exact + 0.5)

    return allows


def interval_rule(every, warmup):
    def allows(step, site, age):
        del site, age
        return step >= warmup and (step - warmup + 1) % every != 0

    return allows


def young_rule(rule, max_age):
    def allows(step, site, age):
        return rule(step, site, age) and (max_age is None or age <= max_age)

    return allows


def both(one, other):
    return lambda *cell: one(*cell) and other(*cell)


def either(one, other):
    return lambda *cell: one(*cell) or other(*cell)
