"""Searches at test time against their rules written anew, and what each arm is charged."""

import heapq
import math
import random
from itertools import count

import pytest
from fakes import Babble, Echo, Letters, Maze, make_run
from hypothesis import given
from hypothesis import strategies as st

from minipost.measure.texts import VERDICT, Texts
from minipost.tasks.arithmetic import Arithmetic
from minipost.tasks.base import Problem
from minipost.tasks.countdown import Countdown
from minipost.tasks.recall import Recall
from minipost.tasks.search import Search
from minipost.test_time import (
    adaptive_consistency,
    beam,
    best_of_n,
    budget_forcing,
    cot,
    graph_of_thoughts,
    mcts,
    memory,
    particles,
    self_consistency,
    self_feedback,
    speculative_rejection,
    tot,
    uct,
)

# ---- Monte Carlo tree search


def tree_search(maze, simulations, branching, c, depth):
    """The search as its docstring tells it: nodes are texts, what is known of them is in tables."""
    visits, total, prior, worth, below, at, moves = {}, {}, {"": 1.0}, {}, {}, "", []
    while ";" in at or not moves:
        if len(moves) == depth:
            break
        for _ in range(simulations):
            way = [*moves, at]
            while below.get(way[-1]):
                n = visits[way[-1]]

                def rule(text):
                    q = total[text] / visits[text] if visits.get(text) else 0.0
                    return q + c * prior[text] * n**0.5 / (1 + visits.get(text, 0))

                way.append(max(below[way[-1]], key=rule))
            leaf = way[-1]
            if leaf not in worth:
                worth[leaf] = maze.worths.get(leaf, 0.0)
                if leaf == "" or leaf.endswith(";"):
                    ways = maze.children[leaf]
                    drawn = [leaf + ways[k % len(ways)] for k in range(branching)]
                    below[leaf] = list(dict.fromkeys(drawn))
                    prior |= {text: drawn.count(text) / branching for text in below[leaf]}
            for text in way:
                visits[text] = visits.get(text, 0) + 1
                total[text] = total.get(text, 0.0) + worth[leaf]
        moves.append(at)
        at = max(below[at], key=lambda text: (visits.get(text, 0), total.get(text, 0.0) / max(
            1, visits.get(text, 0)), prior[text]))
        if not at.endswith(";"):
            break
    return at, visits, total, prior


@given(st.integers(0, 999), st.integers(2, 15), st.sampled_from([0.1, 0.7, 2.0]),
       st.sampled_from([1, 2, 8]))
def test_the_tree_is_the_one_that_the_rule_grows(seed, simulations, c, depth):
    """Visits, values and priors of all nodes, and the move to the most visited child."""
    maze = Maze(seed)
    (found, root), = mcts.search(["?"], maze.propose, maze.value, mark=";", branching=4,
                                 simulations=simulations, c=c, depth=depth)
    answer, visits, total, prior = tree_search(Maze(seed), simulations, 4, c, depth)
    assert found == answer

    def check(node):
        assert node.visits == visits.get(node.text, 0) and node.prior == prior[node.text]
        assert node.total == pytest.approx(total.get(node.text, 0.0), abs=1e-12)
        for child in node.children:
            check(child)

    check(root)
    shown = mcts.data(root)
    assert shown["q"] == pytest.approx(total[""] / visits[""])
    assert [child["text"] for child in shown["children"]] == [
        child.text for child in root.children if visits.get(child.text)]


def test_it_moves_to_the_most_visited_child_and_not_to_the_best():
    """On trees where the two are not the same."""
    apart = 0
    for seed in range(99):
        maze = Maze(seed, depth=1)
        (text, root), = mcts.search(["?"], maze.propose, maze.value, mark=";", simulations=6,
                                    branching=4, c=2.0, depth=1)
        visited, best = (max(root.children, key=rule) for rule in (
            lambda n: (n.visits, n.q), lambda n: n.q))
        apart += visited.visits > best.visits
        assert text == visited.text
    assert apart > 2


