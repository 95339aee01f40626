"""RLAIF: the judge and its labels, and which settings go with which learner."""

import random

import pytest
import torch

from minipost import checkpoint
from minipost.cli.defaults import for_adapters
from minipost.datasets.rows import File
from minipost.errors import MinipostError
from minipost.methods import rlaif
from minipost.optim import Learner
from minipost.run import Run
from minipost.tasks.base import question
from minipost.tasks.wording import Wording


@pytest.fixture
def asked(wide):
    """(run, judge, problems, rollout of two answers to each)."""
    (model, vocabulary), task = checkpoint.load(wide), Wording()
    run = Run(Learner(model), vocabulary, task, task.reward, max_new_tokens=8)
    problems = task.sample(6, random.Random(0))
    rollout = run.sample(problems, 2, temperature=1.0)
    return run, rlaif.Judge(run, wide, "fitting"), problems, rollout


def test_a_label_is_the_judges_log_odds_in_both_orders(asked):
    """Read off the judge's own logits, with each answer first once."""
    run, judge, problems, rollout = asked
    words, texts = run.vocabulary, run.texts(rollout)
    a, b = (words.response(side)[:-1] for side in (" A", " B"))
    shared = next(k for k in range(9) if a[k] != b[k])

    def odds(problem, first, second):
        text = question(run.task.principles["fitting"], problem.prompt, first, second)
        ids = words.prompt(text) + a[:shared]
        with torch.no_grad():
            logp = judge.model(torch.tensor([ids]))[0, -1].log_softmax(-1)
        return float(logp[a[shared]] - logp[b[shared]])

    lead = judge(run, problems, rollout)
    for k, problem in enumerate(problems):
        first, second = texts[2 * k : 2 * k + 2]
        expected = odds(problem, first, second) - odds(problem, second, first)
        assert float(lead[k]) == pytest.approx(expected, abs=1e-4)
    assert lead.abs().max() > 0.01


def test_answers_that_change_places_change_the_sign_of_their_label(asked):
    run, judge, problems, rollout = asked
    lead = judge(run, problems, rollout)
    turned = rollout[torch.arange(len(rollout)).view(-1, 2).flip(1).flatten()]
    assert torch.allclose(judge(run, problems, turned), -lead, atol=1e-5)


@pytest.mark.parametrize("name, value", [("prompts", 9), ("beta", 0.3), ("reward_steps", 2)])
def test_what_only_ppo_heeds_is_refused_with_dpo(name, value):
    assert getattr(rlaif.Config(**{name: value}), name) == value
    with pytest.raises(MinipostError, match=f"{name} is {value}, which only --learner ppo heeds"):
        rlaif.Config(learner="dpo", **{name: value})
    assert rlaif.Config(learner="dpo", steps=9, temperature=0.5).steps == 9


def test_its_settings_are_held_to_ppos_bounds_too():
    for settings in (dict(gamma=2.0), dict(dpo_beta=0.0), dict(horizon=0)):
        with pytest.raises(MinipostError, match=f"^{next(iter(settings))} is"):
            rlaif.Config(**settings)


@pytest.mark.parametrize("name", ["dpo_beta", "dpo_lr"])
def test_what_only_dpo_heeds_is_refused_with_ppo(name):
    rlaif.Config(learner="dpo", **{name: 0.25})
    with pytest.raises(MinipostError, match=f"{name} is 0.25, which only --learner dpo heeds"):
        rlaif.Config(**{name: 0.25})


def test_a_row_without_an_answer_is_refused_before_any_step(asked, tmp_path):
    """Where the policy is fine-tuned first; the doctor and the run ask `check`."""
    run, *_ = asked
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"prompt": "{k}"}}\n' for k in range(40)))
    run.task = File(str(tmp_path / "rows.jsonl"))
    rlaif.check(run, rlaif.Config(sft_steps=0))
    with pytest.raises(MinipostError, match="line .: the row has no completion to learn from"):
        rlaif.check(run, rlaif.Config())


def test_pairs_of_a_file_are_refused(asked, tmp_path):
    """Their order would be learnt, and the judge never asked."""
    run, *_ = asked
    (tmp_path / "rows.jsonl").write_text("".join(
        f'{{"prompt": "{k}", "chosen": "a", "rejected": "b"}}\n' for k in range(40)))
    run.task = File(str(tmp_path / "rows.jsonl"))
    with pytest.raises(MinipostError, match="pairs of given answers with their order; in RLAIF"):
        rlaif.check(run, rlaif.Config(sft_steps=0))


def test_rates_of_the_other_learner_are_left_alone_where_adapters_want_higher_ones():
    """A run with --lora was refused for a rate that nobody had given."""
    for learner, idle in (("ppo", "dpo_lr"), ("dpo", "lr")):
        cfg = rlaif.Config(learner=learner)
        found, said = for_adapters(4, 0, cfg, set())
        assert getattr(found, idle) == getattr(cfg, idle) and found != cfg
        assert f"--{idle.replace('_', '-')} " not in said
