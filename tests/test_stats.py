"""Intervals against values that others published or that follow by hand."""

import math
import random
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipost.measure.stats import (
    Score,
    Z,
    beyond_chance,
    bootstrap,
    clustered,
    interval,
    paired,
    pass_at,
    pass_at_k,
    share,
    t_bound,
    t_interval,
    vote,
    weighted,
)


def rewards(right, n):
    return [1.0] * right + [0.0] * (n - right)


@pytest.mark.parametrize("right, n, low, high", [
    (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611),
    (1, 29, 0.0061, 0.1718), (29, 29, 0.8830, 1.0),
])
def test_wilson_interval_as_published(right, n, low, high):
    """Newcombe 1998, Statistics in Medicine 17:857, method 3; the last mirrors his 0 of 29."""
    found = interval(rewards(right, n))
    assert (found.value, found.n) == (right / n, n)
    assert (found.low, found.high) == pytest.approx((low, high), abs=6e-5)


def test_interval_of_other_rewards():
    """Of 0, 0.25, 0.5, 0.75 and 1 the mean is 0.5 and its standard error sqrt(0.15625 / 5)."""
    few = [0.0, 0.25, 0.5, 0.75, 1.0]
    assert interval(few) == t_interval(few)
    assert interval(few).high == pytest.approx(0.5 + 2.7764 * 0.03125**0.5, abs=1e-4)
    half = interval(few * 6).high - 0.5                 # of thirty values it is the normal one
    assert half == pytest.approx(Z * (30 * 0.125 / 29 / 30) ** 0.5)


def test_one_value_has_no_interval_without_width_in_a_text():
    assert f"{interval([0.375])}" == "0.375 [of one value]"
    assert f"{paired([0.25], [0.5]):+}" == "+0.250 [of one value]"
    assert f"{interval([1.0])}" == "1.000 [0.207, 1.000]"
    assert f"{interval([0.375] * 2)}" == "0.375 [0.375, 0.375]"


def test_a_few_gains_are_never_more_than_chance():
    """Not even equal ones: that five have the same sign has the chance 2 / 2^5, of six 2 / 2^6."""
    for n, sign in ((1, 0), (2, 0), (5, 0), (6, 1), (400, 1)):
        assert beyond_chance(asdict(paired([0.25] * n, [0.5] * n))) == sign
        assert beyond_chance(asdict(paired([0.5] * n, [0.25] * n))) == -sign
    assert beyond_chance(asdict(paired([0.0] * 5, [1.0] * 5))) == 0
    assert beyond_chance(asdict(paired([0.5, 0.25] * 9, [0.25, 0.5] * 9))) == 0


@pytest.mark.parametrize("levels", [(0.0, 1.0), (-1.0, 0.1), (0.0, 0.5, 1.0), (0.3,),
                                    (0.0, 0.1, 1.0, 1.1)])
def test_where_nothing_changes_nothing_is_beyond_chance(levels):
    """For every number of problems: rounding may not put an end of the interval beyond 0."""
    for n in range(1, 1200):
        same = [levels[k % len(levels)] for k in range(n)]
        found = paired(same, same)
        assert found.value == 0 and found.low <= 0 <= found.high
        assert found.low == pytest.approx(-found.high)
        assert (found.low < 0) == (len({*same}) > 1 or {*same} <= {0.0, 1.0})
        assert interval([0.0] * n).low == 0 and interval([1.0] * n).high == 1


@pytest.mark.parametrize("levels", [(0.0, 1.0), (0.0, 0.5, 1.0), (0.0, 0.1, 1.1)])
@pytest.mark.parametrize("sign", [1, -1])
def test_fewer_than_six_changes_are_no_effect(levels, sign):
    """Of six all in one direction the chance is 2 / 2^6; the others do not change."""
    for n in (6, 20, 100, 400):
        for k in range(7):
            before = [levels[j % len(levels)] for j in range(n - k)] + [levels[-2]] * k
            after = before[: n - k] + [levels[-1]] * k
            found = paired(*(before, after)[::sign])
            assert beyond_chance(asdict(found)) == (sign if k >= 6 else 0)
            assert found.value == pytest.approx(sign * k * (levels[-1] - levels[-2]) / n)


