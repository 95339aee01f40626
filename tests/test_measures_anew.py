"""What a run measures of its models, computed anew from their outputs, answer by answer."""

import random
from dataclasses import replace
from math import sqrt

import pytest
import torch
from anew import Chance, Labelled, Listed, Mixed, chances, marks, rows_of, sums, worths
from fakes import Letters
from ranks import whole

from minipost.measure import scorers
from minipost.measure.results import evaluate
from minipost.methods import distill, dpo, ipo, kto, oreo, orpo, prm, rft, simpo
from minipost.rollout import pack
from minipost.run import REWARD_MODEL
from minipost.tasks.base import Problem


def answers_of(problems, column="completion"):
    words = Letters()
    return rows_of(pack([words.prompt(p.prompt) for p in problems],
                        [words.response(p.columns[column]) for p in problems], words.pad))


def plain(values):
    return [float(x.detach()) for x in values]


def drift(run, rows):
    return [a - b for a, b in zip(plain(sums(run.policy.module, rows)),
                                  plain(sums(run.reference(), rows)))]


def test_the_accuracy_of_labels_is_the_sign_of_the_log_ratio():
    run = whole(Labelled())
    problems = [replace(p, columns={**p.columns, "label": n % 2 == 0})
                for n, p in enumerate(run.task.training())]
    found = kto.measure(run, {"x": problems}, kto.Config())["x"]["label accuracy"]
    expected = [float((h > 0) == p.columns["label"])
                for h, p in zip(drift(run, answers_of(problems)), problems)]
    assert found.rewards == expected and 0 < sum(expected) < len(expected)
    assert found.texts == [p.columns["completion"] for p in problems]


@pytest.mark.parametrize("method, scale", [
    (dpo, "beta"), (ipo, "tau"), (kto, "beta"), (simpo, None), (orpo, None)])
def test_a_files_pairs_are_ranked_by_what_the_method_implies(method, scale):
    run = whole(Listed())
    problems, cfg = run.task.training(), method.Config(**{scale: 0.3} if scale else {})
    sides = [answers_of(problems, name) for name in ("chosen", "rejected")]
    if scale:
        implied = [[0.3 * h for h in drift(run, rows)] for rows in sides]
    else:
        implied = [plain(x.mean() for x in chances(run.policy.module, rows)) for rows in sides]
    gaps = [a - b for a, b in zip(*implied)]
    found = method.measure(run, {"x": problems}, cfg)["x"]
    assert found["pair accuracy"].rewards == [float(gap > 0) for gap in gaps]
    assert 0 < found["pair accuracy"].score.value < 1
    assert found["pair accuracy"].texts == [f"better answer ahead by {gap:.2f}" for gap in gaps]
    bins = {}
    for k, gap in enumerate(gaps):                          # by a coin, which side comes first
        first = random.Random(k).random() < 0.5
        chance = 1 / (1 + 2.718281828459045 ** (-gap if first else gap))
        bins.setdefault(min(9, int(10 * chance)), []).append(first - chance)
    assert found["calibration error"].score.value == pytest.approx(
        sum(abs(sum(gap)) for gap in bins.values()) / len(gaps))