# ---- UCT with roll-outs

def rolled(maze, simulations, branching, c, depth):
    """The search as its docstring tells it, without nodes: tables by text."""
    visits, total, below, written = {"": 0}, {"": 0.0}, {}, {}

    def to_the_end(text):
        while text == "" or text.endswith(";"):
            text += maze.children[text][0]
        return text

    def simulate(text):
        """The worth that this simulation backs up through a node."""
        if text in below:
            def bound(child):
                n = visits[child]
                return total[child] / n + c * (2 * math.log(visits[text]) / n) ** 0.5 \
                    if n else math.inf
            worth = simulate(max(below[text], key=bound))
        elif (text == "" or visits[text]) and (text == "" or text.endswith(";")) \
                and text.count(";") < depth:
            ways = [maze.children[text][k % len(maze.children[text])] for k in range(branching)]
            below[text] = [text + more for more in dict.fromkeys(ways)]
            for child in below[text]:
                visits[child], total[child] = 0, 0.0
            worth = simulate(below[text][0])
        else:
            end = to_the_end(text)
            worth = written[end] = maze.worths[end]
        visits[text] += 1
        total[text] += worth
        return worth

    for _ in range(simulations):
        simulate("")
    return written, visits, total


@given(st.integers(0, 999), st.integers(1, 25), st.sampled_from([0.1, 0.7, 2.0]),
       st.sampled_from([1, 2, 8]))
def test_roll_outs_grow_the_tree_that_the_rule_grows(seed, simulations, c, depth):
    class Walk(Maze):
        def complete(self, texts, n):
            found = []
            for text in texts:
                start = text = text.removeprefix("?")
                while text in self.children:
                    text += self.children[text][0]
                found.append([text[len(start):]] * n)
            return found

    maze = Walk(seed)
    (found, root), = uct.search(["?"], maze.propose, maze.complete, maze.value, mark=";",
                                simulations=simulations, branching=4, rollouts=1, c=c, depth=depth)
    written, visits, total = rolled(Maze(seed), simulations, 4, c, depth)
    assert {text: worth for worth, text in found} == written

    def check(node):
        assert node.visits == visits[node.text]
        assert node.total == pytest.approx(total[node.text], abs=1e-12)
        for child in node.children:
            check(child)

    check(root)


# ---- A*

@given(st.integers(0, 999), st.integers(1, 12), st.sampled_from(["log-prob", "depth"]))
def test_a_star_is_the_textbook_search_with_a_heap(seed, expansions, cost):
    maze, paid, tick = Maze(seed), {"": 0.0}, count()
    heap, order = [(0.0, 0, next(tick), "")], []
    while heap and len(order) < expansions:
        _, _, _, text = heapq.heappop(heap)
        order.append(text)
        ways = maze.children[text]
        drawn = [text + ways[k % len(ways)] for k in range(5)]
        for more in dict.fromkeys(drawn):
            level = more.count(";") + (not more.endswith(";"))
            paid[more] = level if cost == "depth" else (
                paid[text] - math.log(drawn.count(more) / 5))
            if more.endswith(";"):
                heapq.heappush(heap, (paid[more] - math.log(maze.worths[more]), -level, next(tick),
                                      more))
    maze = Maze(seed)
    tree = maze.search("a-star", branching=5, expansions=expansions, cost=cost)
    assert [text.removeprefix("?") for text, _ in maze.asked] == order
    assert all(node.cost == pytest.approx(paid[node.text]) for node in tree)


# ---- beginnings that a reward model thins out

class Writers:
    """Texts in which every step is a large random number; a text's score is a hash of it."""

    def __init__(self, seed, steps):
        self.rng, self.steps = random.Random(seed), steps

    def step(self, texts, n):
        assert n == 1
        return [[str(self.rng.getrandbits(60))
                 + (";" if text.count(";") + 1 < self.steps else "")] for text in texts]

    @staticmethod
    def worth(text):
        return 0.01 + 0.98 * random.Random(text).random()

    def score(self, rows):
        return [self.worth(text) for _, text, _ in rows]


