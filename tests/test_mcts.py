"""Monte Carlo tree search on trees whose every step is known (invariant 47)."""

import pytest
from fakes import Maze
from hypothesis import given
from hypothesis import strategies as st

from minipost.test_time import mcts


def nodes(root):
    yield root
    for child in root.children:
        yield from nodes(child)


@given(st.integers(0, 999), st.integers(1, 12), st.sampled_from([0.3, 1.0, 3.0]))
def test_visits_add_up_and_values_stay_within_the_worths(seed, simulations, c):
    maze = Maze(seed)
    (text, root), = mcts.search(["?"], maze.propose, maze.value, mark=";", simulations=simulations,
                                branching=3, c=c, depth=8)
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
                                mark=";", simulations=400, branching=3, c=1.0, depth=8)
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