@pytest.mark.parametrize("n", [50, 100, 200])
@pytest.mark.parametrize("redrawn", [2, 5, 20])
def test_chance_alone_is_seldom_called_an_effect(n, redrawn):
    """Rewards of three levels, some of which are drawn anew: at most 7 in 100 look like a gain."""
    rng, seen = random.Random(n + redrawn), 0
    for _ in range(600):
        before = rng.choices((0.0, 0.5, 1.0), k=n)
        after = [rng.choice((0.0, 0.5, 1.0)) if rng.random() < redrawn / n else r for r in before]
        seen += beyond_chance(asdict(paired(before, after))) != 0
    assert seen <= 0.07 * 600


@pytest.mark.parametrize("first, second, low, high", [
    ((56, 70), (48, 80), 0.0524, 0.3339), ((9, 10), (3, 10), 0.1705, 0.8090),
    ((6, 7), (2, 7), 0.0582, 0.8062), ((5, 56), (0, 29), -0.0381, 0.1926),
    ((10, 10), (0, 10), 0.6075, 1.0),
])
def test_difference_of_two_shares_as_published(first, second, low, high):
    """Newcombe 1998, Statistics in Medicine 17:873, method 10."""
    scores = [interval(rewards(*first)), interval(rewards(*second))]
    found = weighted(scores, [1, -1])
    assert found.value == pytest.approx(first[0] / first[1] - second[0] / second[1])
    assert (found.low, found.high) == pytest.approx((low, high), abs=6e-5)
    assert found.n == first[1] + second[1]
    turned = weighted(scores, [-1, 1])
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))


def test_mean_of_scores_by_hand():
    """Halves of (0.5, 0.2 below, 0.1 above) and (0.7, 0.1 below, 0.3 above), in quadrature."""
    found = weighted([Score(0.5, 0.3, 0.6, 4), Score(0.7, 0.6, 1.0, 6)], [0.5, 0.5])
    assert found == Score(pytest.approx(0.6), pytest.approx(0.6 - 0.05**0.5 / 2),
                          pytest.approx(0.6 + 0.1**0.5 / 2), 10)


