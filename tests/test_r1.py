"""R1-Zero and R1: rules with weights, and stages one after the other."""

import random
from dataclasses import replace

import pytest
import torch
from conftest import tiny_model

from minipost import train
from minipost.errors import MinipostError
from minipost.methods import grpo, r1, r1_zero, sft
from minipost.optim import Learner
from minipost.run import Run
from minipost.tasks.arithmetic import Arithmetic
from minipost.tasks.search import Search
from minipost.tasks.wording import Wording
from minipost.tokenizer import Vocabulary
from scripts import demos

SMALL = r1.Config(steps=2, cold_start=6, cold_steps=2, rejection_prompts=4, rejection_steps=2,
                  reward_steps=2, align_steps=2, prompts=4, group_size=2, minibatch_size=8)


def opened(words, reward=None, task=None):
    model = tiny_model(context=512).double()
    vocabulary = Vocabulary(words, words.before, [words.id("<eos>")], words.id("<pad>"))
    task = task or Search()
    return Run(Learner(model), vocabulary, task, reward or task.reward, max_new_tokens=4)


def even(prompts, completions, **columns):
    """1.0 for about half of the texts of an untrained model."""
    return [float(len(text) % 2 == 0) for text in completions]


def steps(run, learn, n):
    found = []
    for _ in range(n):
        found.append(next(learn))
        run.step += 1
    return found


class Ruled(Search):
    """Search with rules that an untrained model can keep."""

    rules = {"format": lambda prompts, completions, **columns: [float(len(t) > 2)
                                                              for t in completions]}


def test_the_score_is_the_weighted_sum_of_the_rules_and_each_is_logged(words):
    run = opened(words, even, Ruled())
    problems = run.problems(3)
    rollout = run.sample(problems, 2, temperature=1.0)
    texts = run.texts(rollout)
    rules = r1_zero.Rules(run, {"accuracy": 2.0, "format": 0.25, "language": 0.0})
    expected = [2.0 * (len(t) % 2 == 0) + 0.25 * (len(t) > 2) for t in texts]
    assert rules(problems, rollout).tolist() == expected
    assert rules.seen["accuracy"] == pytest.approx(sum(len(t) % 2 == 0 for t in texts) / 6)
    assert rules.seen["format"] == pytest.approx(sum(len(t) > 2 for t in texts) / 6)
    assert {"attempts", "backtracks", "checks", "sound"} <= set(rules.seen)


def test_r1_zero_is_grpo_on_the_rules(words):
    """Two steps, to the last bit; without the form's weight they are others."""
    weights = {}
    for form in (0.25, 0.0):
        run, other = (opened(words, even, Ruled()) for _ in "ab")
        cfg = r1_zero.Config(prompts=4, group_size=2, minibatch_size=8, format=form)
        learn = r1_zero.train(run, cfg)
        metrics = steps(run, learn, 2)
        plain = grpo.train(other, grpo.Config(prompts=4, group_size=2, minibatch_size=8, beta=0.0,
                                              lr=cfg.lr),
                           lambda problems, rollout: other.grade(problems, rollout)
                           + 0.25 * other.grade_texts(
                               [problems[i] for i in rollout.prompt.tolist()],
                               other.texts(rollout), Ruled.rules["format"]).to(rollout.logp))
        assert metrics[0]["reward"] == pytest.approx(
            metrics[0]["accuracy"] + form * metrics[0]["format"])
        steps(other, plain, 2)
        weights[form] = torch.equal(run.policy.flat, other.policy.flat)
    assert weights == {0.25: True, 0.0: False}


def test_thoughts_are_means_of_an_answer_and_soundness_a_share_of_the_checks(words):
    task = Search()
    problem, = task.sample(1, random.Random(0))
    texts = ["", "1+1=2 no\n1+2=3 yes\nAnswer: 3"]
    found = r1_zero.thought(task.thinking, [problem] * 2, texts)
    each = task.thinking(problem, texts[1])
    assert found["attempts"] == each["attempts"] / 2 == 1
    assert found["checks"] == 1 and found["backtracks"] == 0.5
    assert found["sound"] == each["sound"] / 2


def test_missing_rules_and_rewards_of_nothing_are_refused(words):
    run = opened(words, task=Arithmetic())
    with pytest.raises(MinipostError, match="arithmetic has no rule 'format'; give --format 0"):
        r1_zero.check(run, r1_zero.Config())
    r1_zero.check(run, r1_zero.Config(format=0))
    with pytest.raises(MinipostError, match="no rule has a weight"):
        r1_zero.check(run, r1_zero.Config(format=0, accuracy=0))


def test_a_hidden_reward_is_no_rule(words):
    for reward in (None, even):
        run = opened(words, reward, Wording())
        run.hidden = True
        with pytest.raises(MinipostError, match="the reward of wording is hidden from learners"):
            r1_zero.check(run, r1_zero.Config(format=0))
    run.hidden = False
    r1_zero.check(run, r1_zero.Config(format=0))


def test_kept_answers_keep_each_rule_that_has_a_weight(words):
    """A sum would let a large reward pay for a broken form, and rounds where weights are large."""
    run = opened(words, lambda prompts, completions, **columns: [3.0, 1.0, 0.5, 1.0], Ruled())
    run.task = run.task.__class__()
    rules = r1_zero.Rules(run, {"accuracy": 1e6, "format": 0.1, "language": 0.0})
    rules.rules["format"] = lambda prompts, completions, **columns: [0.0, 1.0, 1.0, 1.0]
    problems = run.problems(2)
    rules(problems, run.sample(problems, 2, temperature=1.0))
    assert rules.kept().tolist() == [False, True, False, True]


