"""Answers in which a tool has a say: what is masked, what is recorded, where they end."""

import pickle
import random

import pytest
import torch
from fakes import BOS, EOS, PAD, Echo, Letters, make_run, randn, stretches, tiny
from hypothesis import given
from hypothesis import strategies as st

from minipost import checkpoint
from minipost.chat import Turns
from minipost.datasets.tools import observation, observations, with_tool
from minipost.errors import MinipostError
from minipost.measure.results import evaluate
from minipost.methods import grpo, math_shepherd, oreo, r1, reinforce_pp, rft, vineppo
from minipost.ops import gae
from minipost.rollout import Rollout, pack, readings
from minipost.tasks.base import Problem
from minipost.tasks.calculator import Calculator


class Caller(Echo):
    """Echo with a tool: behind each "h" it writes the prompt's letter twice."""

    name, call_end, acts = "caller", "h", True

    def __init__(self):
        self.said = []

    def tool(self, problem, text):
        assert text.endswith("h")
        self.said.append((problem, text))
        return 2 * problem.prompt


def calling(seed=1, **options):
    """A run of a network that calls often."""
    model = tiny(seed=seed)
    return make_run(Caller(), model, **{"max_new_tokens": 12, **options})


def apart(rollout, row):
    """[(ids, whether the policy chose them)] of an answer, in stretches."""
    mask, targets = rollout.mask[row].tolist(), rollout.targets[row].tolist()
    first, last = mask.index(True), len(mask) - mask[::-1].index(True)
    found = []
    for token, chosen in zip(targets[first:last], mask[first:last]):
        if not found or found[-1][1] != chosen:
            found.append(([], chosen))
        found[-1][0].append(token)
    return found


# ---- the mask, and what is recorded

def test_the_mask_leaves_out_what_the_tool_wrote_and_nothing_else():
    run = calling()
    problems = run.task.heldout(4)
    rollout = run.sample(problems, 8, temperature=1.0)
    assert len(rollout) == 32 and int(observations(rollout).sum()) > 10
    for row in range(len(rollout)):
        problem, stretches = problems[int(rollout.prompt[row])], apart(rollout, row)
        assert rollout.tokens[row, :2].tolist() == run.prompt_ids(problem.prompt)
        assert not rollout.mask[row, :1].any() and rollout.mask[row, 1]
        for k, (ids, chosen) in enumerate(stretches):
            assert chosen == (k % 2 == 0)
            if not chosen:
                assert run.vocabulary.decode(ids) == 2 * problem.prompt
                said = stretches[k - 1][0]
                assert said[-1] == run.vocabulary.prompt("h")[-1]
                behind = sum((ids for ids, _ in stretches[:k]), [])
                assert (problem, run.vocabulary.decode(behind)) in run.task.said
        assert int(observations(rollout)[row]) == sum(not chosen for _, chosen in stretches)
    assert (rollout.logp[~rollout.mask] == 0).all() and (rollout.logp[rollout.mask] < 0).all()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_are_those_that_training_computes(temperature):
    run = calling()
    rollout = run.rollout(run.task.heldout(4), 8, temperature=temperature)
    again = run.logprobs(run.policy.module, rollout, temperature)
    assert int(observations(rollout).sum()) > 10
    assert (again - rollout.logp).abs().max() < 1e-5 < 1 < rollout.logp.abs().max()
    run.compare(again, rollout)
    assert 0 <= run.differences()["sampling_logp_difference/max"] < 1e-5


def test_grpos_gradient_is_of_the_policys_tokens_alone():
    """Against a loop over the tokens that it chose, each behind all that was written before."""
    run = calling()
    rollout = run.rollout(run.task.heldout(4), 4, temperature=1.0)
    adv, model = randn(1, len(rollout)), run.policy.module
    assert int(observations(rollout).sum()) > 2
    count = int(rollout.mask.sum())
    logp = readings(model, rollout).logp
    options = dict(clip=0.2, beta=0.0, count=count)
    value, _ = grpo.loss(logp, logp.detach(), torch.zeros_like(logp), adv, rollout.mask, **options)
    found = torch.autograd.grad(value, list(model.parameters()))
    total = 0.0
    for row in range(len(rollout)):
        ids = rollout.tokens[row].tolist()
        places = [k for k, chosen in enumerate(rollout.mask[row].tolist()) if chosen]
        law = model(torch.tensor([ids[: places[-1] + 2]])).log_softmax(-1)[0]
        total = total - adv[row] * sum(law[k, ids[k + 1]] for k in places) / count
    wanted = torch.autograd.grad(total, list(model.parameters()))
    for a, b in zip(found, wanted):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)


