"""The test-time methods against exact laws, with models that are functions of texts."""

import itertools
import math
import random
import re
from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import given, settings, strategies as st

from minipost.errors import MinipostError
from minipost.measure.stats import vote
from minipost.measure.texts import Texts
from minipost.tasks.arithmetic import Arithmetic
from minipost.tasks.base import Problem, Task
from minipost.tasks.countdown import Countdown
from minipost.tasks.recall import Recall
from minipost.test_time import (
    best_of_n, cot, graph_of_thoughts, mcts, memory, self_consistency, self_feedback, tot,
)

settings.register_profile("minipost", deadline=None, max_examples=40)
settings.load_profile("minipost")

ANSWERS = st.lists(st.sampled_from([None, "a", "b", "c"]), min_size=1, max_size=9)


# ---- votes (invariant 43)

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
        assert count[0][0] == min(ties, key=answers.index)      # of equals, whoever was stated first


@given(ANSWERS, st.lists(st.floats(0.1, 5), min_size=9, max_size=9))
def test_weights_add_up_by_answer(answers, weights):
    weights = weights[: len(answers)]
    for answer, total in vote(answers, weights):
        assert total == pytest.approx(sum(w for a, w in zip(answers, weights) if a == answer))


def test_one_sample_elects_itself_and_nothing_stated_elects_the_first():
    assert self_consistency.elect(["x1"], str)[0] == "x1"
    text, count = self_consistency.elect(["no", "idea"], lambda text: None)
    assert (text, count) == ("no", [])
    text, _ = self_consistency.elect(["p b", "q a", "r a"], lambda text: text[-1])
    assert text == "q a"


def elected_right(p, n):
    """The chance that a vote of n answers is right, each right with chance p, by enumeration."""
    total = 0.0
    for answers in itertools.product((True, False), repeat=n):
        chance = math.prod(p if right else 1 - p for right in answers)
        total += chance * (vote(answers)[0][0] is True)
    return total


@pytest.mark.parametrize("p, sign", [(0.6, 1), (0.4, -1)])
def test_condorcet_both_ways(p, sign):
    curve = [elected_right(p, n) for n in (1, 3, 5, 7, 9)]
    assert curve[0] == pytest.approx(p)
    assert all(sign * (b - a) > 0.01 for a, b in zip(curve, curve[1:]))
    law = sum(math.comb(9, k) * p**k * (1 - p) ** (9 - k) for k in range(5, 10))
    assert curve[-1] == pytest.approx(law)


# ---- the best of n (invariants 44, 45)

LAW = {0.0: 0.2, 1.0: 0.5, 2.5: 0.3}                            # a score and its chance


def best_law(n):
    """The exact law of the best of n scores, by enumeration."""
    law = Counter()
    for scores in itertools.product(LAW, repeat=n):
        law[scores[best_of_n.best(scores)]] += math.prod(LAW[s] for s in scores)
    return law


@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_best_of_n_has_the_nth_power_of_the_distribution_and_its_kl_is_bounded(n):
    law = best_law(n)
    for score in LAW:
        below = sum(chance for s, chance in LAW.items() if s <= score)
        assert sum(c for s, c in law.items() if s <= score) == pytest.approx(below**n)
    kl = sum(chance * math.log(chance / LAW[score]) for score, chance in law.items())
    assert kl <= math.log(n) - (n - 1) / n + 1e-12
    assert n == 1 or kl > 0.1


def test_against_an_exact_checker_it_is_pass_at_n():
    p, chances = 0.3, []
    for n in (1, 2, 4, 6):
        total = 0.0
        for right in itertools.product((1.0, 0.0), repeat=n):
            total += right[best_of_n.best(right)] * math.prod(p if r else 1 - p for r in right)
        assert total == pytest.approx(1 - (1 - p) ** n)
        chances.append(total)
    assert chances == sorted(chances)


