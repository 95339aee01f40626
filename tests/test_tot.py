"""Tree of thoughts on trees whose every step is known (invariant 46)."""

import math
import random
from types import SimpleNamespace

import pytest
from fakes import Babble, Digits, Echo, Maze
from hypothesis import given
from hypothesis import strategies as st

from minipost.tasks.arithmetic import Arithmetic
from minipost.tasks.base import Problem
from minipost.test_time import tot

STRATEGIES = ("breadth-first", "depth-first", "best-first", "a-star")


@given(st.integers(0, 999))
def test_without_bounds_every_strategy_is_exhaustive_search(seed):
    """Invariant 46."""
    maze = Maze(seed)
    for strategy in STRATEGIES:
        tree = maze.search(strategy)
        assert {node.text for node in tree if node.finished} == maze.endings
        assert tot.answers(tree)[0] == max(maze.endings, key=maze.worths.get)
        ranks = [maze.worths[text] for text in tot.answers(tree)]
        assert ranks == sorted(ranks, reverse=True)


@given(st.integers(0, 999))
def test_one_beam_of_one_sample_is_sampling_and_of_all_is_greedy(seed):
    maze, text = Maze(seed), ""
    tree = maze.search("breadth-first", width=1, branching=1)
    while text in maze.children:
        text += maze.children[text][0]
    assert [node.text for node in tree][-1] == text == tot.answers(tree)[0]
    tree, text = maze.search("breadth-first", width=1), ""
    found = []
    while text in maze.children:
        ways = [text + more for more in maze.children[text]]
        text = max(ways, key=maze.worths.get)
        found += [way for way in ways if ";" not in way[-1:]]
    assert tot.answers(tree)[0] == max(found, key=maze.worths.get)


@given(st.integers(0, 999), st.sampled_from(STRATEGIES), st.integers(1, 4), st.integers(1, 6))
def test_a_budget_of_expansions_is_kept_exactly(seed, strategy, width, expansions):
    maze = Maze(seed)
    tree = maze.search(strategy, width=width, expansions=expansions)
    asked = len(maze.asked)
    assert all(n == 3 for _, n in maze.asked)
    free = Maze(seed)
    free.search(strategy, width=width)
    assert asked == min(expansions, len(free.asked)) == sum(node.expanded for node in tree)
    assert len(maze.valued) == len(tree) - 1


@given(st.integers(0, 999), st.integers(1, 3))
def test_a_level_keeps_the_best(seed, width):
    maze = Maze(seed)
    tree = maze.search("breadth-first", width=width)
    for level in range(1, 4):
        nodes = [node for node in tree if node.depth == level]
        best = sorted(nodes, key=lambda node: -node.worth)[:width]
        assert [n for n in nodes if n.expanded] == [n for n in nodes if n in best
                                                    and not n.finished]


def test_depth_first_prunes_backtracks_and_stops_at_enough():
    ways = {"": ["a;", "b;", "c;"], "a;": ["x;", "y"], "b;": ["z"], "c;": ["w"], "a;x;": ["v"]}
    worths = {"a;": 0.9, "b;": 0.8, "c;": 0.2, "a;x;": 0.1, "a;y": 0.4, "b;z": 1.0, "c;w": 1.0}
    maze = SimpleNamespace(asked=[])

    def propose(texts, n):
        maze.asked += texts
        return [ways[text] for text in texts]

    def run(**options):
        maze.asked = []
        return tot.search([""], propose, lambda states: [worths.get(t, 0.0) for _, t in states],
                          mark=";", strategy="depth-first", width=1, branching=3, **options)[0]

    tree = run(threshold=0.5, enough=1.0)
    assert maze.asked == ["", "a;", "b;"]                       # a;x; and c; are pruned
    assert tot.answers(tree) == ["b;z", "a;y"]
    run(threshold=0.8)
    assert maze.asked == ["", "a;", "b;"]                       # b; is just good enough
    run(threshold=0.0)
    assert maze.asked == ["", "a;", "a;x;", "b;", "c;"]
    run(threshold=0.0, enough=0.4)
    assert maze.asked == ["", "a;"]


def test_best_first_goes_wherever_it_is_best():
    ways = {"": ["a;", "b;"], "a;": ["x;"], "b;": ["y;"], "a;x;": ["e"], "b;y;": ["f"]}
    worths = {"a;": 0.9, "b;": 0.5, "a;x;": 0.2, "b;y;": 0.4}
    asked = []

    def propose(texts, n):
        asked.extend(texts)
        return [ways[text] for text in texts]

    tot.search([""], propose, lambda states: [worths.get(t, 0.0) for _, t in states], mark=";",
               # which prunes depth-first only
               strategy="best-first", width=1, branching=2, threshold=0.45)
    assert asked == ["", "a;", "b;", "b;y;", "a;x;"]


