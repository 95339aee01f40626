"""Self-Polish: rounds, when they end, whose answer counts, and what the words still ask for."""

from pathlib import Path

import pytest
from fakes import Echo, drive
from hypothesis import given
from hypothesis import strategies as st

from minipost import checkpoint
from minipost.errors import MinipostError
from minipost.measure.texts import Texts
from minipost.methods import sft
from minipost.optim import Learner
from minipost.run import Run
from minipost.tasks.polish import Polish, asked_for, clear, reworded, stage
from minipost.test_time import self_polish

ROOT, TASK = Path(__file__).parents[1], Polish()


class Reader:
    """A model that rewords by `reword` and answers with said(words); a text costs a token."""

    def __init__(self, said, reword=reworded):
        self.said, self.reword, self.task, self.tokens = said, reword, TASK, 0

    arm = Texts.arm

    def greedy(self, texts):
        self.tokens += len(texts)
        return [f" {self.reword(text.removesuffix(' Polish:'))}" if text.endswith("Polish:") else
                f" {self.said(text.removesuffix(' Answer:'))}" for text in texts]

    def sample(self, texts, n):
        self.tokens += n * len(texts)
        return [[f" {self.said(text.removesuffix(' Answer:'))}"] * n for text in texts]

    def right(self, problems, answers):
        return [float(TASK.parse(text) == p.columns["answer"])
                for p, text in zip(problems, answers)]


def stages(problem):
    """The words of a problem after 0 to 3 rewordings and after all: four if three are all."""
    words = problem.columns["words"]
    return [*(stage(words, k) for k in range(4)), clear(words)]


def words_of(rounds):
    return [[each["problem"].columns["words"] for each in found] for found in rounds]


def only_clear(words):
    """One who reads clear sums alone: else the answer is the length, another at each stage."""
    return asked_for(words) if reworded(words) == words else 100 + len(words)


def test_a_problem_is_reworded_until_two_answers_agree():
    problems = TASK.heldout(5)
    rounds = self_polish.refine(problems, Reader(only_clear).greedy, TASK, 9)
    for problem, found in zip(problems, words_of(rounds), strict=True):
        words = problem.columns["words"]
        stages = [stage(words, k) for k in range(9)]
        assert found == stages[: stages.index(clear(words)) + 2] and len(found) > 3
    knows = self_polish.refine(problems, Reader(asked_for).greedy, TASK, 9)
    assert [len(found) for found in knows] == [2] * 5       # settled after the first rewording
    goes_on = self_polish.refine(problems, Reader(asked_for).greedy, TASK, 4, settle=False)
    assert [len(found) for found in goes_on] == [5] * 5


@given(st.integers(0, 6), st.booleans())
def test_there_are_at_most_so_many_rewordings(most, settle):
    tools = Reader(lambda words: tools.tokens)              # no answer comes twice
    rounds = self_polish.refine(TASK.heldout(2), tools.greedy, TASK, most, settle)
    assert [len(found) for found in rounds] == [most + 1] * 2
    assert tools.tokens == 2 * (2 * most + 1)


def test_without_rewordings_it_is_the_likeliest_answer():
    problem, = TASK.heldout(1)
    tools = Reader(only_clear)
    _, (working,) = self_polish.solve([problem], tools, self_polish.Config(rewordings=1))
    assert working["wordings"][0]["words"] == problem.prompt
    found, = self_polish.refine([problem], tools.greedy, TASK, 0)
    assert found == [{"problem": problem, "answer": tools.greedy([problem.prompt])[0]}]


def rounds_of(*said):
    return [{"problem": None, "answer": text} for text in said]


@pytest.mark.parametrize("said, last, vote, first", [
    ((" 1", " 2", " 3"), " 3", " 1", " 1"), ((" 1", " 2", " 3", " 2"), " 2", " 2", " 1"),
    ((" 1", " 2", " 2"), " 2", " 2", " 2"), ((" 1",), " 1", " 1", " 1"),
    ((" x", " y", " x"), " x", " x", " x"), ((" 1", " x", " x"), " x", " 1", " 1")])
def test_whose_answer_counts(said, last, vote, first):
    """An answer that states nothing settles nothing."""
    found = [self_polish.taken(rounds_of(*said), TASK, how) for how in ("last", "vote", "first")]
    assert found == [last, vote, first]


def test_the_arms_cost_what_they_ask_and_say_what_the_words_still_ask_for():
    problems = [p for p in TASK.heldout(40) if len(set(stages(p))) == 4][:4]
    found = {arm.name: arm for arm in self_polish.arms(problems, Reader(only_clear),
                                                       self_polish.Config())}
    right = {name: arm.result.score.value for name, arm in found.items()}
    assert right == {"as it stands": 0, "reworded once": 0, "reworded to the end": 1,
                     "until settled": 1, "rewordings that keep the answer": 1,
                     "vote, its tokens": 0}
    cost = {name: arm.each for name, arm in found.items()}
    assert cost == {"as it stands": 1, "reworded once": 3, "reworded to the end": 7,
                    "until settled": 7, "rewordings that keep the answer": 7,
                    "vote, its tokens": 7}
    lines = self_polish.show(found["until settled"].workings[0])
    assert len(lines) == 4 and lines[0].startswith(problems[0].prompt)
    assert lines[-1].endswith(f"=? Answer: '{problems[0].columns['answer']}'")


def test_a_rewording_that_changes_the_problem_is_seen():
    tools = Reader(asked_for, lambda words: "1+1=?")
    found = {arm.name: arm for arm in self_polish.arms(TASK.heldout(3), tools,
                                                       self_polish.Config())}
    assert found["rewordings that keep the answer"].result.score.value == 0
    assert found["as it stands"].result.score.value == 1
    assert found["until settled"].result.score.value == 0
    assert self_polish.show(found["until settled"].workings[0])[1] == \
        "1+1=? Answer: '2'  (asks for another number)"


def test_a_task_without_a_form_is_a_sentence():
    with pytest.raises(MinipostError, match="echo has no form for clearer words"):
        self_polish.refine(Echo().heldout(1), None, Echo(), 1)


@pytest.mark.parametrize("share, low, high", [(1.0, 0.2, 1.0), (0.0, 0.0, 0.1)])
def test_a_model_learns_to_reword_and_one_that_learns_to_answer_does_not(share, low, high):
    """A small part of the demo's lesson: three numbers, one remark and one pair at most."""
    model, words = checkpoint.load(ROOT / "checkpoints/thinker")
    task = Polish(terms=3, clutter=1, rewording=share)
    run = Run(Learner(model), words, task, task.reward, max_new_tokens=40)
    drive(run, sft.train(run, sft.Config(steps=70, batch_size=16, lr=2e-3, warmup_steps=5)), 70)
    problems = task.splits(30)["rewordings"]
    tools = Texts(run)
    right = tools.right(problems, tools.greedy([p.prompt for p in problems]))
    assert low <= sum(right) / len(right) <= high