def test_without_calls_it_is_the_rollout_of_a_task_without_a_tool():
    run, plain = calling(), make_run(Echo(), tiny(seed=1), max_new_tokens=12)
    run.task.call_end = "no token holds this"
    a, b = (each.sample(each.task.heldout(4), 4, temperature=1.0) for each in (run, plain))
    for name in ("tokens", "mask", "logp", "prompt", "finished"):
        x, y = getattr(a, name), getattr(b, name)
        width = min(x.shape[-1], y.shape[-1])
        assert torch.equal(x[..., :width], y[..., :width]), name
    assert run.tokens == plain.tokens


def test_the_same_seed_samples_the_same_and_only_sampled_tokens_count():
    a, b = calling(), calling()
    x, y = (each.sample(each.task.heldout(4), 4, temperature=1.0) for each in (a, b))
    assert torch.equal(x.tokens, y.tokens) and a.tokens == int(x.mask.sum()) < len(x) * 12
    other = calling()
    other.seed = 1
    assert not torch.equal(other.sample(other.task.heldout(4), 4, temperature=1.0).tokens, x.tokens)


def test_two_ranks_write_what_one_does(python):
    """Each asks the tool for all answers, which all ranks have."""
    code = ("import sys; sys.path.insert(0, 'tests')\n"
            "from test_tools import calling\n"
            "from minipost import parallel\n"
            "def work():\n"
            "    run = calling()\n"
            "    found = run.sample(run.task.heldout(3), 3, temperature=1.0)\n"
            "    return [x.tolist() for x in (found.tokens, found.mask)]\n")
    found = python("-c", code + "one, two = parallel.launch(work, 1), parallel.launch(work, 2)\n"
                   "print(one == two, sum(map(sum, one[1])) > 20)")
    assert found.stdout.split() == ["True", "True"], found.stderr


def test_texts_and_ids_of_answers_hold_the_observations():
    run = calling()
    problems = run.task.heldout(4)
    rollout = run.sample(problems, 4, temperature=1.0)
    seen = 0
    for row, (text, ids) in enumerate(zip(run.texts(rollout), rollout.written())):
        whole = sum((part for part, _ in apart(rollout, row)), [])
        assert ids == whole == run.completion_ids([text] * 16, rollout)[row]
        assert text == run.vocabulary.decode(whole)
        seen += 2 * problems[int(rollout.prompt[row])].prompt in text
    assert seen > 3


def test_held_out_problems_are_answered_with_the_tool():
    run = calling()
    result = evaluate(run, run.task.heldout(4), 1.0)
    assert any(2 * p.prompt in text for p, text in zip(run.task.heldout(4), result.texts))


# ---- where an answer ends

H = Letters().prompt("h")[-1]


def scripted(*rounds):
    """complete() that gives these responses, one list of ids for each row of a round."""
    asked, rounds = [], list(rounds)

    def complete(prompts, group_size, turn, room):
        assert turn == len(asked)
        asked.append((prompts, room))
        responses = [ids[:room] for ids in rounds.pop(0)]
        rows = [p for p in prompts for _ in range(group_size)]
        seqs = pack(rows, responses, PAD)
        return Rollout(seqs.tokens, seqs.mask, -seqs.mask.float(),
                       torch.arange(len(prompts)).repeat_interleave(group_size),
                       torch.tensor([ids[-1] in (EOS, H) for ids in responses]))
    return complete, asked


