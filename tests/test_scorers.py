"""How good a scorer is: win rate, ranked pairs, calibration, the best of n."""

import math
import random
from functools import partial

import pytest
import torch
from fakes import EOS, Echo, make_run, tiny

from minipost.errors import MinipostError
from minipost.gpt import RewardModel
from minipost.measure import scorers
from minipost.measure.results import Result
from minipost.measure.stats import Score

make = partial(make_run, max_new_tokens=5)


def test_the_win_rate_is_half_at_the_reference_and_knows_who_is_better():
    class Long(Echo):
        def reward(self, prompts, completions, **columns):
            return [float(len(text)) for text in completions]

    run, problems = make(Long()), Echo().sample(200, random.Random(1))
    opponent = run.reference()
    wins = scorers.win_rate(run, problems, opponent).rewards
    assert set(wins) == {0.0, 0.5, 1.0} and 0.35 < sum(wins) / 200 < 0.65
    with torch.no_grad():                                   # never EOS: as long as there is room
        run.policy.module.embed_tokens.weight[EOS] = -30 * run.policy.module.norm.weight
    better = scorers.win_rate(run, problems, opponent).rewards
    assert sum(better) / 200 > sum(wins) / 200 + 0.1


def test_an_answer_without_a_reward_is_left_out_with_its_pair():
    """Which have one depends on the answer, so that it differs between the two models."""
    def reward(prompts, completions, **columns):
        return [None if len(text) == 3 else float(len(text)) for text in completions]

    run, problems = make(Echo()), Echo().sample(40, random.Random(1))
    run.reward = reward
    opponent = run.reference()
    answers = []
    for purpose in ("reference", "evaluation"):
        with run.aside():
            answers.append(run.texts(run.sample(problems, 1, temperature=1.0, purpose=purpose)))
    theirs, ours = (reward(None, texts) for texts in answers)
    rows = [k for k in range(40) if None not in (ours[k], theirs[k])]
    assert 5 < len(rows) < 39 and ours != theirs
    found = scorers.win_rate(run, problems, opponent)
    assert found.rows == rows and found.texts == [answers[1][k] for k in rows]
    assert found.rewards == [(ours[k] > theirs[k]) + 0.5 * (ours[k] == theirs[k]) for k in rows]
    left = iter([[1.0, None], [None, 1.0]])                 # each of the two knows another problem
    run.reward = lambda prompts, completions, **columns: next(left)
    with pytest.raises(MinipostError, match="of 2 held-out problems there is none where both"):
        scorers.win_rate(run, problems[:2], opponent)


def test_scores_that_are_not_finite_are_refused():
    run, splits = make(max_new_tokens=5), {"held-out": Echo().heldout(4)}
    for broken in (math.nan, math.inf):
        with pytest.raises(MinipostError, match="not finite"):
            scorers.report(run, splits, lambda rollout: torch.full((len(rollout),), broken))
        with pytest.raises(MinipostError, match="not finite"):
            scorers.on_pairs([1.0, broken, 1.0], [0, 1, 2])


def test_calibration_error_of_known_cases():
    error = scorers.calibration_error
    assert error([0.0, 1.0], [0, 1]) == 0
    assert error([0.25] * 4, [0, 1, 0, 0]) == 0
    assert error([0.9] * 10, [1, 0] * 5) == pytest.approx(0.4)
    assert error([0.0, 1.0], [1, 0]) == 1
    assert error([0.95, 1.0], [1, 0]) == pytest.approx((1 - 0.05) / 2)      # one bin
    assert error([0.05, 0.95], [1, 1]) == pytest.approx((0.95 + 0.05) / 2)


def test_the_interval_of_a_calibration_error_holds_it_and_mostly_the_true_one():
    """Of a scorer that is twice as sure as it should be, the true error is 0.102."""
    held = 0
    for seed in range(20):
        rng, gaps = random.Random(seed), []
        for _ in range(100):
            gap = abs(rng.gauss(0, 1.5))
            gaps.append(2 * gap * (1 if rng.random() < 1 / (1 + math.exp(-gap)) else -1))
        error = scorers.on_pairs(gaps, list(range(100)))["calibration error"].score
        assert 0 <= error.low <= error.value <= error.high
        held += error.low <= 0.102 <= error.high
    assert held >= 17
    assert scorers.unbiased(Score(0.05, 0.02, 0.2, 9)) == Score(0.05, 0.0, 0.05 + 0.03, 9)
    assert scorers.unbiased(Score(0.05, 0.06, 0.2, 9)) == Score(0.05, 0.0, 0.05, 9)


def test_report_of_no_perfect_and_reversed_scorers():
    run = make(max_new_tokens=5)
    problems = Echo().heldout(4)

    def scores(score):
        found = scorers.report(run, {"held-out": problems}, score)["held-out"]
        return {name: metric.score.value for name, metric in found.items()}

    def exact(rollout):
        return run.grade(problems, rollout)

    with run.aside():
        rollout = run.sample(problems, scorers.BEST_OF, temperature=1.0, purpose="evaluation")
    gold = exact(rollout).view(4, -1)
    none = scores(lambda rollout: run.final_scores(RewardModel(tiny()), rollout))
    assert none["pair accuracy"] == 0.5
    assert none["best of 8"] == none["one sample"] == pytest.approx(float(gold[:, 0].mean()))
    best = scores(exact)
    assert best["pair accuracy"] == 1.0
    assert best["best of 8"] == best["exact best of 8"] == pytest.approx(float(gold.amax(1).mean()))
    worst = scores(lambda rollout: -exact(rollout))
    assert worst["pair accuracy"] == 0.0
    assert worst["best of 8"] == pytest.approx(float(gold.amin(1).mean()))
    assert best["best of 8"] > best["one sample"] > worst["best of 8"]
    assert run.tokens == 0 and run.step == 0


def test_report_where_nothing_can_be_ranked():
    run = make()
    run.reward = lambda completions, **columns: [1.0] * len(completions)
    with pytest.raises(MinipostError, match="held-out: all answers .* same reward"):
        scorers.report(run, {"held-out": Echo().heldout(4)},
                           lambda rollout: torch.zeros(len(rollout)))


@pytest.mark.parametrize("scale, part", [(None, "start"), (0.5, "reference")])
def test_the_win_rate_is_against_the_starting_policy(monkeypatch, scale, part):
    """It stays what it was, and beside a policy of its weights it wins as often as it loses."""
    run, asked = make_run(max_new_tokens=3, model=tiny(seed=1)), []
    start = run.policy.flat.clone()
    problems = {"held-out": run.task.heldout(4)}

    def evaluate(run, problems, temperature, module=None, purpose=""):
        asked.append(module)
        return Result.of([float(module is None), 0.5, 0.5, 0.0], ["a"] * 4)

    monkeypatch.setattr(scorers, "evaluate", evaluate)
    for _ in range(2):
        found = scorers.report_policy(run, problems, scale)["held-out"]["win rate"]
        run.policy.flat.add_(1.0)                           # something is learnt in between
    assert found.rewards == [1.0, 0.5, 0.5, 0.5]            # better, tie, tie, tie
    assert set(run.parts) == {"learner/policy", f"frozen/{part}"}
    opponent = run.parts[f"frozen/{part}"].module
    assert asked == [opponent, None] * 2
    parameters = sorted(opponent.parameters(), key=lambda p: p.dim() < 2)
    assert torch.equal(torch.cat([p.flatten() for p in parameters]), start)