@pytest.mark.parametrize("df, bound", [
    (1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (5, 2.5706), (9, 2.2622), (10, 2.2281),
    (29, 2.0452), (100, 1.9840), (10_000, 1.9602),
])
def test_t_bound_as_tabulated(df, bound):
    assert t_bound(df) == pytest.approx(bound, abs=6e-5)


def test_t_interval_by_hand():
    """Of 1, 2 and 3 the mean is 2, the deviation 1, and t with two degrees of freedom 4.3027."""
    found = t_interval([1.0, 2.0, 3.0])
    assert (found.value, found.n) == (2.0, 3)
    assert (found.low, found.high) == pytest.approx((2 - 2.48414, 2 + 2.48414), abs=1e-4)
    two = t_interval([0.4, 0.6])  # half of their distance is both deviation and half-width / t
    assert two.high == pytest.approx(0.5 + 12.7062 * 0.1, abs=1e-4)


def test_t_bounds_at_other_levels():
    """As tabulated: 63.657 is at 99% for one degree, 2.660 for sixty."""
    for df, level, bound in ((1, 0.99, 63.657), (2, 0.99, 9.925), (60, 0.99, 2.660),
                             (3, 0.90, 2.353)):
        assert t_bound(df, level) == pytest.approx(bound, abs=6e-4)
    found = t_interval([0.4, 0.6], 0.99)
    assert found.high == pytest.approx(0.5 + 0.1 * t_bound(1, 0.99))


def test_values_of_a_cluster_count_once():
    """Repeated values move no end; values that differ within clusters alone have no width."""
    once = t_interval([0.1, 0.4, 0.7])
    found = clustered([0.1, 0.4, 0.7] * 5, "abc" * 5)
    assert (found.value, found.low, found.high) == pytest.approx((once.value, once.low, once.high))
    apart = clustered([0.1, 0.4, 0.7], "abc", 0.99)
    assert apart.high - apart.value == pytest.approx(
        t_interval([0.1, 0.4, 0.7], 0.99).high - once.value)
    within = clustered([1.0, 0.0, 1.0, 0.0], "aabb")
    assert within.low == pytest.approx(within.high) == pytest.approx(0.5) and within.n == 4


def test_t_interval_covers_the_mean_95_times_in_100():
    rng = random.Random(0)
    samples = [[rng.gauss(0, 1) for _ in range(3)] for _ in range(4000)]
    covered = sum(s.low <= 0 <= s.high for s in map(t_interval, samples)) / len(samples)
    assert covered == pytest.approx(0.95, abs=0.01)


def test_bootstrap_of_a_mean_is_the_normal_interval_of_a_large_sample():
    rng = random.Random(1)
    rows = [rng.gauss(3, 2) for _ in range(400)]
    found, normal = bootstrap(lambda r: sum(r) / len(r), rows, rounds=2000), interval(rows)
    assert (found.value, found.n) == (normal.value, 400)
    half = normal.high - normal.value
    assert found.low == pytest.approx(normal.low, abs=0.1 * half)
    assert found.high == pytest.approx(normal.high, abs=0.1 * half)


def test_bootstrap_takes_the_percentiles_of_its_rounds():
    """A statistic that counts its calls 0, 1, 2, ...: the interval cuts 2.5% off either end."""
    calls = iter(range(1000))
    found = bootstrap(lambda rows: next(calls), [0], rounds=201)
    assert found == Score(201, 5, 195, 1)


def test_bootstrap_draws_whole_rows_and_the_same_ones_each_time():
    rows = [(k, k) for k in range(20)]
    sizes = set()

    def statistic(picked):
        assert all(a == b for a, b in picked)
        sizes.add(len(picked))
        return sum(a for a, _ in picked)

    assert bootstrap(statistic, rows) == bootstrap(statistic, rows)
    assert sizes == {20}
    assert bootstrap(lambda picked: 7.0, rows) == Score(7.0, 7.0, 7.0, 20)


def test_a_paired_gain_by_hand():
    """Of 10 problems 4 rose and 1 fell: (4.5 - 1.5) / 12 and z sqrt(6 - 9 / 12) / 12 around it."""
    before = [0.0] * 4 + [1.0] + [0.0] * 3 + [1.0] * 2
    after = [1.0] * 4 + [0.0] + [0.0] * 3 + [1.0] * 2
    found = paired(before, after)
    assert found.value == pytest.approx(0.3) and found.n == 10
    assert (found.low + found.high) / 2 == pytest.approx(0.25)
    assert (found.high - found.low) / 2 == pytest.approx(1.959963985 * math.sqrt(5.25) / 12)
    still = paired(before, before)
    assert still.value == 0 and still.high == -still.low > 0.1
    back = paired(after, before)
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low))


def test_other_rewards_have_the_interval_of_their_gains():
    before, after = [0.5, 0.0, 1.0], [1.0, 0.25, 0.5]
    assert paired(before, after) == interval([0.5, 0.25, -0.5])


def test_a_paired_interval_holds_the_true_gain_about_95_times_in_100():
    rng, held = random.Random(0), 0
    for _ in range(1000):
        pairs = [rng.choices(((0.0, 1.0), (1.0, 0.0), (1.0, 1.0)), (3, 1, 6))[0] for _ in range(60)]
        found = paired(*map(list, zip(*pairs)))
        held += found.low <= 0.2 <= found.high
    assert 925 <= held <= 975


ANSWERS = st.lists(st.sampled_from([None, "a", "b", "c"]), min_size=1, max_size=9)


