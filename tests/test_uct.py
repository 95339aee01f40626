"""Monte Carlo tree search with roll-outs, on trees whose every answer is known."""

import math

from fakes import Maze
from hypothesis import given
from hypothesis import strategies as st

from minipost.test_time import uct


class Walk(Maze):
    """A maze whose answers can be written to their ends: the first way on, or all in turn."""

    def complete(self, texts, n):
        return [[self.on(text.removeprefix("?"), k) for k in range(n)] for text in texts]

    def on(self, text, k):
        more = ""
        while text + more in self.children:
            ways = self.children[text + more]
            more += ways[k % len(ways)]
        return more


def run(maze, **options):
    options = {"simulations": 40, "branching": 3, "rollouts": 1, "c": 0.7, "depth": 8, **options}
    return uct.search(["?"], maze.propose, maze.complete, maze.value, mark=";", **options)[0]


def nodes(root):
    yield root
    for child in root.children:
        yield from nodes(child)


@given(st.integers(0, 999), st.integers(1, 30), st.sampled_from([0.0, 0.5, 2.0]),
       st.integers(0, 3))
def test_visits_add_up_and_the_answer_is_the_best_that_was_written(seed, simulations, c, rollouts):
    maze = Walk(seed)
    found, root = run(maze, simulations=simulations, c=c, rollouts=rollouts)
    assert root.visits == simulations
    for node in nodes(root):
        if node.children:
            own = 0 if node is root else 1                      # the visit before it was expanded
            assert node.visits == own + sum(child.visits for child in node.children)
    assert {text for _, text in found} <= maze.endings
    assert [worth for worth, _ in found] == sorted((maze.worths[text] for _, text in found),
                                                   reverse=True)
    written = {text for _, text in maze.valued if text in maze.endings}
    assert {text for _, text in found} == written
    assert all(n == 3 for _, n in maze.asked) and len(set(maze.asked)) == len(maze.asked)


@given(st.integers(0, 999))
def test_with_enough_simulations_it_has_seen_every_answer(seed):
    maze = Walk(seed)
    found, root = run(maze, simulations=600, c=2.0)
    assert {text for _, text in found} == maze.endings
    # and goes where the best answers are: Q of the root comes near the best mean of its children
    assert root.q <= max(child.q for child in root.children) + 1e-12


def test_a_child_that_was_never_visited_comes_first_then_the_bound_decides():
    good, rare, new = (uct.Node(t, visits=v, total=w) for t, v, w in
                       (("a", 8, 6.4), ("b", 1, 0.5), ("c", 0, 0.0)))
    root = uct.Node("", visits=9, children=[good, rare, new])
    assert uct.select(root, 1.0) == [root, new]
    new.visits, root.visits = 2, 11                             # worth nothing twice
    assert uct.select(root, 0.0) == [root, good]
    bound = {n.text: n.q + math.sqrt(2 * math.log(11) / n.visits) for n in (good, rare, new)}
    assert max(bound, key=bound.get) == "b" and uct.select(root, 1.0) == [root, rare]


def test_a_search_ends_with_an_answer_that_nobody_doubts():
    maze = Walk(3)
    best = sorted(maze.endings)[-1]
    maze.worths = dict.fromkeys(maze.worths, 0.0) | {best: 1.0}
    found, root = run(maze, simulations=500)
    assert found[0] == (1.0, best) and root.visits < 500 and root.total == 1.0


def test_several_roll_outs_count_with_their_mean_and_none_asks_for_the_leaf_itself():
    maze = Walk(5)
    _, root = run(maze, simulations=1, rollouts=4)
    (leaf,) = [child for child in root.children if child.visits]
    ends = [leaf.text + maze.on(leaf.text, k) for k in range(4)]
    assert math.isclose(leaf.total, sum(maze.worths[text] for text in ends) / 4)
    maze = Walk(5)
    _, root = run(maze, simulations=1, rollouts=0)
    assert maze.valued == [(0, leaf.text)] and root.total == maze.worths[leaf.text]