class Priced(Maze):
    """A maze in which the first way on is sampled more often than the others, for A*."""

    def propose(self, texts, n):
        self.asked += [(text.removeprefix("?"), n) for text in texts]
        found = [self.children[text.removeprefix("?")] for text in texts]
        return [[ways[0]] * (n - len(ways)) + ways for ways in found]

    def costs(self, n):
        """{text: -log of how likely its steps were}"""
        found = {"": 0.0}
        for text in sorted(self.children, key=len):
            ways = self.children[text]
            for k, more in enumerate(ways):
                share = (n - len(ways) + 1 if k == 0 else 1) / n
                found[text + more] = found[text] - math.log(share)
        return found


@given(st.integers(0, 999))
def test_a_star_with_an_exact_heuristic_goes_straight_to_the_least_cost(seed):
    """With none it is Dijkstra's: it expands in the order of cost, and no fewer states."""
    def expanded(worths):
        maze = Priced(seed)
        maze.worths = worths
        tree = maze.search("a-star", branching=8, enough=None)
        return [text for text, _ in maze.asked], tree

    cost = Priced(seed).costs(8)
    order, tree = expanded(dict.fromkeys(cost, 1.0))
    assert [cost[text] for text in order] == sorted(cost[text] for text in order)
    assert all(math.isclose(node.cost, cost[node.text], abs_tol=1e-12) for node in tree)
    endings = Priced(seed).endings
    least = min(endings, key=lambda text: (cost[text], text))
    left = {text: min((cost[end] - cost[text] for end in endings if end.startswith(text)),
                      default=math.inf) for text in cost}
    straight, _ = expanded({text: math.exp(-h) for text, h in left.items()})
    ways = straight[: least.count(";") + 1]                     # the beginnings of the best answer
    assert ways == ["", *("".join(part + ";" for part in least.split(";")[:k + 1])
                          for k in range(least.count(";")))] or any(
        math.isclose(cost[end], cost[least]) for end in endings if end != least)


@given(st.integers(0, 999), st.sampled_from(["log-prob", "depth"]))
def test_a_star_answers_with_the_least_cost_and_looks_no_further(seed, how):
    """With a heuristic that is never more than the way left, on a tree."""
    maze, rng = Priced(seed), random.Random(seed)
    cost = maze.costs(8) if how == "log-prob" else {
        text: len(text.replace(";", "")) for text in Priced(seed).costs(8)}
    least = min(cost[end] for end in maze.endings)
    maze.worths = {text: math.exp(-rng.random() * (min(
        cost[end] for end in maze.endings if end.startswith(text)) - cost[text])) for text in cost}
    tree = maze.search("a-star", branching=8, enough=1.0, cost=how)
    assert math.isclose(cost[tot.answers(tree, "a-star")[0]], least)
    assert all(tot.f(node) <= least + 1e-9 for node in tree[1:] if node.expanded)


class Star(Babble):
    """Of the two right answers the deeper one is found first, and is the dearer one."""

    WAYS = {"": ["a;"] * 4 + ["b;"] * 4, "a;": ["x;"] * 8, "a;x;": ["e"] + ["f;"] * 7,
            "b;": ["g"] * 8, "a;x;f;": ["h"] * 8}

    def step(self, texts, n):
        self.tokens += n * len(texts)
        return [self.WAYS[text] for text in texts]

    def worth(self, states, votes, known):
        return [{"a;x;f;": 0.1, "b;": 0.9}.get(text, 1.0) for _, text in states]


def test_a_star_does_not_stop_at_the_first_right_answer():
    tools = Star(Echo(), ["e"])
    tools.mark = ";"
    cfg = tot.Config(strategy="a-star", branching=8)
    assert tot.solve([Problem("")], tools, cfg)[0] == ["b;g"]
    arms = {arm.name: arm for arm in tot.arms([Problem("", {"letter": "a"})], tools, cfg)}
    assert arms["a-star"].result.texts == ["b;g"]


class Doubtful(Star):
    """The likely answer has the least f, but its verdicts doubt it; the goal is dearer."""

    WAYS = {"": ["e"] * 7 + ["a;"], "a;": ["g"] * 8}

    def worth(self, states, votes, known):
        return [{"e": 0.9}.get(text, 1.0) for _, text in states]


def test_a_finished_answer_that_the_verdicts_doubt_is_no_goal_of_a_star():
    """It does not end the search, and is the answer only where no goal was found in time."""
    tools, found = Doubtful(Echo(), ["e"]), {}
    tools.mark = ";"
    for expansions in (1, 2):
        cfg = tot.Config(strategy="a-star", branching=8, expansions=expansions)
        found[expansions], (working,) = tot.solve([Problem("")], tools, cfg)
    assert found == {1: ["e"], 2: ["a;g"]}
    nodes = {node["text"]: tot.Node(**node) for node in working["tree"]}
    assert tot.f(nodes["e"]) < tot.f(nodes["a;"]) == tot.f(nodes["a;g"])


