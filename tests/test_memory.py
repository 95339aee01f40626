"""Memory: what is recalled, and what it is worth (invariant 48)."""

import math
import random

import pytest
from fakes import Babble

from minipost.tasks.recall import Recall
from minipost.test_time import memory


def test_the_window_and_the_nearest():
    found = memory.Memory()
    for k, question in enumerate(["code of the red box", "code of the red door",
                                  "code of the old box",
                                  "what opens the old door"]):
        found.write(question, str(k))
    assert [a for _, a in found.window(2)] == ["2", "3"]
    assert [a for _, a in found.nearest("the red box please", 1)] == ["0"]
    assert {a for _, a in found.nearest("an old thing", 2)} == {"2", "3"}
    assert found.nearest("green", 2) == found.episodes[-2:]     # nothing is alike: the latest
    assert memory.Memory().nearest("red box", 3) == memory.Memory().window(3) == []


def test_a_rare_word_weighs_more_than_a_common_one():
    found = memory.Memory()
    for k in range(9):
        found.write(f"code of the {k} lamp", "common")
    found.write("opens amber", "rare")
    assert found.nearest("code of the amber", 1) == [("opens amber", "rare")]


def test_a_life_is_told_after_it_has_answered():
    seen = []

    def answer(asked):
        seen.extend(asked)
        return [found[-1][1] if found else "?" for found, _ in asked]

    stream = [("red box", "1", False), ("old hut", "2", False), ("red box", "1", True)]
    life, = memory.live([stream], answer, "nearest", 2, random.Random(0))
    assert [e["said"] for e in life] == ["?", "1", "1"]
    assert seen == [([], "red box"), ([("red box", "1")], "old hut"),
                    ([("old hut", "2"), ("red box", "1")], "red box")]
    life, = memory.live([stream], answer, "no memory", 2, random.Random(0))
    assert [e["recalled"] for e in life] == [[], [], []]
    life, = memory.live([stream], answer, "shuffled", 2, random.Random(0))
    assert life[2]["recalled"] == [("old hut", "1"), ("red box", "2")]


def trials(n, k, remember):
    """The share of opened locks of n keys within k trials, over all choices of a uniform agent."""
    opened = total = 0
    for key in range(n):
        def walk(tried, chance):
            nonlocal opened, total
            if key in tried or len(tried) == k:
                opened, total = opened + chance * (key in tried), total + chance
                return
            options = [x for x in range(n) if not (remember and x in tried)]
            for x in options:
                walk([*tried, x], chance / len(options))
        walk([], 1.0)
    return opened / total


@pytest.mark.parametrize("k", [1, 2, 4])
def test_a_lock_opens_by_chance_k_of_n_with_memory(k):
    """The curves, and that `unlock` tells the agent what they presume."""
    n = 5
    assert trials(n, k, True) == pytest.approx(k / n)
    assert trials(n, k, False) == pytest.approx(1 - (1 - 1 / n) ** k)
    for remember, expected in ((True, k / n), (False, 1 - (1 - 1 / n) ** k)):
        rng, told = random.Random(0), []

        def choose(tried):
            told.extend(tried)
            return [rng.choice([x for x in range(n) if x not in failed]) for failed in tried]

        locks = [rng.randrange(n) for _ in range(4000)]
        made = memory.unlock(locks, choose, n, k, remember)
        share = sum(key in tried for key, tried in zip(locks, made)) / len(locks)
        assert share == pytest.approx(expected, abs=4 * math.sqrt(0.25 / 4000))
        assert all(len(tried) <= k and key not in tried[:-1] for key, tried in zip(locks, made))
        assert remember == any(told) or k == 1


def test_an_episode_and_a_lock_are_read_as_the_task_reads_them():
    """One rule for what is counted, what is shown and what `solve` calls right."""
    task, cfg, tried, earned = Recall(), memory.Config(length=6, things=2, lives=2), set(), set()
    codes = {right for life in memory.streams_of(task, 2, cfg) for _, right, _ in life}
    tools = Babble(task, [*(f"**{code}**." for code in sorted(codes)), "**4**.", "\u0665", " none"])
    for arm in memory.arms(task.heldout(9), tools, cfg):
        for right, working in zip(arm.result.rewards, arm.workings, strict=True):
            if "trials" in working:
                tried |= set(working["trials"])
                continue
            earned.add(right)
            last = working["episodes"][-1]
            assert right == (task.parse(last["said"]) == last["right"]) == last["good"]
            assert memory.outcome(working) == (f"{last['question']}?", bool(right))
    assert tried == {None, 4, *map(int, codes)} and earned == {0.0, 1.0}
    episode = {"question": "code of K7", "recalled": [], "said": "**47**.", "right": "47"}
    (life,) = memory.judged([[episode]], task)
    assert memory.outcome({"episodes": life}) == ("code of K7?", True)
    assert "right; written: 47" in memory.show({"episodes": life})[0]
