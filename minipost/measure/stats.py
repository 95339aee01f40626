"""Means with 95% intervals, for every reported number, and votes."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

Z = 1.959963984540054  # two-sided 95%
MANY = 30   # of so many values and more Z stands for Student's t, which is 4% larger at most
FEWEST = 6  # with fewer gains even one sign of all is no more than chance: 2 / 2^5 > 0.05


@dataclass(frozen=True)
class Score:
    """A mean over n problems with its 95% interval."""

    value: float
    low: float
    high: float
    n: int

    def __format__(self, spec):
        """With "+", signs are shown: it is a difference.  A single value may have no interval."""
        if self.n < 2 and self.low == self.high:
            return f"{self.value:{spec}.3f} [of one value]"
        return " ".join((f"{self.value:{spec}.3f}",
                         f"[{self.low:{spec}.3f}, {self.high:{spec}.3f}]"))

    def __str__(self):
        return format(self, "")

    def effect(self):
        """A difference as text, marked where its interval holds 0."""
        return f"{self:+}" + (" (no effect seen)" if self.low <= 0 <= self.high else "")


def interval(rewards):
    """Mean and 95% interval: Wilson's for two levels, such as right and wrong, else `normal`."""
    n, mean = len(rewards), sum(rewards) / len(rewards)
    if two_levels(levels := {*rewards}, n):
        return scaled(interval([float(r == max(levels)) for r in rewards]), levels)
    if set(rewards) <= {0.0, 1.0}:
        middle = (mean + Z * Z / (2 * n)) / (1 + Z * Z / n)
        half = Z / (1 + Z * Z / n) * math.sqrt(mean * (1 - mean) / n + Z * Z / (4 * n * n))
        return Score(mean, max(0.0, middle - half) if mean > 0 else 0.0,    # which rounding misses
                     min(1.0, middle + half) if mean < 1 else 1.0, n)
    return normal(rewards)


def normal(values):
    """Mean and normal interval: Student's of fewer than MANY; of a single value without a width."""
    n, mean = len(values), sum(values) / len(values)
    variance = sum((v - mean) ** 2 for v in values) / max(1, n - 1)
    half = (t_bound(n - 1) if 1 < n < MANY else Z) * math.sqrt(variance / n)
    return Score(mean, mean - half, mean + half, n)


def two_levels(levels, n):
    """Whether n rewards are right and wrong with a weight or a penalty; few may be so by chance."""
    return len(levels) == 2 and levels != {0.0, 1.0} and n >= FEWEST


def scaled(found, levels):
    """The Score of rewards of two levels, from that of how many have the higher one."""
    low, size = min(levels), max(levels) - min(levels)
    return Score(low + size * found.value, low + size * found.low, low + size * found.high, found.n)


def beyond_chance(gain):
    """1 or -1 where a gain, a dict like a Score, is above or below 0 by more than chance, else 0.

    With fewer than FEWEST problems it is 0, whatever the interval.
    """
    return 0 if gain["n"] < FEWEST else (gain["low"] > 0) - (gain["high"] < 0)


def share(values):
    """The mean of numbers within 0..1, such as problems' means over seeds, with its interval.

    Near 0 and 1 values hardly differ, and tell little of problems that were not asked.  So the
    interval is no narrower than Wilson's would be for a mean of 0 or 1 at that end.
    """
    found = interval(values) if {*values} <= {0.0, 1.0} else normal(values)
    kept = len(values) / (len(values) + Z * Z)
    return Score(found.value, max(0.0, min(found.low, kept * found.value)),
                 min(1.0, max(found.high, 1 - kept * (1 - found.value))), found.n)


def vote(answers, weights=None):
    """[(answer, weight)], the heaviest first.  None has no vote.  Ties keep the answers' order."""
    total = {}
    for answer, weight in zip(answers, weights or [1.0] * len(answers), strict=True):
        if answer is not None:
            total[answer] = total.get(answer, 0.0) + weight
    return sorted(total.items(), key=lambda entry: -entry[1])


def winner(answers, weights=None):
    """(the index of the first of the answers that won, the votes); 0 where nobody voted."""
    count = vote(answers, weights)
    return (answers.index(count[0][0]) if count else 0), count


# A solution's chance, from those of its steps.
AGGREGATES: dict[str, Callable] = {
    "min": min, "last": lambda chances: chances[-1], "product": math.prod}


def beginnings(chances, going, how="min"):
    """One chance for each beginning of an answer, by a process reward model's chances of it.

    chances: of each a list of its steps' and, last, that of the whole, as Texts.verified gives
    them.  The whole's counts where the answer is finished.  going: whether it is not.
    """
    return [AGGREGATES[how](found[:-1] or found if on else found)
            for found, on in zip(chances, going, strict=True)]


def pass_at_k(n, c, k):
    """The unbiased chance that k samples hold a right one, from c right among n drawn (k <= n).

    1 - C(n - c, k) / C(n, k)                    (Chen et al. 2021, arxiv.org/abs/2107.03374)
    """
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def pass_at(chance, k):
    """The chance that k samples hold a right one, where each is right with this chance.

    1 - (1 - chance)^k, exact for the smallest chance and the largest k too.
    """
    return 1.0 if chance >= 1 else -math.expm1(k * math.log1p(-chance))