@given(st.integers(0, 999), st.integers(1, 9), st.integers(1, 5),
       st.sampled_from([0.0, 0.3, 0.5, 0.8]), st.integers(1, 20))
def test_rejection_is_the_papers_loop(seed, n, steps, alpha, memory):
    writers, left, gone = Writers(seed, steps), [""] * n, []
    for made in range(1, steps + 1):
        left = [text + more for text, (more,) in zip(left, writers.step(left, 1))]
        cut = int(alpha * len(left))
        if made < steps and made * len(left) >= memory and cut:
            bar = sorted(writers.worth(text) for text in left)[cut]    # the lowest that stays
            gone += [text for text in left if writers.worth(text) < bar]
            left = [text for text in left if writers.worth(text) >= bar]
    writers = Writers(seed, steps)
    found, = speculative_rejection.search([""], writers.step, writers.score, mark=";",
                                          group_size=n, alpha=alpha, memory=memory, depth=9)
    texts = [a.text for a in found if not a.rejected]
    assert texts == left and sorted(a.text for a in found if a.rejected) == sorted(gone)


@given(st.integers(0, 999), st.integers(1, 9), st.integers(1, 4), st.sampled_from([0.5, 1.0, 3.0]))
def test_particles_are_drawn_by_their_odds(seed, n, steps, tau):
    writers, texts, rng = Writers(seed, steps), [""] * n, random.Random("particles of 0")
    for made in range(1, steps + 1):
        texts = [text + more for text, (more,) in zip(texts, writers.step(texts, 1))]
        if made < steps:
            chances = [writers.worth(text) for text in texts]
            texts = rng.choices(texts, [(p / (1 - p)) ** (1 / tau) for p in chances], k=n)
    writers = Writers(seed, steps)
    (swarm,), _ = particles.search([""], writers.step, writers.score, mark=";", particles=n,
                                   tau=tau, resample="softmax", depth=9)
    assert [text for text, _, _ in swarm] == texts


@given(st.lists(st.sampled_from("aaabbc"), min_size=1, max_size=20))
def test_a_vote_stops_where_the_lead_would_win_by_the_posterior(words):
    """The chance that p > 1/2 for p ~ Beta(a + 1, b + 1), from a grid of p."""
    def sure(seen):
        a, b = (sorted((seen.count(c) for c in "abc"), reverse=True))[:2]
        grid = [((k + 0.5) / 4000) for k in range(4000)]
        mass = [p**a * (1 - p) ** b for p in grid]
        return sum(mass[2000:]) / sum(mass)

    stop = next((k for k in range(1, len(words)) if sure(words[:k]) >= 0.95), len(words))
    said = iter(words)
    drawn, = adaptive_consistency.search(
        ["?"], lambda texts, n: [[next(said)] for _ in texts], lambda text: text, None,
        group_size=len(words), threshold=0.95, stop="lead", sure=1.0)
    assert [text for text, _ in drawn] == words[:stop]


# ---- thoughts whose length is forced

@given(st.lists(st.sampled_from(["x\n", "y\n", "Answer: 1", "z"]), max_size=12),
       st.integers(0, 3), st.integers(0, 4))
def test_a_thought_is_as_long_as_it_is_forced_to_be(said, waits, budget):
    said = [*said, *["Answer: 2"] * 9]
    words, text, lines, put, = iter(said), "", 0, 0
    while True:
        if lines == budget:
            text += "Answer:" + " forced"
            break
        more = next(words)
        if more in ("x\n", "y\n"):
            text, lines = text + more, lines + 1
        elif put < waits and lines:
            text, put = text[:-1] + " no\n", put + 1
        else:
            text += more
            break
    words = iter(said)
    found, = budget_forcing.search(
        ["?"], lambda texts, n: [[next(words)] for _ in texts],
        lambda texts, n: [[" forced"] for _ in texts], heard=lambda *written: True, mark="\n",
        waits=waits, budget=budget, wait=" no", end="Answer:")
    assert found == (text, lines, put)


