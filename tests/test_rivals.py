"""Schedules of other systems: each rule again, as the loop with counters that it is there."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dqar_fx import Action, BranchTable, Calibration, Schedule, ScheduleError
from dqar_fx.calibration import Cells
from dqar_fx.fingerprint import Fingerprint
from dqar_fx.rivals import fora, magcache, smoothcache, step_mask, taylorseer
from dqar_fx.rules import Moment

FEW = settings(max_examples=60, deadline=None)
STEPS, EVERY = st.integers(1, 40), st.integers(1, 8)


def texts_of(table):
    return ["".join(Action(a).letter for a in column) for column in table.actions.T]


def text_of(schedule, num_sites=2):
    """The text of all sites, which is one."""
    (text,) = set(texts_of(schedule.resolve([f"blocks.{i}.attn" for i in range(num_sites)])))
    return text


def computed(schedule):
    """Steps that compute."""
    return [step for step, letter in enumerate(text_of(schedule)) if letter in "CS"]


def reasons_of(schedule, num_sites=1):
    """What each step's row says of its first site, after the action."""
    table = schedule.resolve([f"blocks.{i}.attn" for i in range(num_sites)])
    said = [table.why(step, 0) for step in range(table.num_steps)]
    return [line.partition(": ")[2] for line in said]


def error_of(make):
    with pytest.raises(ScheduleError) as caught:
        make()
    return str(caught.value)


# ---- FORA ----------------------------------------------------------------------------------


@FEW
@given(STEPS, EVERY)
def test_fora_equals_a_loop_that_counts_down(num_steps, every):
    expected, index = [], num_steps - 1
    while index >= 0:
        if index == num_steps - 1 or index % every == 0:
            expected.append(num_steps - 1 - index)
        index -= 1
    assert computed(fora(num_steps, every)) == expected


def test_fora_golden():
    assert text_of(fora(8)) == "CSRRSRRC"
    assert text_of(fora(9, 4)) == "SRRRSRRRC"
    assert text_of(fora(7, 1)) == "CCCCCCC"
    assert fora(8).sites == "all"


def test_fora_counts_from_the_last_step_and_the_interval_from_the_first():
    assert text_of(fora(7, 3)) == text_of(Schedule.interval(7, 3)) == "SRRSRRC"
    assert text_of(fora(8, 3)) != text_of(Schedule.interval(8, 3))


def test_fora_says_why():
    assert reasons_of(fora(5)) == [
        "COMPUTE, FORA computes the first step",
        "STORE, FORA: steps left are a multiple of 3: 3",
        "REUSE of step 1, FORA: steps left are no multiple of 3: 2",
        "REUSE of step 1, FORA: steps left are no multiple of 3: 1",
        "COMPUTE, FORA: steps left are a multiple of 3: 0",
    ]


# ---- TaylorSeer ----------------------------------------------------------------------------


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


# ---- SmoothCache ---------------------------------------------------------------------------

MODEL = torch.nn.Linear(2, 2)


def random_calibration(seed, steps, blocks=3, ages=4, ends=("attn1", "ff")):
    """What a run might have measured; later steps change less, older outputs differ more."""
    rng = np.random.default_rng(seed)
    sites = tuple(f"blocks.{i}.{end}" for i in range(blocks) for end in ends)
    growth = np.arange(1, ages + 1) ** rng.uniform(0.1, 1)
    change = rng.uniform(0.02, 0.3, (steps, len(sites), 1)) * growth
    change *= rng.uniform(0.8, 1.25, change.shape)
    for step in range(steps):
        change[step, :, step:] = np.nan
    none = np.zeros(0)
    cells = Cells(none.astype(int), none.astype(int), none.astype(int), none, none, none)
    flat = np.ones((steps, len(sites)))
    return Calibration(sites, flat[:, 0], flat, change, cells, Fingerprint.of(MODEL), 1)