def told(*rounds, room=9, group_size=1):
    complete, asked = scripted(*rounds)
    problems = [Problem("a"), Problem("b")][: len(rounds[0]) // group_size]
    prompts = [Letters().prompt(p.prompt) for p in problems]
    found = with_tool(complete, Letters(), Caller(), problems, prompts, group_size, room, {H})
    return found, asked


def test_a_call_is_answered_and_the_answer_goes_on():
    found, asked = told([[5, H], [6, EOS]], [[7, EOS]])
    assert found.tokens.tolist() == [[BOS, 3, 5, H, 3, 3, 7, EOS], [BOS, 4, 6, EOS] + [PAD] * 4]
    assert found.mask.tolist() == [[False, True, True, False, False, True, True],
                                   [False, True, True] + [False] * 4]
    assert found.finished.tolist() == [True, True] and found.prompt.tolist() == [0, 1]
    assert asked == [([[BOS, 3], [BOS, 4]], 9), ([[BOS, 3, 5, H, 3, 3]], 5)]
    assert torch.equal(found.logp, -found.mask.float())


def test_a_call_that_the_limit_cuts_off_ends_its_answer():
    found, asked = told([[5, 5, 5, H]], room=3)             # before its end
    assert found.tokens.tolist() == [[BOS, 3, 5, 5, 5]] and len(asked) == 1
    assert found.finished.tolist() == [False]
    found, asked = told([[5, 5, H]], room=3)                # with its end
    assert found.tokens.tolist() == [[BOS, 3, 5, 5, H]] and len(asked) == 1
    assert found.finished.tolist() == [False]


@pytest.mark.parametrize("room, observed", [(3, False), (4, False), (5, True)])
def test_an_observation_is_written_only_where_a_token_may_follow(room, observed):
    found, asked = told([[5, H]], [[7]], room=room)
    assert found.tokens.tolist() == [[BOS, 3, 5, H] + [3, 3, 7] * observed]
    assert found.lengths.tolist() == [3 if observed else 2] and not found.finished.any()
    assert len(asked) == 1 + observed and len(found.written()[0]) <= room


def test_each_answer_has_its_own_length():
    """The round that follows is as long as its longest may be; others are cut."""
    found, asked = told([[5, 5, 5, H], [5, H]], [[7] * 5, [7] * 5], room=9)
    assert asked[1][1] == 5
    assert [len(ids) for ids in found.written()] == [9, 9]
    assert found.tokens[0].tolist() == [BOS, 3, 5, 5, 5, H, 3, 3, 7, 7, 7]
    assert not found.finished.any()


def test_answers_to_one_prompt_part_where_they_call():
    found, asked = told([[5, H], [6, H]], [[7, EOS], [8, H]], [[9, EOS]], room=12, group_size=2)
    assert found.prompt.tolist() == [0, 0]
    assert [prompts for prompts, _ in asked[1:]] == [
        [[BOS, 3, 5, H, 3, 3], [BOS, 3, 6, H, 3, 3]], [[BOS, 3, 6, H, 3, 3, 8, H, 3, 3]]]
    assert observations(found).tolist() == [1, 2]


@given(st.data())
def test_no_answer_is_longer_than_its_room(data):
    room = data.draw(st.integers(1, 12))
    response = st.lists(st.sampled_from([3, 5, H]), min_size=1, max_size=room).map(
        lambda ids: ids[: ids.index(H) + 1] if H in ids else ids)
    found, _ = told(*[[data.draw(response)] for _ in range(13)], room=room)
    ids = found.written()[0]
    assert len(ids) <= room and int(found.mask.sum()) + 2 * int(observations(found)) == len(ids)


class Pairs(Letters):
    """Letters, and a token 10 of two of them, which encoding never takes."""

    letters = "abcdefh"

    def decode(self, ids):
        return "".join("aa" if i == 10 else self.letters[i - 3] for i in ids if i >= 3)


def test_ids_that_were_sampled_stay_as_they_are():
    """A text has several encodings; what goes on stands behind the ids that were sampled."""
    words, task = Pairs(), Caller()
    end = words.prompt("h")[-1]
    asked = []

    def complete(prompts, group_size, turn, room):
        asked.append(prompts)
        seqs = pack(prompts, [[4, EOS] if turn else [10, end]], PAD)
        return Rollout(seqs.tokens, seqs.mask, -seqs.mask.float(), torch.tensor([0]),
                       torch.tensor([True]))

    found = with_tool(complete, words, task, [Problem("c")], [words.prompt("c")], 1, 9, {end})
    assert task.said == [(Problem("c"), "aah")]
    assert asked[1] == [[BOS, 5, 10, end, 5, 5]]
    assert found.tokens.tolist() == [[BOS, 5, 10, end, 5, 5, 4, EOS]]


# ---- tools that fail

def test_a_tool_that_raises_says_so_in_the_answer():
    class Broken(Caller):
        def tool(self, problem, text):
            return 1 // 0

    assert observation(Broken(), Problem("a"), "h") == " error: ZeroDivisionError\n"


@pytest.mark.parametrize("call, said", [
    ("[12+7]", "=19"), ("7+5=12\n[12-30]", "=-18"), ("[999999999+1]", "=1000000000"),
    ("[12+7", "=error"), ("12+7]", "=error"), ("[]", "=error"), ("[12*7]", "=error"),
    ("[1+2+3]", "=error"), ("[12+]", "=error"), ("[+7]", "=error"), ("[a+b]", "=error"),
    ("[12 + 7]", "=error"), ("[9999999999+1]", "=error"), ("]", "=error"), ("[[1+2]", "=3"),
    ("[1+2]3]", "=error"), ("[\u0661+2]", "=error")])
def test_what_the_calculator_says(call, said):
    assert Calculator().tool(None, call) == f"{said}\n"


@given(st.text(st.sampled_from("[]+-019= \nx"), max_size=12))
def test_the_calculator_never_raises_and_ends_its_line(text):
    said = Calculator().tool(None, text + "]")
    assert said.startswith("=") and said.index("\n") == len(said) - 1


# ---- demonstrations

@pytest.fixture(scope="module")
def base():
    return checkpoint.load("checkpoints/base")


def test_a_demonstration_is_masked_as_a_rollout_of_the_same_text_is(base):
    """Token by token: the model's parts are sampled, the calculator's put in."""
    from minipost.optim import Learner
    from minipost.run import Run

    model, words = base
    task = Calculator(calls=0.5)
    run = Run(Learner(model), words, task, task.reward, max_new_tokens=96)
    problems = task.heldout(6)
    said = [task.demonstrate(p, random.Random(k)) for k, p in enumerate(problems)]
    assert len({len(text.parts) for text in said}) > 2
    for problem, text in zip(problems, said):
        assert len(text.parts) % 2 and text == "".join(text.parts)
        for k, part in enumerate(text.parts):
            assert part.startswith("=") and part.endswith("\n") if k % 2 else "[" not in part[:-1] \
                or part.count("[") == 1
        parts = iter([words.response(part)[: None if last else -1] for last, part in zip(
            [*[False] * (len(text.parts[::2]) - 1), True], text.parts[::2])])

        def complete(prompts, group_size, turn, room):
            seqs = pack(prompts, [next(parts)], words.pad)
            return Rollout(seqs.tokens, seqs.mask, -seqs.mask.float(), torch.tensor([0]),
                           torch.tensor([True]))

        found = with_tool(complete, words, task, [problem], [run.prompt_ids(problem.prompt)], 1, 96,
                          run.holding("]"))
        taught = run.encode([problem], [text])
        assert torch.equal(found.tokens, taught.tokens) and torch.equal(found.mask, taught.mask)
        assert found.finished.all() and run.texts(found) == [str(text)]
        assert task.reward([""], run.texts(found), answer=[problem.columns["answer"]]) == [1.0]


def test_turns_survive_a_copy():
    turns = Turns(["a", "b", "c"])
    again = pickle.loads(pickle.dumps(turns))
    assert again == "abc" and again.parts == ["a", "b", "c"] and type(again) is Turns


# ---- what learns from such answers

def opened(x, fill):
    """(B, T) with two columns of this number put in behind column 2."""
    hole = torch.full((len(x), 2), fill, dtype=x.dtype)
    return torch.cat([x[:, :3], hole, x[:, 3:]], 1)


@pytest.mark.parametrize("gamma, lam", [(1.0, 1.0), (0.9, 0.8)])
def test_advantages_pass_an_observation_as_if_it_were_not_there(gamma, lam):
    reward, value, mask = stretches(5, rows=30)
    plain = gae(reward.where(mask, 0.0), value, mask, gamma, lam)
    holed = gae(opened(reward.where(mask, 0.0), 7.0), opened(value, 5.0),
                opened(mask, False), gamma, lam)
    assert (mask[:, 2] & mask[:, 3]).any()
    assert torch.equal(torch.cat([holed[:, :3], holed[:, 5:]], 1), plain)
    assert (holed[:, 3:5] == 0).all()


def test_returns_pass_an_observation_as_if_it_were_not_there():
    _, ratio, mask = stretches(6, rows=30)
    reward = randn(3, len(mask))
    plain = reinforce_pp.returns(reward, ratio.where(mask, 0.0), mask, 0.3)
    holed = reinforce_pp.returns(reward, opened(ratio.where(mask, 0.0), 0.0),
                                 opened(mask, False), 0.3)
    assert torch.allclose(torch.cat([holed[:, :3], holed[:, 5:]], 1), plain, rtol=0, atol=1e-12)


def test_actions_begin_at_the_policys_own_tokens():
    run = calling()
    run.task.step_end = "h"
    rollout = run.sample(run.task.heldout(4), 4, temperature=1.0)
    begun = oreo.starts(run, rollout, "step")
    assert int(observations(rollout).sum()) > 5
    assert not (begun & ~rollout.mask).any()
    for row in range(len(rollout)):
        ids = rollout.targets[row][rollout.mask[row]].tolist()
        chosen = rollout.mask[row].nonzero()[:, 0].tolist()
        wanted = {chosen[0], *(chosen[k] for k in range(1, len(ids)) if ids[k - 1] == H
                               or ids[k] == EOS and k == len(ids) - 1)}
        assert set(begun[row].nonzero()[:, 0].tolist()) == wanted


@pytest.mark.parametrize("module, why", [
    (rft, "rft learns every token"), (r1, "r1 learns every token"),
    (vineppo, "vineppo goes on from the middle of answers"),
    (math_shepherd, "math-shepherd goes on from the middle of answers")])
def test_methods_that_a_tool_would_mislead_refuse_it(module, why):
    with pytest.raises(MinipostError,
                       match=f"{why}.*of the task caller a tool has a say; choose tool-use"):
        module.check(calling(), module.Config())
    if "middle" in why:
        module.check(make_run(Echo()), module.Config())
