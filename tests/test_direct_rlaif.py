"""Direct RLAIF: a judge's verdicts as rewards."""

import random

import pytest
import torch

from minipost import checkpoint, ops
from minipost.methods import direct_rlaif, rlaif
from minipost.optim import Learner
from minipost.run import Run
from minipost.tasks.wording import Wording

SIZE = 3


class Judge:
    """Of two answers it prefers the longer one, and whatever stands first by `favour`."""

    def __init__(self, favour=0.0):
        self.favour, self.asked = favour, []

    def lead(self, run, prompts, firsts, seconds):
        self.asked.append(len(prompts))
        return torch.tensor([float(len(a) - len(b)) + self.favour
                             for a, b in zip(firsts, seconds)])


@pytest.fixture
def sampled(wide):
    (model, vocabulary), task = checkpoint.load(wide), Wording()
    run = Run(Learner(model), vocabulary, task, task.reward, max_new_tokens=8)
    problems = task.sample(4, random.Random(0))
    return run, problems, run.sample(problems, SIZE, temperature=1.0)


def test_a_reward_is_the_mean_lead_over_the_siblings_in_both_orders(sampled):
    run, problems, rollout = sampled
    judge, sizes = Judge(), [len(text) for text in run.texts(rollout)]
    found = direct_rlaif.Verdicts(run, judge, SIZE)(problems, rollout)
    for k, size in enumerate(sizes):
        group = range(k - k % SIZE, k - k % SIZE + SIZE)
        # forth and back: size_i - size_j less size_j - size_i
        expected = sum(2 * (size - sizes[j]) for j in group if j != k) / (SIZE - 1)
        assert float(found[k]) == pytest.approx(expected)
    assert judge.asked[0] <= len(problems) * SIZE * (SIZE - 1)


def test_a_judge_that_sees_places_alone_gives_every_answer_nothing(sampled):
    run, problems, rollout = sampled
    biased, plain = (direct_rlaif.Verdicts(run, Judge(favour), SIZE) for favour in (9.0, 0.0))
    assert torch.allclose(biased(problems, rollout), plain(problems, rollout))
    lead = torch.full((2, SIZE, SIZE), 9.0) * ~torch.eye(SIZE, dtype=torch.bool)
    assert not direct_rlaif.mean_lead(lead, SIZE).any()
    assert biased.seen["position_bias"] > plain.seen["position_bias"]


def test_a_groups_rewards_add_up_to_nothing_and_ties_have_no_advantage(sampled):
    run, problems, rollout = sampled
    found = direct_rlaif.Verdicts(run, Judge(3.0), SIZE)(problems, rollout)
    assert torch.allclose(found.view(-1, SIZE).sum(1), torch.zeros(4), atol=1e-5)
    same = rollout[torch.zeros(len(rollout), dtype=torch.long)]
    tied = direct_rlaif.Verdicts(run, Judge(3.0), SIZE)(problems[:1], same[:SIZE])
    assert not ops.group_normalised(tied, SIZE).any()


def test_with_two_answers_it_is_the_lead_that_rlaif_labels_by(sampled, wide):
    run, problems, _ = sampled
    judge, rollout = rlaif.Judge(run, wide, "fitting"), run.sample(problems, 2, temperature=1.0)
    found = direct_rlaif.Verdicts(run, judge, 2)(problems, rollout)
    assert torch.allclose(found[::2], judge(run, problems, rollout).to(found), atol=1e-4)
    assert found.abs().max() > 0.01


def test_the_metrics_say_what_gold_says(sampled):
    run, problems, rollout = sampled
    verdicts = direct_rlaif.Verdicts(run, Judge(), SIZE)
    verdicts(problems, rollout)
    gold = run.grade(problems, rollout).view(-1, SIZE)
    assert verdicts.seen["gold"] == pytest.approx(float(gold.mean()))
    sizes = torch.tensor([float(len(t)) for t in run.texts(rollout)]).view(-1, SIZE)
    pairs = [(p, i, j) for p in range(4) for i in range(SIZE) for j in range(SIZE)
             if gold[p, i] != gold[p, j]]
    right = [float((sizes[p, i] > sizes[p, j]) == (gold[p, i] > gold[p, j])) for p, i, j in pairs]
    assert verdicts.seen["agreement"] == pytest.approx(sum(right) / len(right))