def smoothcache_scan(change, threshold, lookahead):
    """1 and 0 per step, by its scan over rows of errors: ``change[step][layer][age - 1]``."""
    steps = len(change)
    rows = [
        [np.mean(change[start + age, :, age - 1]) for start in range(steps - age)]
        for age in range(1, min(lookahead, steps - 1) + 1)
    ]
    plan, step = [1] * steps, 0
    while step < steps:
        far = [age for age, row in enumerate(rows, 1) if step < len(row)]
        good = [age for age in far if rows[age - 1][step] <= threshold]
        skipped = max(good, default=0)
        for after in range(step + 1, step + 1 + skipped):
            plan[after] = 0
        step += skipped + 1
    plan[0] = plan[-1] = 1
    return plan


@FEW
@given(
    st.integers(0, 10**6),
    st.integers(1, 25),
    st.floats(0, 0.5),
    st.integers(1, 4),
    st.booleans(),
)
def test_smoothcache_equals_its_scan(seed, steps, threshold, lookahead, reverse):
    calibration = random_calibration(seed, steps)
    schedule = smoothcache(calibration, threshold, lookahead=lookahead)
    order = calibration.sites[::-1] if reverse else calibration.sites
    table = schedule.resolve(order)
    for path, text in zip(order, texts_of(table), strict=True):
        layers = [i for i, site in enumerate(calibration.sites) if site[-2:] == path[-2:]]
        plan = smoothcache_scan(calibration.change[:, layers], threshold, lookahead)
        assert [int(letter != "R") for letter in text] == plan
    assert schedule.sites == calibration.sites


def golden_calibration():
    """Two layers, all near; but nothing is like step 0, nor step 4 like those before 1."""
    calibration = random_calibration(0, 8, blocks=2, ends=("ff",))
    change = calibration.change
    change[~np.isnan(change)] = 0.1
    change[[1, 2, 3], :, [0, 1, 2]] = 0.4
    change[4] = [[0.4, 0.4, 0.0, 0.4], [0.4, 0.4, 0.2, 0.4]]
    return calibration


def test_smoothcache_golden():
    """From step 1 to 4 counts the mean of 0.0 and 0.2."""
    calibration = golden_calibration()
    for lookahead, expected in ((3, "CSRRRSRC"), (2, "CSRRSRRC"), (1, "CSRCSRCC")):
        schedule = smoothcache(calibration, 0.1, lookahead=lookahead)
        assert texts_of(schedule.resolve(calibration.sites)) == [expected] * 2


def test_smoothcache_says_why():
    calibration = golden_calibration()
    table = smoothcache(calibration, 0.1, lookahead=2).resolve(calibration.sites)
    assert [table.why(step, 1).partition(": ")[2] for step in range(8)] == [
        "COMPUTE, nothing is kept yet",
        "STORE, mean change of ff from step 0 to step 1 is 0.4, beyond 0.1",
        "REUSE of step 1, mean change of ff from step 1 to step 3 is 0.1, within 0.1",
        "REUSE of step 1, mean change of ff from step 1 to step 3 is 0.1, within 0.1",
        "STORE, SmoothCache skips at most 2 steps in a row",
        "REUSE of step 4, mean change of ff from step 4 to step 6 is 0.1, within 0.1",
        "REUSE of step 4, mean change of ff from step 4 to step 6 is 0.1, within 0.1",
        "COMPUTE, SmoothCache computes the last step",
    ]


def test_smoothcache_means_are_of_all_calibrated_layers_of_a_component():
    calibration = random_calibration(3, 20, blocks=4)
    schedule = smoothcache(calibration, 0.2)
    whole = schedule.resolve(calibration.sites)
    part = schedule.resolve(calibration.sites[2:5])
    assert np.array_equal(part.actions, whole.actions[:, 2:5])
    assert len(set(texts_of(whole)[::2])) == 1
    assert texts_of(whole)[0] != texts_of(whole)[1]


def test_smoothcache_of_blocks_takes_all_of_a_list_for_one_component():
    blocks = random_calibration(5, 15, blocks=1, ends=("0", "1", "2"))
    table = smoothcache(blocks, 0.25).resolve(blocks.sites)
    assert len(set(texts_of(table))) == 1
    reused = texts_of(table)[0].index("R")
    assert "mean change of blocks from step" in table.why(reused, 2)


def test_smoothcache_change_that_is_no_number_is_not_reused():
    calibration = random_calibration(1, 6, ages=1)
    calibration.change[3, 0] = np.nan
    pair = ("blocks.1.attn1", "blocks.1.ff")
    text, other = texts_of(smoothcache(calibration, 9.0, lookahead=1).resolve(pair))
    assert (text, other) == ("SRCSRC", "SRSRCC")


