"""Satori: where answers are begun anew, what is learnt of them, and what is paid."""

import copy
import itertools
import random
from collections import Counter

import pytest
import torch
from conftest import tiny_model
from fakes import Echo, Hidden, drive, f64, make_run, tiny, toy
from test_tools import Caller

from minipost import methods, ops
from minipost.errors import MinipostError
from minipost.methods import grpo, satori, sft
from minipost.optim import Learner
from minipost.run import Run
from minipost.tasks.base import Problem
from minipost.tasks.search import Search
from minipost.tokenizer import Vocabulary

TEXT = "1+2=3 3+4=7 no\n2*4=8 8-1=7 nein\nand so on\n4*2=8 8+1=9 yes\nAnswer: 4*2+1"


class Marked(Echo):
    """Echo whose answers may be reflected on behind every letter that is in no prompt."""

    def reflections(self, text):
        return [k + 1 for k, letter in enumerate(text) if letter in "efgh"]


SMALL = dict(steps=2, cold_steps=2, cold_start=8, prompts=6, group_size=4, minibatch_size=8,
             restarts=12, tries=4, lr=1e-2)


def even(prompts, completions, **columns):
    """1.0 for about half of the texts of an untrained model."""
    return [float(len(text) % 2 == 0) for text in completions]


def run_of(reward=even, **options):
    run = make_run(Marked(), tiny(seed=1), max_new_tokens=8, **options)
    run.reward = reward
    return run


def pairs_of(run, **settings):
    return satori.pairs(run, satori.Config(**{**SMALL, **settings}), run.policy.module)


# ---- where an answer is begun anew

def test_a_restart_ends_in_front_of_a_verdict():
    """Behind each attempt, in no other line; without its verdict the same places."""
    found = [TEXT[:place] for place in Search().reflections(TEXT)]
    assert found == ["1+2=3 3+4=7", "1+2=3 3+4=7 no\n2*4=8 8-1=7",
                     "1+2=3 3+4=7 no\n2*4=8 8-1=7 nein\nand so on\n4*2=8 8+1=9"]
    bare = TEXT.replace(" no", "").replace(" nein", "").replace(" yes", "")
    assert len(Search().reflections(bare)) == 3 and Search().reflections("Answer: 3\n1+") == []


@pytest.mark.parametrize("most", [0, 1, 2, 9])
def test_so_many_steps_are_taken_off_each_as_often(most):
    """t is uniform on 0 .. min(T, L - 1) of L steps, and the first is never taken off."""
    run = run_of()
    ids = run.vocabulary.response("ahbhchd")[:-1]
    rng, n = random.Random(0), 6000
    found = Counter(satori.restart(run, Problem("e"), [ids[-1:], ids], True, most, rng).begun
                    for _ in range(n))
    ways = ["ahbhch", "ahbh", "ah"][: most + 1]
    assert set(found) == set(ways)
    for begun in ways:
        share = found[begun] / n
        assert abs(share - 1 / len(ways)) < 4.5 * (1 / len(ways) / n) ** 0.5
    assert satori.restart(run, Problem("e"), [ids[-1:]], True, most, rng) is None


def test_of_several_answers_each_is_begun_anew_as_often():
    run, rng, n = run_of(), random.Random(0), 2000
    answers = [run.vocabulary.response(text)[:-1] for text in ("ah", "bh", "ccc", "dh")]
    found = Counter(satori.restart(run, Problem("e"), answers, True, 2, rng).begun
                    for _ in range(n))
    assert set(found) == {"ah", "bh", "dh"}
    assert all(abs(k / n - 1 / 3) < 4.5 * (1 / 3 / n) ** 0.5 for k in found.values())