# ---- the best of n

CHANCES = {  # the highest by the least, the last, the product, and by the mean: four samples
    "least": [0.6, 0.6, 0.6], "product": [0.5, 0.9], "last": [0.1, 0.995],
    "mean": [0.99] * 5 + [0.4] + [0.99]}


@pytest.mark.parametrize("how, chosen", [("min", "least"), ("last", "last"),
                                         ("product", "product")])
def test_a_solutions_chance_is_made_of_its_steps_as_it_says(how, chosen):
    class Tools(Babble):
        def verified(self, prompts, answers):
            return [CHANCES[answer] for answer in answers]

    tools = Tools(Echo(), list(CHANCES))
    cfg = best_of_n.Config(group_size=4, aggregate=how)
    (answer,), (working,) = best_of_n.solve([Problem("a", {"letter": "a"})], tools, cfg)
    assert answer == chosen and working["samples"][working["chosen"]]["text"] == chosen
    value = {"min": min, "last": lambda x: x[-1], "product": math.prod}[how]
    assert [s["score"] for s in working["samples"]] == pytest.approx(
        [value(CHANCES[text]) for text in CHANCES])
    tools = Tools(Echo(), list(CHANCES))
    arms = {arm.name: arm.result.texts for arm in best_of_n.arms(
        [Problem("a", {"letter": "a"})], tools, cfg)}
    assert arms["verifier"] == [chosen]
    for other, best in (("min", "least"), ("last", "last"), ("product", "product")):
        assert arms.get(f"verifier, {other}", [best]) == [best]


# ---- what an arm costs

def charged(module, task, cfg, n=3, words=("Answer: 1", "Answer: 2", "x", "Answer: 1\n")):
    """[(arm, tokens sampled for it alone, tokens sampled so far)]"""
    tools, found = Babble(task, list(words)), []
    problems, before = list(task.heldout(n)), 0
    for arm in module.arms(problems, tools, cfg):
        found.append((arm, tools.tokens - before, tools.tokens))
        before = tools.tokens
    return found


SUM = Arithmetic()
ALONE = {
    "cot": (cot, SUM, cot.Config()),
    "beam": (beam, SUM, beam.Config(width=2, branching=3, depth=3)),
    "mcts": (mcts, Countdown(numbers=4, target=24), mcts.Config(simulations=3, branching=2)),
    "self-feedback": (self_feedback, SUM, self_feedback.Config(attempts=3)),
    "uct": (uct, Countdown(numbers=4, target=24), uct.Config(simulations=3, branching=2)),
    "speculative-rejection": (speculative_rejection, SUM, speculative_rejection.Config(
        group_size=4, memory=2, depth=3, score="verifier")),
    "particles": (particles, SUM, particles.Config(particles=4, depth=3)),
    "budget-forcing": (budget_forcing, Search(), budget_forcing.Config(waits=2, budget=3)),
    "adaptive-consistency": (adaptive_consistency, SUM, adaptive_consistency.Config(group_size=6)),
    "memory": (memory, Recall(), memory.Config(length=5, things=4, lives=2, keys=3, trials=2)),
}


@pytest.mark.parametrize("name", ALONE)
def test_an_arm_costs_what_was_sampled_for_it(name):
    found = charged(*ALONE[name])
    assert len(found) > 1
    for arm, fresh, _ in found:
        if name == "memory" and not arm.name.startswith("lock"):    # a token for each episode that
            assert arm.tokens == len(arm.result.rewards) < fresh    # it is measured on
            continue
        assert arm.tokens == fresh > 0, arm.name
        if arm.name == "1 sample":
            assert fresh == 3                               # one of each problem