def test_smoothcache_refuses_another_model():
    schedule = smoothcache(random_calibration(0, 5), 0.1)
    schedule.refuse_other_model(MODEL)
    said = error_of(lambda: schedule.refuse_other_model(torch.nn.Linear(3, 2)))
    assert "the SmoothCache schedule was measured on another model" in said


# ---- cache-dit -----------------------------------------------------------------------------


def steps_of_bins(compute_bins, cache_bins, total):
    """By taking from two stacks in turn until there are enough."""
    ones, zeros, mask = list(compute_bins)[::-1], list(cache_bins)[::-1], []
    while len(mask) < total:
        if ones:
            mask += [1] * ones.pop()
        if zeros:
            mask += [0] * zeros.pop()
    return mask[:total]


BINS = st.lists(st.integers(0, 5), min_size=1, max_size=6)


@FEW
@given(st.data(), st.integers(1, 5), BINS, BINS)
def test_step_mask_of_bins_equals_two_stacks(data, head, compute_bins, cache_bins):
    compute_bins = [head, *compute_bins]
    total = data.draw(st.integers(1, sum(compute_bins) + sum(cache_bins)))
    mask = steps_of_bins(compute_bins, cache_bins, total)
    made = step_mask(compute_bins=compute_bins, cache_bins=cache_bins, num_steps=total)
    assert [int(letter != "R") for letter in text_of(made)] == mask
    assert made == step_mask(mask) == step_mask("".join(map(str, mask)))
    assert made == step_mask(np.array(mask), num_steps=total)
    assert made == step_mask([bool(bit) for bit in mask])


def test_step_mask_golden():
    slow = step_mask(compute_bins=[8, 3, 3, 2, 1, 1], cache_bins=[1, 2, 2, 2, 3])
    assert slow == step_mask("1111111101110011100110010001")
    assert text_of(slow) == "CCCCCCCSRCCSRRCCSRRCSRRSRRRC"
    assert slow.sites == "span"
    assert step_mask("10", sites="blocks.1:28").sites == "blocks.1:28"
    assert reasons_of(step_mask("10")) == [
        "STORE, the step mask has 1: compute",
        "REUSE of step 0, the step mask has 0: reuse",
    ]


# ---- MagCache ------------------------------------------------------------------------------


def magcache_run(ratios, threshold, max_skip, retention):
    """Which steps compute, by three accumulators of torch."""
    ratio, error, count, steps = 1.0, 0.0, 0, []
    for step, scale in enumerate(torch.tensor(ratios)):
        skip = False
        if step >= int(retention * len(ratios) + 0.5):
            ratio *= scale
            count += 1
            error += abs(1.0 - ratio)
            skip = bool(steps) and bool(error <= threshold) and count <= max_skip
            if not skip:
                ratio, error, count = 1.0, 0.0, 0
        if not skip:
            steps.append(step)
    return steps


RATIOS = st.lists(st.floats(0.8, 1.2), min_size=1, max_size=30)
HUNDREDTHS = st.lists(
    st.integers(90, 110).map(lambda n: n / 100), min_size=1, max_size=30
)  # that sums come to lie on the threshold


@settings(max_examples=150, deadline=None)
@given(
    RATIOS | HUNDREDTHS,
    st.floats(0, 0.5) | st.sampled_from([0.01, 0.02, 0.03, 0.06, 0.1]),
    st.integers(0, 6),
    st.floats(0, 1),
)
def test_magcache_equals_its_accumulators(ratios, threshold, max_skip, retention):
    given = {"threshold": threshold, "max_skip": max_skip, "retention": retention}
    schedule = magcache(ratios, **given)
    assert computed(schedule) == magcache_run(ratios, **given)
    assert schedule.sites == "span"