def test_a_scorer_is_held_to_the_first_pair_of_each_prompt_and_to_its_best_of_eight():
    run = whole()
    problems = Mixed().sample(6, random.Random(1))
    found = scorers.measure(run, {"x": problems}, None)["x"]
    with run.aside():
        rollout = run.sample(problems, 8, temperature=1.0, purpose="evaluation")
    rows, gold = rows_of(rollout), run.grade(problems, rollout).tolist()
    guess = plain(x[-1] for x in marks(run.learners[REWARD_MODEL].module, rows))
    right, picked, asked, texts, best = [], [], [], run.texts(rollout), []
    for k in range(0, 48, 8):
        other = [j for j in range(k, k + 8) if gold[j] != gold[k]][:1]
        for j in other:
            right.append(float((guess[k] - guess[j]) * (gold[k] - gold[j]) > 0))
            asked.append(k // 8)
        picked.append(max(range(k, k + 8), key=lambda j: guess[j]))
        best.append(max(range(k, k + 8), key=lambda j: gold[j]))
    assert found["pair accuracy"].rewards == right and found["pair accuracy"].rows == asked
    for name, rows in (("best of 8", picked), ("one sample", range(0, 48, 8)),
                       ("exact best of 8", best)):
        assert found[name].rewards == [gold[j] for j in rows]
        assert found[name].texts == [texts[j] for j in rows]
    assert 0 < sum(right) < len(right)


def test_right_answers_of_a_file_are_measured_by_their_mean_log_prob():
    run = whole()
    problems = [Problem(p, {"completion": c, "reward": r}) for p, c, r in (
        ("ab", "cd", 1.0), ("a", "dddd", 0.25), ("c", "b", 0.5), ("dd", "", 0.75))]
    found = rft.measure(run, {"x": problems}, rft.Config(least=0.5))["x"]
    found = found["log-prob of right answers"]
    good = [problems[k] for k in (0, 2, 3)]
    expected = [float(x.detach().mean()) for x in chances(run.policy.module, answers_of(good))]
    assert found.rewards == pytest.approx(expected) and found.rows == [0, 2, 3]
    assert found.texts == ["cd", "b", ""]


def test_a_files_outcomes_are_guessed_by_policy_and_value_together():
    run = whole()
    critic = run.learners["critic"].module
    problems = [Problem(a + b, {"completion": b * n, "reward": n % 3 / 2})
                for n, (a, b) in enumerate(zip("abcdabcd", "dcbaabcd"))]
    found = oreo.measure(run, {"x": problems}, oreo.Config(beta=0.4))["x"]["outcome accuracy"]
    rows = answers_of(problems)
    guess = [float(v[0].detach()) + 0.4 * h
             for v, h in zip(worths(critic, rows), drift(run, rows))]
    seqs = run.encode([p.prompt for p in problems], [p.columns["completion"] for p in problems])
    assert oreo.implied(run, seqs, critic, 0.4).tolist() == pytest.approx(guess)
    expected = [float((g > 0.5) == (p.columns["reward"] > 0.5)) for g, p in zip(guess, problems)]
    assert found.rewards == expected and 0 < sum(expected) < len(expected)


def test_a_student_is_measured_beside_its_teacher(monkeypatch):
    run, asked = whole(), []
    teacher = run.reference()
    monkeypatch.setattr(distill, "load_teacher", lambda run, name: asked.append(name) or teacher)
    problems = Mixed().sample(6, random.Random(1))
    found = distill.measure(run, {"x": problems}, distill.Config(teacher="theirs"))["x"]
    assert asked == ["theirs"]
    for name, heat in (("greedy", 0.0), ("sampled", 1.0)):
        assert found[name].texts == evaluate(run, problems, heat).texts
        assert found[f"teacher {name}"].texts == evaluate(run, problems, heat, teacher).texts
        assert found[name].texts != found[f"teacher {name}"].texts


@pytest.mark.parametrize("how", ["min", "last", "product"])
def test_steps_are_told_apart_by_the_side_of_zero(how):
    """And a solution's odds are those of its least step, its last, or all of them."""
    run = whole(Chance())
    run.max_new_tokens = 8
    problems = Chance().sample(9, random.Random(3))
    found = prm.measure(run, {"x": problems}, prm.Config(aggregate=how))["x"]
    with run.aside():
        rollout = run.sample(problems, 1, temperature=1.0, purpose="evaluation")
    accuracy, missed = {}, {}
    rows = rows_of(rollout)
    for k, (row, s) in enumerate(zip(rows, marks(run.learners[REWARD_MODEL].module, rows))):
        texts = [Letters().decode([i]) for i in row.said]
        for place, text in enumerate(texts[:-1]):           # the last token is the whole answer's
            if text == "h":
                right = problems[k].columns["letter"] in "".join(texts[:place]).split("h")[-1]
                hit = float((s[place].item() > 0) == right)
                accuracy.setdefault(k, []).append(hit)
                if not right:
                    missed.setdefault(k, []).append(hit)
    for name, values in (("step accuracy", accuracy), ("wrong steps found", missed)):
        assert values and found[name].rows == list(values)
        assert found[name].rewards == pytest.approx([sum(x) / len(x) for x in values.values()])
    chance = torch.tensor([[0.9, 0.2, 0.8, 0.5]], dtype=torch.float64)
    mask = torch.tensor([[True, False, True, True]])
    assert float(prm.aggregate(chance, mask, how)) == pytest.approx(
        {"min": 0.5, "last": 0.5, "product": 0.36}[how])


def test_an_interval_is_wilsons_for_rights_and_wrongs():
    run = whole()
    problems = Mixed().sample(6, random.Random(1))
    run.reward = lambda prompts, completions, **columns: [1.0, 0.0, 1.0, 1.0, 0.0, 1.0]
    score, n, z, p = evaluate(run, problems, 1.0).score, 6, 1.959963984540054, 4 / 6
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    assert (score.value, score.low, score.high) == pytest.approx(
        (p, middle - half, middle + half), abs=1e-4)