@pytest.mark.parametrize("n", [1, 4, 7])
def test_pass_at_k_is_unbiased_and_rises_with_k(n):
    p = 0.35
    for k in range(1, n + 1):
        mean = sum(math.comb(n, c) * p**c * (1 - p) ** (n - c) * best_of_n.pass_at_k(n, c, k)
                   for c in range(n + 1))
        assert mean == pytest.approx(1 - (1 - p) ** k)
    for c in range(n + 1):
        curve = [best_of_n.pass_at_k(n, c, k) for k in range(1, n + 1)]
        assert curve == sorted(curve) and curve[0] == pytest.approx(c / n)


def test_the_first_of_equal_scores_is_best_and_nan_never():
    assert best_of_n.best([1.0, 3.0, 3.0]) == 1
    assert best_of_n.best([math.nan, -5.0]) == 1
    assert best_of_n.best([-math.inf, -math.inf]) == 0


def test_support_counts_those_who_agree():
    rows = [["a", None, "b", "a"]]
    assert best_of_n.support(rows) == [[2.0, -math.inf, 1.0, 2.0]]
    assert best_of_n.support(rows, [[0.5, 9.0, 2.0, 0.25]]) == [[0.75, -math.inf, 2.0, 0.75]]


# ---- trees whose every step is known

class Maze:
    """Answers of up to `depth` letters; children(text) are all ways on, a fixed worth for each text."""

    def __init__(self, seed, depth=3, branch=3):
        self.rng, self.depth, self.branch = random.Random(seed), depth, branch
        self.children, self.worths, self.asked, self.valued = {}, {}, [], []
        self.grow("")

    def grow(self, text):
        letters = self.rng.sample("abcdef", self.rng.randint(1, self.branch))
        last = text.count(";") == self.depth - 1
        nexts = [c if last or self.rng.random() < 0.2 else c + ";" for c in letters]
        self.children[text] = nexts
        for more in nexts:
            self.worths[text + more] = self.rng.random()
            if ";" in more:
                self.grow(text + more)

    def propose(self, texts, n):
        """n continuations, all the ways on among them where n is large enough."""
        self.asked += [(text, n) for text in texts]
        found = [self.children[text.removeprefix("?")] for text in texts]
        return [[ways[k % len(ways)] for k in range(n)] for ways in found]

    def value(self, states):
        self.valued += states
        return [self.worths.get(text, 0.0) for _, text in states]

    @property
    def endings(self):
        return {t + more for t, nexts in self.children.items() for more in nexts if ";" not in more}

    def search(self, strategy, **options):
        options = {"width": 99, "copies": 3, "threshold": -math.inf, **options}
        tree, = tot.search(["?"], self.propose, self.value, mark=";", strategy=strategy, **options)
        return tree