@FEW
@given(st.lists(st.floats(0.8, 1.2), min_size=3, max_size=8))
def test_magcache_error_that_is_the_threshold_is_skipped(ratios):
    """In single precision, as the hook sums it."""
    product, error = torch.tensor(1.0), torch.tensor(0.0)
    for ratio in torch.tensor(ratios):
        product = product * ratio
        error = error + (1 - product).abs()
    given = {"threshold": error.item(), "max_skip": 9, "retention": 0}
    schedule = magcache([1.0, *ratios], **given)
    assert text_of(schedule) == "S" + "R" * len(ratios)


def test_magcache_golden():
    ratios = [1, 0.99, 0.99, 0.99, 0.98, 0.9, 0.99, 0.99]
    assert text_of(magcache(ratios, retention=0)) == "SRRRCSRR"
    assert text_of(magcache(ratios, retention=0, max_skip=2)) == "SRRSRSRR"
    assert text_of(magcache(ratios, retention=0.5)) == "CCCSRSRR"
    assert text_of(magcache(ratios, threshold=0)) == "CCCCCCCC"
    assert text_of(magcache([1.0] * 6, retention=0, max_skip=9)) == "SRRRRR"


def test_magcache_says_why():
    ratios = [1, 1, 0.99, 0.99, 0.9]
    limits = "at most 0.06, 1 are skipped"
    assert reasons_of(magcache(ratios, max_skip=1)) == [
        "STORE, MagCache: the first 1 steps are computed, retention 0.2",
        f"REUSE of step 0, MagCache: summed error 0, 1 in a row; {limits}",
        f"STORE, MagCache: summed error 0.01, 2 in a row; {limits}",
        f"REUSE of step 2, MagCache: summed error 0.01, 1 in a row; {limits}",
        f"COMPUTE, MagCache: summed error 0.119, 2 in a row; {limits}",
    ]
    assert reasons_of(magcache(ratios, retention=0))[0] == "STORE, nothing is kept yet"


def test_magcache_takes_lists_arrays_and_tensors():
    ratios = [1.0, 0.97, 1.01, 0.96, 0.99]
    for kind in (tuple, np.array, torch.tensor, lambda x: torch.tensor(x).bfloat16()):
        made = magcache(kind(ratios), retention=0.1)
        assert made.num_steps == 5
    assert magcache(torch.tensor(ratios)) == magcache(np.array(ratios)) == magcache(ratios)


# ---- what holds of all ---------------------------------------------------------------------

RATIO = [1.0, 0.99, 0.97, 1.02, 0.95, 0.9]
MADE = [
    lambda: fora(6),
    lambda: taylorseer(6, 2, 2),
    lambda: step_mask("110100"),
    lambda: magcache(RATIO),
]


@pytest.mark.parametrize("make", MADE)
def test_rival_equal_ones_are_equal_and_hashable(make):
    assert make() == make()
    assert len({make(), make()}) == 1


@pytest.mark.parametrize("make", MADE)
def test_rival_table_is_verified_saved_and_loaded(make, tmp_path):
    table = make().resolve(["a", "b", "c"])
    table.save(tmp_path / "table.json")
    assert BranchTable.load(tmp_path / "table.json") == table


@pytest.mark.parametrize("make", MADE)
def test_rival_combines_with_another_schedule(make):
    schedule, none = make(), Schedule.compute_all(6)
    reused = text_of(schedule).translate(str.maketrans("FS", "RC"))
    assert text_of(schedule & none) == "CCCCCC"
    assert text_of(schedule | none).replace("S", "C") == reused


@pytest.mark.parametrize("make", [MADE[0], MADE[2], MADE[3]])
def test_rival_reuse_may_be_forecast(make):
    again = text_of(make().forecast(1))
    assert again.translate(str.maketrans("FS", "RC")) == text_of(make()).replace("S", "C")
    assert "F" in again