def test_a_star_pays_for_its_way_by_likelihood_or_by_steps():
    ways = {"": ["a;", "a;", "a;", "b;"], "a;": ["x;"] * 4, "b;": ["y;"] * 4,
            "a;x;": ["e"] * 4, "b;y;": ["f"] * 4}
    worths = {"a;": 0.2, "b;": 0.7, "a;x;": 0.2, "b;y;": 0.3}

    def run(**options):
        asked = []

        def propose(texts, n):
            asked.extend(texts)
            return [ways[text] for text in texts]

        tot.search([""], propose, lambda states: [worths.get(t, 0.0) for _, t in states], mark=";",
                   strategy="a-star", width=1, branching=4, **options)
        return asked

    # -log(3/4 0.2) = 1.90 before -log(1/4 0.7) = 1.74; then b;y; 2.59 waits for a; and a;x; 1.90
    assert run() == ["", "b;", "a;", "a;x;", "b;y;"]
    # 1 - log 0.7 = 1.36, then 1 - log 0.2 = 2.61 before 2 - log 0.3 = 3.20, and a;x; 3.61
    assert run(cost="depth") == ["", "b;", "a;", "b;y;", "a;x;"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_of_texts_that_come_to_the_same_state_the_best_is_expanded(strategy):
    ways = {"": ["a;", "b;", "c;"], "b;": ["e"], "c;": ["f"]}
    worths = {"a;": 0.3, "b;": 0.6, "c;": 0.1}
    asked = []

    def propose(texts, n):
        asked.extend(texts)
        return [ways[text] for text in texts]

    tree, = tot.search([""], propose, lambda states: [worths.get(t, 0.0) for _, t in states],
                       mark=";",
                       strategy=strategy, width=2, branching=3,
                       state=lambda k, text: {"a;": "s", "b;": "s"}.get(text, text))
    assert asked == ["", "b;", "c;"]
    assert {node.text for node in tree if node.finished} == {"b;e", "c;f"}


def test_problems_do_not_mix():
    one, two = Maze(1), Maze(2)

    def propose(texts, n):
        return [(one if t[0] == "1" else two).propose([t[1:]], n)[0] for t in texts]

    def value(states):
        return [(one, two)[k].worths[text] for k, text in states]

    trees = tot.search(["1", "2"], propose, value, mark=";", strategy="breadth-first", width=2,
                       branching=3)
    for tree, seed in zip(trees, (1, 2)):
        alone = Maze(seed).search("breadth-first", width=2)
        assert [vars(n) for n in tree] == [vars(n) for n in alone]


SUM = Arithmetic().pose("7+5-3")


def test_any_of_the_first_answers():
    tools, problems = Babble(Arithmetic(), ["x"]), [SUM, SUM, SUM]
    texts = [["Answer: 9", "Answer: 8"], ["Answer: 8", "Answer: 9"], ["Answer: 8"]]
    assert tot.any_of(problems, texts, tools, 2) == [1.0, 1.0, 0.0]
    assert tot.any_of(problems, texts, tools, 1) == [1.0, 0.0, 0.0]


def test_sampling_beside_a_tree_goes_on_until_it_has_cost_as_much_and_takes_the_best():
    problems = [Problem("5"), Problem("7")]
    tools = Digits("35" "62" "17" "94" "22" "88")               # two a round, 22 tokens
    found = list(tot.sampled(problems, tools, 1, {"few": 40, "many": 110}))
    assert [(arm.name, arm.tokens) for arm in found] == [
        ("few", 44), ("few, any of 5", 44), ("many", 110), ("many, any of 5", 110)]
    assert [arm.result.texts for arm in found] == [["6", "5"]] * 2 + [["9", "7"]] * 2
    assert [arm.result.rewards for arm in found] == [[0.0, 0.0]] * 2 + [[0.0, 1.0]] * 2


def test_a_problem_with_an_answer_that_is_sure_gets_no_further_ones():
    """Then the other has all tokens, and the end comes before the budget where both are sure."""
    problems = [Problem("5"), Problem("7")]
    found, _ = tot.sampled(problems, Digits("65" "2" "9" "2"), 1, {"many": 110}, sure=6)
    assert found.tokens == 44 and found.result.texts == ["6", "9"]      # 22, then 11 twice
    found, _ = tot.sampled(problems, Digits("65" "2" "4"), 1, {"few": 40}, sure=6)
    assert found.tokens == 44 and found.result.texts == ["6", "5"]