def test_a_beginning_is_the_ids_that_were_sampled_and_leaves_room(words):
    """One that would be encoded otherwise, or that fills the context, is none."""
    vocabulary = Vocabulary(words, words.before, [words.id("<eos>")], words.id("<pad>"))
    run = Run(Learner(tiny_model(context=64)), vocabulary, Search(), None, max_new_tokens=20)
    problem, text = Problem("Reach 7"), "1+2=3 3+4=7 no\n2+1=3 3+4=7"
    ids = vocabulary.response(text)[:-1]
    asked = run.prompt_ids("Reach 7")
    first, second = satori.beginnings(run, problem, ids)
    assert (first, second) == ("1+2=3 3+4=7", text)
    for begun in (first, second):
        whole = run.prompt_ids("Reach 7" + begun)
        assert whole == (asked + ids)[: len(whole)]
    run.max_new_tokens = 64 - len(asked + ids)
    assert len(satori.beginnings(run, problem, ids)) == 2
    run.max_new_tokens += 1
    assert satori.beginnings(run, problem, ids) == [first]
    run.max_new_tokens = 20
    vocabulary.prompt = lambda text, **how: asked + [2 * i for i in vocabulary.response(text)[:-1]]
    assert satori.beginnings(run, problem, ids) == []


def test_of_a_problem_one_right_and_one_wrong_answer_are_begun_anew():
    """The beginnings are of answers that the module gave, and are graded as they were.

    The problems are others than those of the step."""
    run, cfg = run_of(), satori.Config(**SMALL)
    drawn, real = [], run.problems
    run.problems = lambda n, again=0: drawn.append((n, again)) or real(n, again)
    found = pairs_of(run)
    assert found and drawn == [(12, 1)]
    problems = run.problems(cfg.restarts, again=1)
    rollout = run.sample(problems, cfg.tries, temperature=1.0, purpose="restarts")
    texts, reward = run.texts(rollout), run.grade(problems, rollout).tolist()
    for wrong, right in found:
        assert wrong.of == right.of and (wrong.right, right.right) == (False, True)
        for each in (wrong, right):
            assert each.prompt == each.of.prompt + each.begun and each.columns == each.of.columns
            assert each.begun[-1] in "efgh"
            assert any(text.startswith(each.begun) and worth == each.right
                       for text, worth, i in zip(texts, reward, rollout.prompt.tolist())
                       if problems[i] == each.of)
    both = {problems[i].prompt for i in range(len(problems))
            if {0.0, 1.0} == set(reward[4 * i : 4 * i + 4])}
    assert {wrong.of.prompt for wrong, _ in found} <= both


def test_without_right_and_wrong_answers_there_is_no_restart():
    for worth in (0.0, 1.0):
        run = run_of(lambda prompts, completions, **columns: [worth] * len(completions))
        with pytest.raises(MinipostError, match="no problem of 12 has a right and a wrong answer"):
            pairs_of(run)


@pytest.mark.parametrize("share, each", [(0.0, (6, 0, 0)), (0.667, (2, 2, 2)), (0.5, (3, 2, 1)),
                                         (0.8, (1, 3, 2)), (1.0, (0, 3, 3))])
def test_each_kind_of_state_has_its_share(share, each):
    """The paper's: as many problems as z- and as z+."""
    run = run_of()
    starts = satori.Starts(run, pairs_of(run), share)
    with run.on(starts):
        assert run.reward is even
        found = run.problems(6)
    again = [p for p in found if isinstance(p, satori.Restart)]
    wrong = sum(not p.right for p in again)
    assert (len(found) - len(again), wrong, len(again) - wrong) == each


# ---- what is learnt of it

def test_the_mask_begins_behind_the_restart():
    """In every batch that GRPO learns from the beginning is there, and is prompt to the token."""
    run = run_of()
    learn = satori.train(run, satori.Config(**SMALL))
    drive(run, learn, 2)
    seen, real = [], run.keep
    run.keep = lambda problems, rollout, *more: (seen.append((problems, rollout)),
                                                 real(problems, rollout, *more))
    drive(run, learn, 1)
    (problems, rollout), = seen
    begun = 0
    for tokens, mask, k in zip(rollout.tokens.tolist(), rollout.mask.tolist(),
                               rollout.prompt.tolist()):
        problem = problems[k]
        again = isinstance(problem, satori.Restart)
        asked = run.prompt_ids(problem.of.prompt if again else problem.prompt)
        said = run.vocabulary.response(problem.begun)[:-1] if again else []
        first = mask.index(True) + 1                            # of the tokens that are learnt
        assert tokens[:first] == asked + said and all(mask[first - 1 : first - 1 + sum(mask)])
        begun += again
    assert begun == 4 * 4
    assert not rollout.logp[~rollout.mask].any()