@given(ANSWERS, st.randoms(use_true_random=False))
def test_a_vote_counts_what_is_stated_in_any_order(answers, rng):
    count = vote(answers)
    assert dict(count) == {a: answers.count(a) for a in answers if a is not None}
    assert [n for _, n in count] == sorted((n for _, n in count), reverse=True)
    mixed = rng.sample(answers, len(answers))
    assert dict(vote(mixed)) == dict(count)
    if len(count) == 1 or count and count[0][1] > count[1][1]:
        assert vote(mixed)[0] == count[0]
    ties = [a for a, n in count if n == count[0][1]]
    if ties:
        # of equals, whoever was stated first
        assert count[0][0] == min(ties, key=answers.index)


@given(ANSWERS, st.lists(st.floats(0.1, 5), min_size=9, max_size=9))
def test_weights_add_up_by_answer(answers, weights):
    weights = weights[: len(answers)]
    for answer, total in vote(answers, weights):
        assert total == pytest.approx(sum(w for a, w in zip(answers, weights) if a == answer))


@pytest.mark.parametrize("n", [1, 4, 7])
def test_pass_at_k_is_unbiased_and_rises_with_k(n):
    p = 0.35
    for k in range(1, n + 1):
        mean = sum(math.comb(n, c) * p**c * (1 - p) ** (n - c) * pass_at_k(n, c, k)
                   for c in range(n + 1))
        assert mean == pytest.approx(1 - (1 - p) ** k)
    for c in range(n + 1):
        curve = [pass_at_k(n, c, k) for k in range(1, n + 1)]
        assert curve == sorted(curve) and curve[0] == pytest.approx(c / n)


def test_pass_at_a_known_chance():
    """By hand, and where (1 - chance) rounds to 1: the expansion k p - k (k - 1) p^2 / 2."""
    assert pass_at(0.25, 2) == pytest.approx(7 / 16, rel=1e-14)
    assert pass_at(0.0, 10**6) == 0 and pass_at(1.0, 1) == 1
    p, k = 1e-17, 10**6
    assert pass_at(p, k) == pytest.approx(k * p - k * (k - 1) * p * p / 2, rel=1e-14)


def test_a_share_is_within_its_bounds():
    high, low = share([1.0] * 49 + [0.5]), share([0.0] * 49 + [0.5])
    assert high.value == 0.99 and high.high == 1.0 and high.low > 0.9
    assert low.low == 0.0 and low.value == 0.01
    assert share([0.5, 0.25, 0.75] * 3) == interval([0.5, 0.25, 0.75] * 3)


def test_a_share_near_one_is_no_surer_than_one_that_is_one():
    """pass@k rises with k for each problem, and so do the mean and both ends."""
    chances = [0.02, 0.1, 0.3] * 10
    ends = [share([pass_at(p, k) for p in chances]) for k in (1, 8, 64, 512, 10**6)]
    for name in ("low", "value", "high"):
        assert (found := [getattr(end, name) for end in ends]) == sorted(found), name
    assert ends[-1].low == pytest.approx(interval([1.0] * 30).low)
    assert share([1e-9] * 30).high == pytest.approx(interval([0.0] * 30).high)


def test_a_weight_of_a_reward_scales_its_intervals():
    right, wrong = [1.0] * 7 + [0.0] * 3, [0.0] * 8 + [1.0] * 2
    half, none = [[0.5 * r for r in side] for side in (right, wrong)]
    for got, one in ((interval(half), interval(right)), (paired(none, half), paired(wrong, right)),
                     (paired([0.0] * 9, [0.5] * 9), paired([0.0] * 9, [1.0] * 9))):
        assert (got.value, got.low, got.high) == pytest.approx(
            (one.value / 2, one.low / 2, one.high / 2))
    below = interval([r - 1 for r in right])
    assert (below.low, below.high) == pytest.approx((interval(right).low - 1,
                                                     interval(right).high - 1))


def test_a_gain_of_accuracy_is_at_most_one():
    found = paired([0.0] * 400, [1.0] * 400)
    assert found.value == found.high == 1.0 and 0.98 < found.low < 1.0
    assert paired([1.0] * 400, [0.0] * 400).low == -1.0