def paired(before, after):
    """The mean gain on the same problems, with its 95% interval.

    For right and wrong answers, and other rewards of two levels, it is `changed`, also where all
    gains are equal, as where nothing changes; for others it is `normal`, or `interval` where every
    problem changes.  (Where some do not, gains of two levels, 0 and another, have one sign by
    chance; Wilson's interval of them would never hold 0.)  It holds 0 where fewer than FEWEST
    problems change, for their signs can be chance too.
    """
    gains = [b - a for a, b in zip(before, after, strict=True)]
    levels, n = {*before, *after}, len(gains)
    size = max(levels) - min(levels)
    if levels <= {0.0, 1.0} or two_levels(levels, n):
        found = changed(sum(g > 0 for g in gains), sum(g < 0 for g in gains), n, size or 1.0)
    elif n > 1 and len({*gains}) == 1:
        gain = gains[0]
        found = changed(n * (gain > 0), n * (gain < 0), n, abs(gain) or size)
    else:
        found = normal(gains) if 0 in gains else interval(gains)
    if n > 1 and sum(g != 0 for g in gains) < FEWEST:
        found = replace(found, low=min(found.low, 0.0), high=max(found.high, 0.0))
    return found


def changed(rose, fell, n, size):
    """The mean gain of n problems of which some rose and some fell by `size`, with its interval.

    That of Agresti & Min 2005 (Statistics in Medicine 24:729): half a problem more in each cell of
    the table of before and after, so there is an interval even if nothing changes.
    """
    middle, m = (rose - fell) / (n + 2), n + 2
    half = Z * math.sqrt(rose + fell + 1 - (rose - fell) ** 2 / m) / m
    low, high = max(-1.0, middle - half), min(1.0, middle + half)  # a gain is within them
    return Score(size * (rose - fell) / n, size * low, size * high, n)


def bootstrap(statistic, rows, rounds=200):
    """A statistic of rows with its percentile 95% interval, from a fixed seed."""
    rng = random.Random(0)
    values = sorted(statistic(rng.choices(rows, k=len(rows))) for _ in range(rounds))
    return Score(statistic(rows), values[round(0.025 * (rounds - 1))],
                 values[round(0.975 * (rounds - 1))], len(rows))


def weighted(scores, weights):
    """A weighted sum of independent scores, with an interval made of their intervals.

    The distances to the lower ends add up in quadrature, and so do those to the upper ends (Zou,
    Huang & Zhang 2009, Computational Statistics & Data Analysis 53:1080).  With weights 1 and -1
    this is Newcombe's interval of a difference.
    """
    value = sum(w * s.value for w, s in zip(weights, scores, strict=True))
    ends = [(w * s.value, *sorted((w * s.low, w * s.high))) for w, s in zip(weights, scores)]
    return Score(value, value - math.hypot(*(middle - low for middle, low, _ in ends)),
                 value + math.hypot(*(high - middle for middle, _, high in ends)),
                 sum(s.n for s in scores))


def t_interval(values, level=0.95):
    """Mean of at least two values, such as those of several seeds, with Student's interval."""
    n, mean = len(values), sum(values) / len(values)
    variance = sum((v - mean) ** 2 for v in values) / (n - 1)
    half = t_bound(n - 1, level) * math.sqrt(variance / n)
    return Score(mean, mean - half, mean + half, n)


def clustered(values, clusters, level=0.95):
    """The mean of values that are alike within their clusters, with its interval.

    It is Student's over the clusters: what counts as independent is a cluster's summed distance
    to the mean (Liang & Zeger 1986, Biometrika 73:13).  clusters: one of each value, two at least.
    """
    n, mean, away = len(values), sum(values) / len(values), dict.fromkeys(clusters, 0.0)
    for value, cluster in zip(values, clusters, strict=True):
        away[cluster] += value - mean
    free = len(away) - 1
    variance = (1 + 1 / free) * sum(a * a for a in away.values()) / n**2
    half = t_bound(free, level) * math.sqrt(variance)
    return Score(mean, mean - half, mean + half, n)


def t_bound(df, level=0.95):
    """The t with this share of Student's distribution with df degrees of freedom within -t..t."""
    low, high = 0.0, 20.0
    while t_inside(high, df) < level:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if t_inside(middle, df) < level else (low, middle)
    return high


def t_inside(t, df):
    """P(|T| < t), by the finite sums of Abramowitz & Stegun 26.7.3 and 26.7.4."""
    angle, odd = math.atan(t / math.sqrt(df)), df % 2
    term, total = math.cos(angle) ** odd, 0.0
    for k in range(1, df // 2 + 1):
        total += term
        term *= (2 * k - 1 + odd) / (2 * k + odd) * math.cos(angle) ** 2
    total *= math.sin(angle)
    return (angle + total) * 2 / math.pi if odd else total