@pytest.mark.parametrize("make", MADE)
def test_rival_rule_answers_for_any_number_of_sites(make):
    schedule = make()
    sites = tuple("abcde")
    moment = Moment(4, 6, sites, np.ones(5, int))
    assert schedule.rule.may_reuse(moment).shape == (5,)
    assert len({schedule.rule.why(moment, site) for site in range(5)}) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fora(0), "num_steps must be at least 1, found 0"),
        (lambda: fora(9, 0), "every must be at least 1, found 0"),
        (lambda: fora(9, 2.0), "every must be an integer, found 2.0"),
        (lambda: taylorseer("9"), "num_steps must be an integer, found '9'"),
        (lambda: taylorseer(9, first=0), "first must be at least 1, found 0"),
        (lambda: taylorseer(9, order=-1), "order must be at least 0, found -1"),
        (lambda: taylorseer(9, order=4), "order must be at most 3, found 4"),
        (lambda: taylorseer(9, first=3, start=2), "start must be at least 3, found 2"),
        (lambda: step_mask(), "expected a mask, or both compute_bins and cache_bins"),
        (
            lambda: step_mask("10", compute_bins=[1], cache_bins=[1]),
            "expected a mask, or both compute_bins and cache_bins",
        ),
        (
            lambda: step_mask(compute_bins=[1]),
            "expected a mask, or both compute_bins and cache_bins",
        ),
        (
            lambda: step_mask(compute_bins=[1, -1], cache_bins=[1]),
            "each of compute_bins must be at least 0, found -1",
        ),
        (
            lambda: step_mask(compute_bins=[2], cache_bins=[1], num_steps=4),
            "the step mask has 3 steps but num_steps is 4",
        ),
        (
            lambda: step_mask("110", num_steps=2),
            "the step mask has 3 steps but num_steps is 2",
        ),
        (lambda: step_mask("10", num_steps=0), "num_steps must be at least 1, found 0"),
        (
            lambda: step_mask("slow"),
            "the step mask has 's' at step 0; expected 1 (compute) or 0 (reuse)",
        ),
        (
            lambda: step_mask([1, 2]),
            "the step mask has 2 at step 1; expected 1 (compute) or 0 (reuse)",
        ),
        (
            lambda: step_mask([1, 0.0]),
            "the step mask has 0.0 at step 1; expected 1 (compute) or 0 (reuse)",
        ),
        (
            lambda: step_mask("011"),
            "the step mask has 0 (reuse) at step 0, where nothing is kept yet; let it start "
            "with 1",
        ),
        (lambda: step_mask([]), "the step mask needs one 1 or 0 per step, found []"),
        (lambda: step_mask(7), "the step mask needs one 1 or 0 per step, found 7"),
        (lambda: magcache([]), "ratios must be numbers, one per step, found []"),
        (lambda: magcache([[1.0]]), "ratios must be numbers, one per step, found [[1.0]]"),
        (
            lambda: magcache([1.0, -0.5]),
            "ratios must be positive numbers, found -0.5 at step 1",
        ),
        (
            lambda: magcache([1.0, float("nan")]),
            "ratios must be positive numbers, found nan at step 1",
        ),
        (lambda: magcache(RATIO, num_steps=0), "num_steps must be at least 1, found 0"),
        (lambda: magcache(RATIO, threshold=-1), "threshold must be at least 0, found -1"),
        (
            lambda: magcache(RATIO, threshold=float("nan")),
            "threshold must be at least 0, found nan",
        ),
        (lambda: magcache(RATIO, threshold="x"), "threshold must be a number, found 'x'"),
        (lambda: magcache(RATIO, max_skip=-1), "max_skip must be at least 0, found -1"),
        (
            lambda: magcache(RATIO, retention=1.5),
            "retention is a share of the steps, at most 1, found 1.5",
        ),
        (
            lambda: smoothcache(random_calibration(0, 5), None),
            "threshold must be a number, found None",
        ),
        (
            lambda: smoothcache(random_calibration(0, 5), 0.1, lookahead=0),
            "lookahead must be at least 1, found 0",
        ),
        (
            lambda: smoothcache(random_calibration(0, 5), 0.1, lookahead=5),
            "lookahead=5, but the calibration knows ages up to 4; calibrate with max_age=5",
        ),
    ],
)
def test_rival_wrong_argument_named_with_what_was_found(make, message):
    assert error_of(make) == message


def test_magcache_ratios_that_are_no_numbers():
    said = error_of(lambda: magcache(["a", "b"]))
    assert said.startswith("ratios must be numbers, one per step: ")


def test_smoothcache_unknown_site():
    schedule = smoothcache(random_calibration(0, 5), 0.1)
    said = error_of(lambda: schedule.resolve(["blocks.9.attn1"]))
    assert "1 sites were not calibrated, such as blocks.9.attn1" in said