def test_a_beginning_gets_no_gradient_of_its_own():
    """The step's gradient is that of the log-probs behind the restart alone, token by token."""
    run = run_of()
    (wrong, right), *_ = pairs_of(run)
    problems = [wrong, right]
    rollout = run.rollout(problems, 2, temperature=1.0)
    adv = torch.tensor([1.0, -1.0, 0.5, -0.5], dtype=torch.float64)
    logp = run.logprobs(run.policy.module, rollout)
    zero = torch.zeros_like(logp)
    count = int(rollout.mask.sum())
    slope = grpo.loss_grad(logp, logp, zero, adv, rollout.mask, clip=0.2, beta=0.0,
                           count=count)["logp"]
    for row in range(4):
        first = len(run.prompt_ids(problems[row // 2].prompt)) - 1
        assert not slope[row, :first].any() and slope[row, first] == -adv[row] / count


# ---- what is paid

def test_the_bonus_by_brute_force():
    """All combinations, as the paper's three cases say it."""
    cases = list(itertools.product((False, True), (-1, 0, 1)))
    right, began = (torch.tensor(column) for column in zip(*cases))
    expected = [0.5 if z == -1 and good else -0.5 if z == 1 and not good else 0.0
                for good, z in cases]
    assert satori.bonus(right, began, 0.5).tolist() == expected
    assert not satori.bonus(right, began, 0.0).any()


def test_the_whole_answer_is_graded_and_what_it_was_begun_with_decides_the_bonus():
    run, graded = run_of(), []

    def odd(prompts, completions, **columns):
        graded.extend(zip(prompts, completions))
        return [float(len(text) % 2) for text in completions]

    found = pairs_of(run)
    run.reward = odd
    problems = [Problem("a", {"letter": "a"}), *found[0]]
    rollout = run.rollout(problems, 5, temperature=1.0)
    score = satori.Score(run, 0.5)
    got, texts = score(problems, rollout).tolist(), run.texts(rollout)
    shares = {}
    for k, (worth, text) in enumerate(zip(got, texts)):
        problem = problems[k // 5]
        whole = (problem.begun if k >= 5 else "") + text
        assert graded[k] == ((problem.of if k >= 5 else problem).prompt, whole)
        good = len(whole) % 2
        shares.setdefault(k // 5, []).append(good)
        assert worth == {0: good, 1: 1.5 * good, 2: good - 0.5 * (1 - good)}[k // 5]
    assert score.seen == {name: pytest.approx(sum(shares[k]) / 5)
                          for k, name in enumerate(("accuracy", "mended", "kept"))}


def test_the_bonus_weighs_restarts_and_over_the_deviation_it_would_cancel():
    """A group from one state has two rewards: 1 + b apart from a restart."""
    right = torch.tensor([True, False, False, True] * 3)
    began = torch.tensor([-1] * 4 + [1] * 4 + [0] * 4)
    plain = right.double()
    paid = plain + satori.bonus(right, began, 0.5)
    ours = satori.advantages(paid, 4) / satori.advantages(plain, 4)
    assert torch.allclose(ours, f64([1.5] * 8 + [1.0] * 4))
    grpos = ops.group_normalised(paid, 4) / ops.group_normalised(plain, 4)
    assert torch.allclose(grpos, f64([1.0] * 12), atol=2e-4)
    shifted = satori.advantages(paid - 1, 4)                 # the paper's rule is one less
    assert torch.allclose(shifted, satori.advantages(paid, 4))


# ---- the stages

def plain(cfg, **options):
    """(run, metrics): SFT, then GRPO on advantages that are centred alone."""
    run = run_of(**options)
    rows = sft.demonstrations(run, cfg.cold_start)
    found = drive(run, sft.train(run, sft.Config(cfg.cold_steps, lr=cfg.sft_lr), rows),
                  cfg.cold_steps)
    run.policy.reset_optimizer()
    fields = grpo.Config.__dataclass_fields__
    grpos = grpo.Config(**{k: v for k, v in vars(cfg).items() if k in fields})
    return run, found + drive(run, grpo.train(run, grpos, first=cfg.cold_steps,
                                              advantages=satori.advantages), cfg.steps)


@pytest.mark.parametrize("bonus", [0.0, 0.5])
def test_without_restarts_it_is_sft_and_then_grpo(bonus):
    """To the last bit, whatever the bonus, on the reward that the run has."""
    cfg = satori.Config(**SMALL, share=0.0, bonus=bonus, schedule="linear")
    run = run_of()
    assert satori.total(run, cfg) == 4 and satori.milestones(run, cfg) == {2: "format tuning"}
    found = drive(run, satori.train(run, cfg), 4)
    other, steps = plain(cfg)
    assert torch.equal(run.policy.flat, other.policy.flat) and run.tokens == other.tokens
    for a, b in zip(found, steps, strict=True):
        assert {k: v for k, v in a.items() if k != "accuracy"} == b
    assert set(found[-1]) - set(steps[-1]) == {"accuracy"}


def test_restarts_and_the_bonus_change_the_step():
    """Each of them; and the restarts' own tokens are counted."""
    ends, tokens = {}, {}
    for share, bonus in itertools.product((0.0, 0.667), (0.0, 0.5)):
        run = run_of()
        drive(run, satori.train(run, satori.Config(**SMALL, share=share, bonus=bonus)), 3)
        ends[share, bonus], tokens[share, bonus] = run.policy.flat.clone(), run.tokens
    assert torch.equal(ends[0.0, 0.0], ends[0.0, 0.5])
    assert not torch.equal(ends[0.667, 0.0], ends[0.0, 0.0])
    assert not torch.equal(ends[0.667, 0.5], ends[0.667, 0.0])
    spent = tokens[0.667, 0.5] - tokens[0.0, 0.5]
    assert tokens[0.667, 0.5] == tokens[0.667, 0.0] and spent > 12 * 4


def test_a_resumed_run_goes_on_in_its_stage():
    """From the middle of format tuning and of RL, where the restarts are those of the first step.

    Weights, metrics and the count of tokens."""
    cfg = satori.Config(**{**SMALL, "steps": 3})
    whole = run_of()
    metrics = drive(whole, satori.train(whole, cfg), 5)
    for at in range(1, 5):
        run, again = run_of(), run_of()
        again.policy.flat.zero_()
        drive(run, satori.train(run, cfg), at)
        again.restore(*copy.deepcopy(run.state()))
        assert drive(again, satori.train(again, cfg), 5 - at) == metrics[at:], at
        assert torch.equal(again.policy.flat, whole.policy.flat), at
        assert again.tokens == whole.tokens, at


def test_restarts_are_of_the_policy_as_format_tuning_left_it(spy):
    """Not of the one that the run began with, and they are looked for once."""
    watched = spy(satori, "pairs")
    run, cfg = run_of(), satori.Config(**SMALL)
    learn = satori.train(run, cfg)
    start = run.policy.flat.clone()
    drive(run, learn, 2)
    tuned = run.policy.flat.clone()
    drive(run, learn, 2)
    (given, _), = watched
    assert torch.equal(Learner(given["module"]).flat, tuned) and not torch.equal(tuned, start)
    assert not torch.equal(run.policy.flat, tuned)


def test_what_it_cannot_learn_from_is_refused():
    with pytest.raises(MinipostError, match="nothing says where an answer to the task echo may be"):
        satori.check(make_run(Echo()), satori.Config())
    with pytest.raises(MinipostError, match="satori goes on from the middle of answers"):
        satori.check(make_run(Caller()), satori.Config())
    hidden = toy(Hidden())
    hidden.task = Marked()
    with pytest.raises(MinipostError, match="the reward of echo is hidden from learners"):
        satori.check(hidden, satori.Config())
    satori.check(run_of(), satori.Config())
    for wrong in (dict(share=1.5), dict(tries=1), dict(backtrack=-1)):
        with pytest.raises(MinipostError, match=f"{next(iter(wrong))} is"):
            satori.Config(**wrong)


def test_its_file_says_what_it_takes():
    method = methods.load("satori")
    assert method.TASK == "search" and isinstance(method.PROOF, str)
    assert not method.ON_POLICY and not method.SCORED