def test_arms_that_share_samples_cost_those_they_use():
    found = charged(best_of_n, SUM, best_of_n.Config(group_size=5))
    spent = 3 * 5                                           # a token for each sample
    for arm, _, so_far in found:
        expected = {"1 sample": spent / 5, "own verdicts": so_far}.get(arm.name, spent)
        if arm.name.startswith("exact checker, n="):
            expected = spent * int(arm.name.rpartition("=")[2]) / 5
        assert arm.tokens == expected, arm.name
    assert {"exact checker, n=2", "exact checker, n=4", "own verdicts"} <= {
        arm.name for arm, _, _ in found}

    found = charged(self_consistency, SUM, self_consistency.Config(group_size=3, curve=(1, 2, 5)))
    for arm, _, _ in found:
        n = int(arm.name.removeprefix("any of ").removeprefix("n=").split(",")[0].split()[0])
        assert arm.tokens == 3 * n, arm.name
    assert len(found) == 2 * (4 + 3 + 1)


@pytest.mark.parametrize("width", [2, 3])
def test_whole_answers_are_drawn_for_the_tokens_of_a_search(width):
    task = Countdown(numbers=4, target=24)
    found = charged(tot, task, tot.Config(width=width, branching=2, expansions=4, votes=2, depth=3))
    each = {arm.name: (arm.tokens, fresh) for arm, fresh, _ in found}
    for name in ("breadth-first, b=1", f"breadth-first, b={width}", "depth-first", "best-first"):
        assert each[name][0] == each[name][1] == each[f"{name}, any of 5"][0] > 0
        assert each[f"{name}, any of 5"][1] == 0
    whole = 0
    for b in (1, width):
        name = f"best of n, tokens of b={b}"
        whole += each[name][1]
        assert each[name][0] == each[f"{name}, any of 5"][0] == whole
        budget = each[f"breadth-first, b={b}"][0]
        assert budget <= whole < budget + 3 * (1 + 2 * 4) + 3

    found = charged(graph_of_thoughts, Arithmetic(terms=8), graph_of_thoughts.Config(
        size=3, group_size=2))
    (one, fresh, _), (graph, spent, _), (vote, drawn, _), refined, more = found
    assert one.tokens == fresh == 3 and graph.tokens == spent > 6
    assert vote.tokens == drawn and spent <= drawn < spent + 3
    assert all(arm.tokens == fresh > spent for arm, fresh, _ in (refined, more))


# ---- what is asked of the model

def test_each_tool_samples_at_its_own_temperature(spy):
    """Answers and steps at the one that was asked for, verdicts at 1, the likeliest at 0."""
    class Judged(Echo):
        step_end = "c"

        def questions(self, problem, text):
            return [(problem.prompt, "a")]

    run = make_run(Judged(), max_new_tokens=6)
    asked, complete = [], run.complete

    def seen(prompts, n, **options):
        asked.append((n, options))
        return complete(prompts, n, **options)

    run.complete = seen
    tools, c = Texts(run, 0.7, stream="here"), 3 + Letters.letters.index("c")
    tools.sample(["ab"], 3)
    tools.step(["ab"], 2)
    tools.greedy(["ab"])
    tools.worth([(Problem("ab"), "c")], 4, {})
    sample, step, greedy, verdict = asked
    assert [n for n, _ in asked] == [3, 2, 1, 4]
    assert [options["temperature"] for _, options in asked] == [0.7, 0.7, 0.0, 1.0]
    assert [options["stop"] for _, options in asked] == [set(), {c}, set(), set()]
    assert [options["max_new_tokens"] for _, options in asked] == [6, 6, 6, VERDICT]
    purposes = [options["purpose"] for _, options in asked]
    assert purposes[0] == "answers 1" and purposes[1] == "here 1" and len(set(purposes)) == 4