def test_methods_that_make_their_own_score_say_so():
    from minipost import methods

    scored = {name for name in methods.names() if methods.load(name).SCORED}
    assert scored == {"a2c", "cispo", "dapo", "dr-grpo", "entropy", "es", "grpo", "gspo", "maxrl",
                      "minimum-risk", "mixer", "oreo", "ppo", "reinforce", "reinforce-pp", "rft",
                      "rloo", "rpo", "sapo", "self-critical", "tool-use", "trpo", "vineppo"}


def test_the_stages_follow_each_other_and_three_are_measured():
    assert r1.stages(None, SMALL) == {"cold start": 2, "reasoning": 4, "rejection sampling": 6,
                                      "reward model": 8, "alignment": 10}
    assert r1.total(None, SMALL) == 10
    assert r1.milestones(None, SMALL) == {2: "cold start", 4: "reasoning", 6: "rejection sampling"}
    idle = replace(SMALL, steps=1, cold_steps=1)
    assert list(r1.stages(None, idle).values()) == [1, 2, 4, 6, 8]


def test_each_stage_learns_what_its_name_says(words, spy):
    """Which rows fine-tuning gets, from which weights, and what scores the last stage."""
    run = opened(words, even, Ruled())
    cfg = replace(SMALL, language=0.0)
    start = run.policy.flat.clone()
    fitted, scored = spy(sft, "train"), spy(grpo, "train")
    learn = r1.train(run, cfg)

    steps(run, learn, 2)
    rows = fitted[0][0]["rows"]
    assert len(rows) == 6 and all(task_right(p, text) for p, text in rows)

    metrics = steps(run, learn, 2)
    assert scored[0][0]["score"].weights == {"accuracy": 1.0, "format": 0.1, "language": 0.0}
    assert all(m["reward"] == pytest.approx(m["accuracy"] + 0.1 * m["format"]) for m in metrics)

    taught = run.policy.flat.clone()
    metrics = steps(run, learn, 1)
    rows = fitted[1][0]["rows"]
    kept = [(p, text) for p, text in rows if "target" in p.columns]
    assert metrics[0]["kept"] == len(kept) == len({(p.prompt, text) for p, text in kept}) > 0
    assert all(len(text) % 2 == 0 and len(text) > 2 for _, text in kept)
    assert len(rows) - len(kept) == 2 * (len(kept) // 2)
    teacher = Learner(run.frozen("teacher", None))
    assert torch.equal(teacher.flat, taught)
    # one small step of Adam from the model that the run began with, not from the policy
    rate = metrics[0]["learning_rate"]
    assert (run.policy.flat - start).abs().max() <= 1.01 * rate
    assert (run.policy.flat - taught).abs().max() > 2 * rate

    steps(run, learn, 1)
    before = run.policy.flat.clone()
    metrics = steps(run, learn, 2)
    assert torch.equal(run.policy.flat, before) and "accuracy" in metrics[0]
    metrics = steps(run, learn, 2)
    assert scored[1][0]["cfg"].beta == cfg.align_beta
    assert {"gold", "score", "accuracy", "format"} <= set(metrics[0])
    assert run.task.name == "search" and run.reward is even


def task_right(problem, text):
    return Search().reward([""], [text], **{k: [v] for k, v in problem.columns.items()}) == [1.0]


def test_without_an_answer_that_keeps_every_rule_there_is_nothing_to_learn(words):
    run = opened(words, lambda prompts, completions, **columns: [0.0] * len(completions), Ruled())
    run.step = 4
    learn = r1.train(run, replace(SMALL, language=0.0))
    with pytest.raises(MinipostError, match="none of 8 answers keeps every rule"):
        next(learn)


def test_both_alternates_and_names_the_task_of_each():
    both = r1.Both(Search(), r1.OTHERS["wording"])
    found = both.sample(5, random.Random(0))
    assert [p.owner for p in found] == ["search", "wording"] * 2 + ["search"]
    assert [p.prompt.split()[0] for p in found] == ["Reach", "Praise"] * 2 + ["Reach"]


def test_every_task_is_measured_by_its_own_reward(words):
    run = opened(words, even)
    found = r1.measure(run, {"held-out": run.task.heldout(3)}, SMALL)
    assert set(found) == {"held-out", "arithmetic", "wording"}
    assert all(set(metrics) == {"greedy", "sampled"} for metrics in found.values())
    assert len(found["wording"]["greedy"].rewards) == 3
    assert run.reward is even
    texts = found["held-out"]["sampled"].texts
    assert found["held-out"]["sampled"].rewards == even(None, texts)


def test_a_demo_is_cut_short_in_every_stage():
    """`make demos STEPS=2` makes two steps of each; a warm-up is no stage."""
    assert demos.cut("grpo", 2) == ["--steps", "2"]
    assert demos.cut("sft", 2) == ["--steps", "2"]      # which has a warm-up
    flags = demos.cut("r1", 2)
    cfg = train.settings_of(["--algo", "r1", *flags]).config
    assert set(r1.stages(None, cfg).values()) == {2, 4, 6, 8, 10}