STRATEGIES = ("breadth-first", "depth-first", "best-first")


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
    tree = maze.search("breadth-first", width=1, copies=1)
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
        assert [n for n in nodes if n.expanded] == [n for n in nodes if n in best and not n.finished]


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
                          mark=";", strategy="depth-first", width=1, copies=3, **options)[0]

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
               strategy="best-first", width=1, copies=2, threshold=0.45)  # which prunes depth-first only
    assert asked == ["", "a;", "b;", "b;y;", "a;x;"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_of_texts_that_come_to_the_same_state_the_best_is_expanded(strategy):
    ways = {"": ["a;", "b;", "c;"], "b;": ["e"], "c;": ["f"]}
    worths = {"a;": 0.3, "b;": 0.6, "c;": 0.1}
    asked = []

    def propose(texts, n):
        asked.extend(texts)
        return [ways[text] for text in texts]

    tree, = tot.search([""], propose, lambda states: [worths.get(t, 0.0) for _, t in states], mark=";",
                       strategy=strategy, width=2, copies=3,
                       state=lambda k, text: {"a;": "s", "b;": "s"}.get(text, text))
    assert asked == ["", "b;", "c;"]
    assert {node.text for node in tree if node.finished} == {"b;e", "c;f"}


def test_problems_do_not_mix():
    one, two = Maze(1), Maze(2)

    def propose(texts, n):
        return [(one if t[0] == "1" else two).propose([t[1:]], n)[0] for t in texts]

    def value(states):
        return [(one, two)[k].worths[text] for k, text in states]

    trees = tot.search(["1", "2"], propose, value, mark=";", strategy="breadth-first", width=2, copies=3)
    for tree, seed in zip(trees, (1, 2)):
        alone = Maze(seed).search("breadth-first", width=2)
        assert [vars(n) for n in tree] == [vars(n) for n in alone]


# ---- Monte Carlo tree search (invariant 47)

def nodes(root):
    yield root
    for child in root.children:
        yield from nodes(child)


@given(st.integers(0, 999), st.integers(1, 12), st.sampled_from([0.3, 1.0, 3.0]))
def test_visits_add_up_and_values_stay_within_the_worths(seed, simulations, c):
    maze = Maze(seed)
    (text, root), = mcts.search(["?"], maze.propose, maze.value, mark=";", simulations=simulations,
                                copies=3, c=c, depth=8)
    moves = text.count(";") + (text[-1:] != ";")
    assert root.visits == simulations * moves                   # the budget, exactly
    for node in nodes(root):
        if node.children:
            assert node.visits == 1 + sum(child.visits for child in node.children)
        assert (node.worth is None) == (node.visits == 0)
        below = [n.worth for n in nodes(node) if n.worth is not None]
        if below:
            assert min(below) - 1e-12 <= node.q <= max(below) + 1e-12
        if node.children:
            assert sum(child.prior for child in node.children) == pytest.approx(1.0)
    assert len(maze.valued) == len({t for _, t in maze.valued}) <= root.visits
    assert all(n == 3 for _, n in maze.asked)
    assert text in maze.endings


@given(st.integers(0, 999))
def test_with_exact_values_and_enough_simulations_it_moves_best(seed):
    maze, exact = Maze(seed), {}
    maze.worths = {text: round(2 * worth) / 2 for text, worth in maze.worths.items()}

    def reach(text):
        ways = [text + more for more in maze.children.get(text, [])]
        exact[text] = max(map(reach, ways)) if ways else maze.worths[text]
        return exact[text]

    best = reach("")
    (text, _), = mcts.search(["?"], maze.propose, lambda states: [exact[t] for _, t in states],
                                mark=";", simulations=400, copies=3, c=1.0, depth=8)
    assert exact[text] == best


def test_it_selects_by_value_and_by_prior_over_visits():
    worst, rare, often = (mcts.Node(t, prior=p, visits=v, total=w) for t, p, v, w in
                          (("a", 0.2, 2, 0.2), ("b", 0.2, 2, 1.0), ("c", 0.6, 2, 1.0)))
    root = mcts.Node("", visits=7, children=[worst, rare, often])
    assert mcts.select(root, 1.0) == [root, often]              # 0.5 + 0.6 sqrt(7) / 3
    often.visits, often.total = 20, 10.0
    assert mcts.select(root, 1.0) == [root, rare]
    assert mcts.select(root, 0.0)[-1] is rare
    fresh = mcts.Node("d", prior=0.9)
    root.children.append(fresh)
    assert mcts.select(root, 1.0)[-1] is fresh and mcts.select(root, 0.1)[-1] is rare


# ---- graph of thoughts

def calculator(texts, n):
    """A solver of chains who is right but for the first sample of each."""
    found = []
    for text in texts:
        total = sum(int(x) for x in re.findall("[+-]?[0-9]+", text.split("=")[0]))
        found.append([f"Answer: {total + (k == 0) * (n > 1)}" for k in range(n)])
    return found


@given(st.integers(2, 30), st.integers(2, 5), st.integers(0, 99))
def test_a_graph_adds_up_its_parts(terms, size, seed):
    rng = random.Random(seed)
    numbers = [rng.randint(1, 9)] + [rng.choice((-1, 1)) * rng.randint(1, 9) for _ in range(terms - 1)]
    problem = Arithmetic()._problem(numbers)
    graph, = graph_of_thoughts.search([problem], calculator, Arithmetic(), size, 3)
    assert graph[-1]["answer"] == sum(numbers)
    used = [place for thought in graph for place in thought["of"]]
    assert sorted(used) == list(range(len(graph) - 1))          # all but the last go into another
    for thought in graph:
        chain = thought["prompt"].split("=")[0]
        assert len(re.findall("[0-9]+", chain)) <= size


def test_a_graph_ends_with_the_thought_that_states_nothing():
    def sample(texts, n):
        return [["what?"] * n if text.startswith("1") else ["Answer: 3"] * n for text in texts]

    problem = Arithmetic().pose("1+2-5-1")
    graph, = graph_of_thoughts.search([problem], sample, Arithmetic(), 2, 2)
    assert graph[-1]["answer"] is None and graph[-1]["text"] == "what?" and len(graph) == 2


def test_the_answer_that_most_state_is_kept():
    assert graph_of_thoughts.keep(["x", "Answer: 2", "Answer: 3", "Answer: 3"],
                                  Arithmetic().parse) == (3, "Answer: 3")
    assert graph_of_thoughts.keep(["Answer: 2", "Answer: 3"], Arithmetic().parse) == (2, "Answer: 2")


# ---- draft, critique, revise

class Author:
    """Answers each prompt with the next of its texts, and keeps what it was asked."""

    def __init__(self, *texts):
        self.texts, self.asked = list(texts), []

    def __call__(self, texts, n):
        assert n == 1
        self.asked += texts
        return [[self.texts.pop(0)] for _ in texts]


SUM = Arithmetic().pose("7+5-3")
FAULT, FINE = "7+5=12 no", "7+5=12 ok\n12-3=9 ok"
DRAFT, MENDED = "7+5=13\n13-3=10\nAnswer: 10", "7+5=12\n12-3=9\nAnswer: 9"


def right(problems, answers):
    return Arithmetic().reward(None, answers, [p.columns["answer"] for p in problems])


def test_a_draft_is_revised_by_its_critique_until_that_approves():
    author = Author(DRAFT, FAULT, MENDED, FINE, "never asked")
    rounds, = self_feedback.refine([SUM], author, Arithmetic(), 5)
    assert rounds == [{"answer": DRAFT, "critique": FAULT},
                      {"answer": MENDED, "critique": FINE}]
    assert author.asked == [
        "7+5-3=? Think:\n", f"7+5-3=? Draft:\n{DRAFT}\nCritique:\n",
        f"7+5-3=? Draft:\n{DRAFT}\nCritique:\n{FAULT}\nRevise:\n",
        f"7+5-3=? Draft:\n{MENDED}\nCritique:\n"]


def test_a_checker_stops_it_instead_and_an_approved_fault_is_drafted_anew():
    author = Author(DRAFT, FINE, DRAFT, FAULT, MENDED, "never asked")
    rounds, = self_feedback.refine([SUM], author, Arithmetic(), 9, right)
    assert [found["answer"] for found in rounds] == [DRAFT, DRAFT, MENDED]
    assert author.asked[2] == "7+5-3=? Think:\n" and author.asked[4].endswith("Revise:\n")


@pytest.mark.parametrize("attempts", [1, 2, 4])
def test_no_more_attempts_are_made_than_allowed(attempts):
    author = Author(*[DRAFT, FAULT] * 9)
    rounds, = self_feedback.refine([SUM], author, Arithmetic(), attempts)
    assert len(rounds) == attempts and len(author.asked) == 2 * attempts - 1
    author = Author(*[DRAFT] * 9)
    rounds, = self_feedback.retry([SUM], author, attempts, right)
    assert len(rounds) == attempts == len(author.asked)
    author = Author(DRAFT, *[MENDED] * 9)
    rounds, = self_feedback.retry([SUM], author, 4, right)
    assert [r["answer"] for r in rounds] == [DRAFT, MENDED]


# ---- memory (invariant 48)

def test_the_window_and_the_nearest():
    found = memory.Memory()
    for k, question in enumerate(["code of the red box", "code of the red door", "code of the old box",
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


# ---- models that say nothing, anything, or too much

GARBAGE = st.sampled_from(["", " ", "2", "\n", "\n\n\n", "Answer:", "yes", "no", "7+5=12 no", "7+5=12\n" * 40, "¿?\x00",
                           "1/0=1:1\n", "9*9=81:", "Answer: 99999999999999999999", "(((", "0"])


class Babble:
    """Tools around a model that says whatever hypothesis drew, in turn."""

    def __init__(self, task, words):
        self.task, self.words, self.tokens, self.drawn = task, words, 0, 0
        self.mark, self.verifier = "\n", object()

    def sample(self, texts, n):
        found = []
        for _ in texts:
            found.append([self.words[(self.drawn + k) % len(self.words)] for k in range(n)])
            self.drawn += n
            self.tokens += n
        return found

    step, arm = sample, Texts.arm

    def greedy(self, texts):
        return [found for found, in self.sample(texts, 1)]

    def worth(self, states, votes, known):
        for problem, text in states:
            assert all(isinstance(q, str) and isinstance(r, str) for q, r in self.task.questions(problem, text))
        self.tokens += votes * len(states)
        return [(len(text) % 7) / 7 for _, text in states]

    def confidence(self, prompts, answers):
        return [-float(len(a)) for a in answers]

    def verified(self, prompts, answers):
        return [[0.5, 1 / (1 + len(a))] for a in answers]

    def value(self, texts):
        return [float(len(text) % 5) for text in texts]

    def right(self, problems, answers):
        columns = {name: [p.columns.get(name) for p in problems]
                   for name in (problems[0].columns if problems else ())}
        return self.task.reward([p.prompt for p in problems], list(answers), **columns)


GAME = Countdown(numbers=4, target=24)
SETTINGS = [
    (cot, Arithmetic(), {}), (self_consistency, Arithmetic(), dict(group_size=3, curve=(1, 3))),
    (self_consistency, GAME, dict(group_size=3, curve=(1, 3))),
    (best_of_n, Arithmetic(), dict(group_size=5)), (best_of_n, GAME, dict(group_size=3)),
    (self_feedback, Arithmetic(), dict(attempts=3)),
    (tot, GAME, dict(copies=3, expansions=4)), (tot, Arithmetic(), dict(copies=2, expansions=4)),
    (mcts, GAME, dict(simulations=3, copies=2)), (mcts, Arithmetic(), dict(simulations=2, copies=2)),
    (graph_of_thoughts, Arithmetic(terms=9), dict(copies=2)),
    (memory, Recall(), dict(length=6, things=3, lives=2, keys=3, trials=3)),
]


@pytest.mark.parametrize("module, task, knobs", SETTINGS,
                         ids=[f"{m.__name__.split('.')[-1]}-{t.name}" for m, t, _ in SETTINGS])
@given(st.lists(GARBAGE, min_size=1, max_size=7))
@settings(max_examples=15)
def test_no_text_of_a_model_breaks_a_method(module, task, knobs, words):
    problems, cfg = task.heldout(2), module.Config(**knobs)
    answers, workings = module.solve(problems, Babble(task, words), cfg)
    assert len(answers) == len(workings) == 2 and all(isinstance(a, str) for a in answers)
    assert all(isinstance(line, str) for w in workings for line in module.show(w))
    names = []
    for arm in module.arms(problems, Babble(task, words), cfg):
        rewards = arm.result.rewards
        assert len(rewards) == len(arm.result.texts) == len(arm.workings) > 0 and arm.tokens > 0
        assert set(rewards) <= {0.0, 1.0} or "checker, n=" in arm.name and \
            0 <= min(rewards) <= max(rewards) <= 1
        assert all(isinstance(line, str) for w in arm.workings for line in module.show(w))
        names.append(arm.name)
    assert len(set(names)) == len(names)
    assert {name.format(**vars(cfg)) for name in (module.BEFORE, module.AFTER)} <= set(names)


@pytest.mark.parametrize("module", [tot, mcts])
def test_a_model_that_never_ends_is_cut_at_the_depth(module):
    problem = GAME.heldout(1)
    answers, _ = module.solve(problem, Babble(GAME, ["1+1=2:2\n"]), module.Config(depth=3, copies=2))
    assert answers[0].count("\n") <= 3


def test_what_a_task_lacks_is_said_in_one_sentence():
    class Bare(Task):
        name = "bare"

    for module in (cot, self_feedback, graph_of_thoughts, memory):
        with pytest.raises(MinipostError, match="the task bare"):
            module.solve([Problem("x")], Babble(Bare(), ["x"]), module.Config()) if module is not cot \
                else list(module.arms([Problem("x")], Babble(Bare(), ["x"]), module.Config()))
    tools = Babble(Arithmetic(), ["x"])
    tools.verifier = None
    with pytest.raises(MinipostError, match="--verifier DIR"):
        best_of_n.solve([SUM], tools, best_of_n.Config())
    with pytest.raises(MinipostError, match="no question comes twice"):
        list(memory.arms([Problem("x")], Babble(Recall(), ["x"]),
                         memory.Config(length=2, things=20, lives=1)))
    with pytest.raises(MinipostError, match="things is 26; this split has 25 things"):
        memory.solve([Problem("x")], Babble(Recall(), ["x"]), memory.Config(things=26))


def test_any_of_the_first_answers():
    tools, problems = Babble(Arithmetic(), ["x"]), [SUM, SUM, SUM]
    texts = [["Answer: 9", "Answer: 8"], ["Answer: 8", "Answer: 9"], ["Answer: 8"]]
    assert tot.any_of(problems, texts, tools, 2) == [1.0, 1.0, 0.0]
    assert tot.any_of(problems, texts, tools, 1) == [1.0, 0.0, 0.0]


class Digits:
    """Tools whose answers are given digits in turn, ten tokens each; a digit is its own worth, and costs one
    token to be judged."""

    def __init__(self, digits, task=None):
        self.digits, self.task, self.tokens, self.verifier = list(digits), task, 0, object()

    arm = Texts.arm

    def sample(self, texts, n):
        self.tokens += 10 * n * len(texts)
        return [[self.digits.pop(0) for _ in range(n)] for _ in texts]

    def worth(self, states, votes, known):
        self.tokens += len(states)
        return [float(text) for _, text in states]

    def right(self, problems, answers):
        return [float(text == problem.prompt) for problem, text in zip(problems, answers)]

    def confidence(self, prompts, answers):
        return [0.0] * len(answers)

    def verified(self, prompts, answers):
        return [[0.5]] * len(answers)


def test_sampling_beside_a_tree_goes_on_until_it_has_cost_as_much_and_takes_the_best():
    problems = [Problem("5"), Problem("7")]
    tools = Digits("35" "62" "17" "94" "22" "88")               # two a round, 22 tokens
    found = list(tot.sampled(problems, tools, 1, {"few": 40, "many": 110}))
    assert [(arm.name, arm.tokens) for arm in found] == [
        ("few", 44), ("few, any of 5", 44), ("many", 110), ("many, any of 5", 110)]
    assert [arm.result.texts for arm in found] == [["6", "5"]] * 2 + [["9", "7"]] * 2
    assert [arm.result.rewards for arm in found] == [[0.0, 0.0]] * 2 + [[0.0, 1.0]] * 2


def test_own_verdicts_choose_the_sample_that_is_worth_most_and_are_paid_for():
    class Judged(Task):
        def questions(self, problem, text):
            return []

        def parse(self, text):
            return text

    problems = [Problem("5"), Problem("7")]
    tools = Digits("352" "167", Judged())
    arms = {arm.name: arm for arm in best_of_n.arms(problems, tools, best_of_n.Config(group_size=3))}
    chosen = arms["own verdicts"]
    assert (chosen.tokens, chosen.result.rewards, chosen.result.texts) == (66, [1.0, 1.0], ["5", "7"])
    assert arms["vote"].tokens == 60
    del Judged.questions
    tools = Digits("352" "167", Judged())
    assert "own verdicts" not in {arm.name for arm in
                                  best_of_n.arms(problems, tools, best_of_n.Config(group_size=3))}
