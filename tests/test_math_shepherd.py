"""Math-Shepherd: labels of steps from what becomes of them, and what is learnt from such labels."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from fakes import Echo, Letters, Steps, drive, make_run, rollout_of

from minipost.errors import MinipostError
from minipost.methods import math_shepherd, prm
from minipost.proof import estimates
from minipost.proof.estimates import dealer, enumerate_step, gradient_of, stepper
from minipost.proof.oracle import World, relative
from minipost.tasks.base import Problem

make = partial(make_run, usual=Steps, max_new_tokens=5)
Config = math_shepherd.Config


def begun():
    """A run, a problem, and answers whose steps end at known places."""
    run, problems = make(), [Problem(p, {"letter": p[0]}) for p in ("a", "bc")]
    vocabulary = Letters()
    rollout = rollout_of([vocabulary.prompt(p.prompt) for p in problems],
                         [vocabulary.response(text)[:-1] for text in ("ahbhc", "cch")])
    return run, problems, rollout


def scripted(run, answers):
    """Let the run complete beginnings with these texts in turn.  -> what it was asked"""
    asked = []

    def complete(prompts, group_size, *, temperature, purpose, max_new_tokens):
        asked.append((prompts, group_size, temperature, max_new_tokens))
        rows = [ids for ids in prompts for _ in range(group_size)]
        return rollout_of(rows, [Letters().response(t)[:-1] for t in answers])

    run.complete = complete
    return asked


def test_an_answer_goes_on_from_the_token_that_ends_a_step_and_is_judged_whole():
    run, problems, rollout = begun()
    steps = math_shepherd.step_ends(run, rollout)
    starts = rollout.mask.int().argmax(1)
    places = steps.nonzero().tolist()
    # The text "cch" ends in a step too, and EOS is the last token of both.
    assert places == [[0, int(starts[0]) + 1], [0, int(starts[0]) + 3], [1, int(starts[1]) + 2]]
    asked = scripted(run, ["aaaa", "b", "a", "b", "bb", "c"])
    found = math_shepherd.roll_out(run, problems, rollout, places, Config(rollouts=2))
    vocabulary = Letters()
    assert asked == [([[*vocabulary.prompt("a"), *vocabulary.response("ah")[:-1]],
                       [*vocabulary.prompt("a"), *vocabulary.response("ahbh")[:-1]],
                       [*vocabulary.prompt("bc"), *vocabulary.response("cch")[:-1]]], 2, 1.0, 3)]
    # Echo pays count / max(3, length): of ahaaa (cut to 5), ahb, ahbha, ahbhb, cchbb, cchc.
    assert found.shape == (3, 2)
    assert found.flatten().tolist() == pytest.approx([4 / 5, 1 / 3, 2 / 5, 1 / 5, 2 / 5, 0.0])


def test_a_long_beginning_goes_on_only_as_far_as_the_context_allows(monkeypatch):
    """Else the run stopped where the longest beginning and the longest rest do not fit together."""
    run, problems, rollout = begun()
    context = len(Letters().prompt("bc")) + run.max_new_tokens
    monkeypatch.setattr(type(run.policy.module), "context", context)
    asked = scripted(run, ["aa"] * 4)
    run.complete, whole = (lambda prompts, size, **options: whole(prompts, size, **options)[
        range(len(prompts) * size)]), run.complete
    places = math_shepherd.step_ends(run, rollout).nonzero().tolist()
    monkeypatch.setattr(run, "grade_texts", lambda asked, texts: torch.ones(len(texts)))
    math_shepherd.roll_out(run, problems, rollout, places, Config(rollouts=1))
    assert len(asked) > 1 and sum(len(prompts) for prompts, *_ in asked) == len(places)
    assert all(len(ids) + most <= context for prompts, _, _, most in asked for ids in prompts)


@pytest.mark.parametrize("how, expected", [("hard", [0.8, 0.4, 0.4]),
                                           ("soft", [17 / 30, 0.3, 0.2])])
def test_a_label_is_the_best_or_the_mean_and_the_last_token_has_the_answers_own(how, expected):
    run, problems, rollout = begun()
    scripted(run, ["aaaa", "b", "a", "b", "bb", "c"])
    steps, last = math_shepherd.step_ends(run, rollout), prm.final(rollout.mask)
    right = math_shepherd.labels(run, problems, rollout, steps, Config(rollouts=2, estimation=how))
    assert right[steps].tolist() == pytest.approx(expected)
    assert right[last].tolist() == pytest.approx([1 / 5, 0.0])


def test_the_truth_ends_with_the_first_wrong_step():
    """check_steps calls a right step after a wrong one right; no answer can be right after it."""
    run, problem = make(), [Problem("a", {"letter": "a"})]
    rollout = rollout_of([Letters().prompt("a")], [Letters().response("ahbhah")[:-1]])
    steps = math_shepherd.step_ends(run, rollout)
    assert prm.labels(run, problem, rollout, False)[steps].tolist() == [1.0, 0.0, 1.0]
    assert math_shepherd.truth(run, problem, rollout)[steps].tolist() == [1.0, 0.0, 0.0]
    exact = math_shepherd.labels(run, problem, rollout, steps, Config(estimation="exact"))
    assert exact[steps].tolist() == [1.0, 0.0, 0.0]
    last = prm.final(rollout.mask)
    assert exact[last].tolist() == prm.labels(run, problem, rollout, True)[last].tolist()


def test_a_task_that_cannot_check_steps_is_labelled_all_the_same():
    class Lines(Echo):
        name, step_end = "lines", "h"

    run = make(Lines(), max_new_tokens=6)
    metrics = next(math_shepherd.train(run, Config(prompts=6, rollouts=2, batch_size=12)))
    assert metrics["loss"] > 0 and "label_error" not in metrics
    found = math_shepherd.measure(run, {"held-out": Lines().heldout(4)}, Config())["held-out"]
    assert "pair accuracy" in found and "step accuracy" not in found
    math_shepherd.check(run, Config())
    with pytest.raises(MinipostError, match="lines cannot check steps .* take hard or soft"):
        math_shepherd.check(run, Config(estimation="exact"))


def never(*_):
    raise AssertionError("nothing is to be completed")


def test_answers_without_a_step_are_an_outcome_models():
    """Then nothing is completed, and only the last token counts, for what its answer is worth."""
    run = make(Echo(), max_new_tokens=4)            # no letter is Echo's end of a step
    cfg = Config(prompts=5, group_size=3, hot=2.0)
    problems = run.problems(5)
    rollout, mask, right, known = math_shepherd.annotated(run, cfg, never)
    assert len(rollout) == 15 and torch.equal(mask, prm.final(rollout.mask))
    texts = run.texts(rollout)
    for row, k in enumerate(rollout.prompt.tolist()):
        assert k == row // 3                        # though hot answers and others are drawn apart
        expected, = Echo().reward([""], [texts[row]], [problems[k].columns["letter"]])
        assert float(right[row][mask[row]]) == pytest.approx(expected)
    assert known == {"right": pytest.approx(float(right[mask].mean()))}


def test_half_of_the_answers_are_hot_and_a_resumed_run_has_the_same_and_counts_them_once():
    runs, found, cfg = [make(), make()], [], Config(prompts=4, group_size=2, rollouts=2, hot=3.0,
                                                    batch_size=4)
    heats, sample = [], runs[0].sample
    runs[0].sample = lambda *args, **options: heats.append(
        options["temperature"]) or sample(*args, **options)
    drive(runs[0], math_shepherd.train(runs[0], cfg), 2)
    assert heats == [3.0, 1.0]
    tensors, facts = runs[0].state()
    runs[1].restore({key: x.clone() for key, x in tensors.items()}, facts)
    for run in runs:
        found.append(drive(run, math_shepherd.train(run, cfg), 1) if run is runs[1] else None)
    tokens = runs[0].tokens
    runs[0] = make()
    whole = drive(runs[0], math_shepherd.train(runs[0], cfg), 3)
    assert found[1] == whole[2:] and runs[1].tokens == tokens == runs[0].tokens


(ESTIMATE,) = estimates.stated("math-shepherd")


def test_hard_labels_lean_where_soft_ones_do_not(monkeypatch):
    """Right answers of two completions: the mean hard label is 1 - (1 - q)^2, the soft one q."""
    world = World(4, 2)
    world = world.with_reward(world.reward.round())
    soft = enumerate_step(ESTIMATE, dealer(world)).whole
    exact = gradient_of(ESTIMATE, dealer(world))
    assert relative(soft, exact) < 1e-9
    value = estimates.completed
    monkeypatch.setattr(estimates, "completed", lambda *args: 1 - (1 - value(*args)) ** 2)
    assert relative(enumerate_step(ESTIMATE, dealer(world)).whole, exact) > 1e-2


def test_real_completions_are_unbiased():
    """The mean over 300 draws is within four standard errors of the value of the state."""
    world = World(4, 3)
    run = dealer(world)
    run.deal_hand(0, [next(k for k, t in enumerate(world.texts) if t == "ab")])
    problems = run.problems(1)
    rollout = run.sample(problems, 1)
    steps = math_shepherd.step_ends(run, rollout)
    places = steps.nonzero().tolist()
    assert len(places) == 1
    value = float(estimates.completed(run, problems, rollout, places, None))
    drawn = math_shepherd.roll_out(run, problems, rollout, places, Config(rollouts=300))[0]
    assert abs(float(drawn.mean()) - value) < 4 * float(drawn.std()) / 300**0.5
    assert float(drawn.std()) > 0.01


def test_the_step_is_made_on_completions_in_the_proofs_too():
    run = dealer(World(4, 3))
    assert stepper(replace(ESTIMATE, config=dict(ESTIMATE.config, group_size=8,
                                                 batch_size=8)), run)().norm() > 0
