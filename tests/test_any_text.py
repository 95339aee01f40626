"""The test-time methods with models that say nothing, anything, or too much."""

import pytest
from fakes import Babble
from hypothesis import given, settings
from hypothesis import strategies as st

from minipost.errors import MinipostError
from minipost.tasks.arithmetic import Arithmetic
from minipost.tasks.base import Problem, Task
from minipost.tasks.choose import Choose
from minipost.tasks.countdown import Countdown
from minipost.tasks.polish import Polish
from minipost.tasks.recall import Recall
from minipost.tasks.search import Search
from minipost.test_time import (
    adaptive_consistency,
    best_of_n,
    budget_forcing,
    by_difficulty,
    cot,
    graph_of_thoughts,
    mcts,
    memory,
    particles,
    self_consistency,
    self_feedback,
    self_polish,
    speculative_rejection,
    tot,
    uct,
    universal_self_consistency,
)

SUM = Arithmetic().pose("7+5-3")
GARBAGE = st.sampled_from(["", " ", "2", "\n", "\n\n\n", "Answer:", "yes", "no", "7+5=12 no",
                           "7+5=12\n" * 40, "¿?\x00",
                           "1/0=1:1\n", "9*9=81:", "Answer: 99999999999999999999", "(((", "0"])
GAME = Countdown(numbers=4, target=24)
SETTINGS = [
    (cot, Arithmetic(), {}), (self_consistency, Arithmetic(), dict(group_size=3, curve=(1, 3))),
    (self_consistency, GAME, dict(group_size=3, curve=(1, 3))),
    (best_of_n, Arithmetic(), dict(group_size=5)), (best_of_n, GAME, dict(group_size=3)),
    (self_feedback, Arithmetic(), dict(attempts=3)),
    (tot, GAME, dict(branching=3, expansions=4)),
    (tot, Arithmetic(), dict(branching=2, expansions=4)),
    (mcts, GAME, dict(simulations=3, branching=2)),
    (mcts, Arithmetic(), dict(simulations=2, branching=2)),
    (uct, GAME, dict(simulations=5, branching=2)),
    (uct, Arithmetic(), dict(simulations=4, branching=2, rollouts=2)),
    (graph_of_thoughts, Arithmetic(terms=9), dict(group_size=2)),
    (graph_of_thoughts, Arithmetic(terms=9), dict(group_size=2, refine=2)),
    (speculative_rejection, Arithmetic(), dict(group_size=5, memory=3, score="verifier")),
    (speculative_rejection, GAME, dict(group_size=5, memory=3)),
    (particles, Arithmetic(), dict(particles=5, depth=9)),
    (budget_forcing, Search(), dict(waits=2, budget=3, curve=(0, 1), cuts=(0, 1))),
    (by_difficulty, Arithmetic(), dict(budget=3, attempts=2, probes=2, training=7)),
    (adaptive_consistency, GAME, dict(group_size=5)),
    (adaptive_consistency, Arithmetic(), dict(group_size=5, stop="own", sure=0.001)),
    (universal_self_consistency, Choose(), dict(group_size=3)),
    (self_polish, Polish(), dict(rewordings=2)),
    (self_polish, Polish(), dict(unsettled="vote")),
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
    answers, _ = module.solve(problem, Babble(GAME, ["1+1=2:2\n"]),
                              module.Config(depth=3, branching=2))
    assert answers[0].count("\n") <= 3


def test_what_a_task_lacks_is_said_in_one_sentence():
    class Bare(Task):
        name = "bare"

    for module in (cot, self_feedback, graph_of_thoughts, memory, by_difficulty):
        with pytest.raises(MinipostError, match="the task bare"):
            ask = module.arms if module is cot else module.solve
            list(ask([Problem("x")], Babble(Bare(), ["x"]), module.Config()))
    tools = Babble(Arithmetic(), ["x"])
    tools.verifier = None
    with pytest.raises(MinipostError, match="--verifier DIR"):
        best_of_n.solve([SUM], tools, best_of_n.Config())
    with pytest.raises(MinipostError, match="no question comes twice"):
        list(memory.arms([Problem("x")], Babble(Recall(), ["x"]),
                         memory.Config(length=2, things=20, lives=1)))
    with pytest.raises(MinipostError, match="things is 26; this split has 25 things"):
        memory.solve([Problem("x")], Babble(Recall(), ["x"]), memory.Config(things=26))
