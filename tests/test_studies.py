"""Studies: what decides a verdict, on figures by hand, and their own sums."""

import json
import threading
import time
from dataclasses import replace
from functools import cache
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from minipost import checkpoint, train
from minipost.datasets.rows import File
from minipost.errors import MinipostError
from minipost.files import write_json
from minipost.gpt import RewardModel
from minipost.measure.stats import Score, pass_at, t_interval
from minipost.tasks.arithmetic import Arithmetic
from minipost.tasks.wording import gold
from scripts import compare, studies
from scripts.studies import (
    VERDICTS,
    Finding,
    Made,
    __main__,
    compute_curve,
    edge_of_competence,
    entropy_law,
    forgetting,
    label_free,
    length_bias,
    max_likelihood,
    muon,
    off_policy,
    on_policy_distillation,
    over_optimisation,
    pass_at_k,
    priming,
    process_supervision,
    self_improvement,
    spurious_rewards,
    staleness,
    trained_parameters,
)

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", studies.names())
def test_a_studys_file_says_what_decides_and_its_runs_are_commands(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    study = studies.load(name)
    assert tuple(studies.rule(study.module.__doc__)) == VERDICTS
    assert study.LIMITS.count(". ") == 2 and study.LIMITS.endswith(".")
    assert study.PAPER.startswith("arxiv.org/abs/") and study.CLAIM.endswith(".")
    assert study.TRIED.endswith(".")
    runs = study.runs(range(2))
    for given in runs.values():
        given = list(map(str, given))
        if "--data" in given:  # a file that `prepare` makes
            at = given.index("--data")
            given[at : at + 2] = ["--task", "wording"]
        train.settings_of(given)  # fails where a flag is unknown
    assert len({tuple(map(str, given)) for given in runs.values()}) == len(runs)
    assert len(runs) >= 2


# ---- priming

def primed(folder, ends):
    """Runs of three steps by hand: {traces: accuracy at the end} in both seeds."""
    for traces, end in ends.items():
        for seed in range(2):
            run = folder / priming.run_of(traces, seed)
            run.mkdir(parents=True)
            scores = {when: {"value": x, "low": x - 0.02, "high": x + 0.02, "n": 400}
                      for when, x in (("before", 0.2), ("after", end))}
            write_json(run / "summary.json", {"all": {"sampled, held-out": scores}})
            lines = [{"num_tokens": 100 * k, "completions/mean_length": 20 + k, "attempts": 1,
                      "backtracks": k, "accuracy": 0.5, "sound": 0.5,
                      **({priming.HELD_OUT: end} if k == 2 else {})} for k in range(3)]
            (run / "metrics.jsonl").write_text("".join(json.dumps(of) + "\n" for of in lines))
    return Made(folder, range(2))


@pytest.mark.parametrize("backtracking, wrong, verdict", [
    (0.9, 0.8, "reproduced"), (0.9, 0.4, "not reproduced"), (0.1, 0.2, "reversed"),
    (0.4, 0.9, "not reproduced")])
def test_priming_is_judged_by_both_leads(tmp_path, backtracking, wrong, verdict):
    made = primed(tmp_path, {"single": 0.4, "backtracking": backtracking, "wrong": wrong})
    found = priming.findings(made)
    assert found.verdict == verdict
    assert found.rows[1] == ["backtracking", "0.200", f"{backtracking:.3f}", "0.50 to 0.50",
                             "20.00 to 21.00", "1.00 to 1.00", "0.00 to 1.00", "0.50 to 0.50"]
    assert f"by {backtracking - 0.4:+.3f}" in found.sentence


# ---- pass@k

def chances(*values):
    return [list(values)]


BARELY = chances(*[0.01] * 50, *[0.011] * 50)
SHARPER = chances(*[0.9] * 60, *[0.0] * 40)


def judged(base, *grpo, hands=range(100)):
    return pass_at_k.judge({"t": {"base": base, "grpo": [of for some in grpo for of in some]}},
                           {"t": list(hands)})


def test_pass_at_k_is_judged_at_both_ends():
    verdict, sentence = judged(BARELY, SHARPER)
    assert verdict == "reproduced" and f"from k = {pass_at_k.crossing(BARELY, SHARPER)} on" in (
        sentence)
    better = chances(*[0.5] * 50, *[0.6] * 50)
    never = chances(*[0.0] * 50, *[0.01] * 50)
    assert judged(never, better)[0] == "reversed"
    verdict, sentence = judged(BARELY, BARELY)
    assert verdict == "not reproduced" and "The base is not ahead" in sentence


def test_problems_of_a_hand_count_once_and_seeds_must_agree():
    """What a hundred hands show, two hands do not; nor do seeds of which one is unlike the rest."""
    assert judged(BARELY, SHARPER, hands=[k >= 60 for k in range(100)])[0] == "not reproduced"
    assert judged(BARELY, SHARPER, SHARPER, SHARPER)[0] == "reproduced"
    other = chances(*[0.9] * 100)
    assert judged(BARELY, SHARPER, SHARPER, other)[0] == "not reproduced"
    few = [chances(*[0.9] * (100 - k), *[0.0] * k) for k in (4, 3, 5)]  # 4 of 100 are lost
    assert judged(BARELY, *few)[0] == "not reproduced"
    gains = [pass_at_k.gain(BARELY, [of for some in few for of in some], 10**6, list(range(100)),
                            level) for level in (0.95, pass_at_k.LEVEL)]
    assert gains[0].low > gains[1].low and gains[0].high < gains[1].high
    gains = [pass_at_k.gain(BARELY, SHARPER, 10**6, list(range(100)), level)
             for level in (0.95, pass_at_k.LEVEL)]  # one seed: over hands alone
    assert gains[0].low > gains[1].low and gains[0].high < gains[1].high
    assert pass_at_k.LEVEL == 1 - 0.05 / 4


CHANCES = pass_at_k.chances


def at_pass_k(tmp_path, monkeypatch, seeds=2):
    """The whole of the study's own work, on 12 problems and runs that are the base."""
    monkeypatch.setattr(Made, "model", lambda self, run: ROOT / pass_at_k.BASE)
    monkeypatch.setattr(pass_at_k, "ASKED", 3)
    exact = cache(lambda n: CHANCES(ROOT / pass_at_k.BASE, dict(numbers=3), n))
    monkeypatch.setattr(pass_at_k, "chances", lambda model, knobs, n: exact(n))
    for algo, seed in ((algo, seed) for algo in pass_at_k.METHODS for seed in range(seeds)):
        folder = tmp_path / pass_at_k.run_of("countdown-3", algo, seed)
        folder.mkdir()
        write_json(folder / "summary.json", {"all": {"sampled, held-out": {
            "before": {"value": 0.1}, "after": {"value": 0.2 + seed / 10}}}})
    return pass_at_k.findings(Made(tmp_path, range(seeds), {
        "n": 12, "tasks": {"countdown-3": dict(numbers=3)}}))


def test_a_policy_that_is_the_base_is_nowhere_ahead(tmp_path, monkeypatch):
    found = at_pass_k(tmp_path, monkeypatch)
    assert found.verdict == "not reproduced" and [row[1] for row in found.rows] == [
        "base", *pass_at_k.METHODS]
    assert len({tuple(row[4:10]) for row in found.rows}) == 1
    assert {tuple(row[10:]) for row in found.rows[1:]} == {("never", "0 (0)")}
    assert 0 < float(found.rows[0][5]) < float(found.rows[0][7]) <= 1
    assert [row[3] for row in found.rows] == ["0.100", *["0.250"] * 5]
    three = CHANCES(ROOT / pass_at_k.BASE, dict(numbers=3), 3)
    assert {row[4] for row in found.rows} == {f"{sum(three) / 3:.3f}"}


def test_a_crossing_is_the_first_whole_k_from_which_the_base_stays_ahead():
    base, found = chances(0.01, 0.01), chances(0.5, 0.0)
    k = next(k for k in range(1, 1000) if pass_at(0.01, k) > (1 - 0.5**k) / 2)
    assert k not in pass_at_k.GRID
    assert pass_at_k.crossing(base, found) == k and pass_at_k.crossing(found, base) is None
    assert pass_at_k.crossing(chances(0.5), chances(0.4)) == 1
    assert pass_at_k.lost(base[0], found) == "1 (0)"
    assert pass_at_k.lost(found[0], base) == "0 (1)"


# ---- spurious rewards

def test_a_coin_is_fair_and_knows_nothing_of_the_answer():
    task = Arithmetic()
    problems = task.heldout(300)
    texts = [f"Answer: {p.columns['answer'] + k % 2}" for k, p in enumerate(problems)]
    prompts, right = [p.prompt for p in problems], [p.columns["answer"] for p in problems]
    toss = spurious_rewards.coin(prompts, texts, answer=right)
    assert set(toss) == {0.0, 1.0} and abs(sum(toss) - 150) < 4 * 75**0.5
    assert abs(np.corrcoef(toss, [k % 2 for k in range(300)])[0, 1]) < 0.23
    assert toss == spurious_rewards.coin(prompts, texts, answer=right)
    same = spurious_rewards.coin(prompts[:1] * 64, texts[:1] * 64)
    assert 16 < sum(same) < 48  # equal answers of a group do not tie
    groups = {tuple(spurious_rewards.coin([f"{k}+1=? Think:\n"] * 8, texts[:8]))
              for k in range(999)}
    assert len(groups) > 200    # of 256: the coins of a group are independent
    assert spurious_rewards.wrong(prompts, texts, answer=right) == [k % 2 for k in range(300)]
    assert spurious_rewards.wrong(["x"], ["no number"], answer=[3]) == [0.0]


def of_seeds(*values, half=0.02):
    return [Score(value, value - half, value + half, 400) for value in values]


def gained(right, other):
    """{(base, reward): Scores before and after} of gains by coin, wrong answers, and no clip."""
    rewards = "coin", "wrong", "coin, no clip", "exact"
    return {(base, reward): (of_seeds(0.4, 0.41), of_seeds(0.4 + gain, 0.412 + gain))
            for base, gains in zip(spurious_rewards.BASES, (right, other))
            for reward, gain in zip(rewards, (*gains, 0.5))}


@pytest.mark.parametrize("right, other, verdict", [
    ((0.3, 0.3, 0.0), (0.0, 0.0, 0.0), "reproduced"),
    ((0.3, 0.3, 0.0), (0.0, -0.2, 0.3), "reproduced"),
    ((0.3, 0.3, 0.3), (0.0, 0.0, 0.0), "not reproduced"),     # the clip has no part in it
    ((0.3, 0.3, 0.0), (0.28, 0.0, 0.0), "not reproduced"),    # the other gains nearly as much
    ((0.3, 0.0, 0.0), (0.0, -0.3, 0.0), "not reproduced"),    # wrong answers do not raise it
    ((0.3, 0.3, 0.0), (0.0, 0.3, 0.0), "not reproduced"),     # nor the first base alone
    ((0.0, 0.3, -0.3), (-0.3, 0.0, 0.0), "not reproduced"),   # ahead of the other, and no gain
    ((0.0, 0.3, 0.0), (0.3, 0.0, 0.0), "reversed"),
    ((-0.3, 0.0, 0.0), (0.0, 0.0, 0.0), "not reproduced")])
def test_spurious_rewards_are_judged_by_leads_and_by_the_clip(right, other, verdict):
    found, sentence = spurious_rewards.judge(gained(right, other))
    assert found == verdict and f"adds {right[0] - right[2]:+.3f}" in sentence


def spurious(tmp_path, monkeypatch):
    """The whole of the study's own work, on eight problems and runs that are the base."""
    monkeypatch.setattr(Made, "model", lambda self, run: ROOT / "checkpoints/base")
    monkeypatch.setattr(Made, "metrics", lambda self, run: [{"clip_ratio": 0.25}])
    return spurious_rewards.findings(Made(tmp_path, range(2), {"n": 8}))


def test_a_spurious_reward_that_moves_nothing_gains_nothing(tmp_path, monkeypatch):
    found = spurious(tmp_path, monkeypatch)
    assert found.verdict == "not reproduced" and len(found.rows) == 8
    right = [score for name, score in found.data.items() if name.startswith("commoner way right")]
    assert [score.value for score in right] == [0.0] * 4 and found.rows[0][5] == "0.2500"
    other = found.data["commoner way wrong, coin"]  # which began as another model
    assert other.value != 0 and f"{other:+}" in [row[4] for row in found.rows]


# ---- without labels

def learnt(slips, fault):
    """Scores of two seeds by hand: what the methods gain where errors slip or do not."""
    return {(kind, algo): [[Score(x + k / 100, x - 0.02, x + 0.02, 400) for k in range(2)]
                           for x in (0.4, 0.4 + more)]
            for kind, gains in (("slips", slips), ("fault", fault))
            for algo, more in zip(label_free.METHODS, gains)}


@pytest.mark.parametrize("slips, fault, verdict", [
    ((0.4, 0.4, 0.3), (0.5, 0.0, -0.1), "reproduced"),
    ((0.4, 0.4, 0.3), (0.5, 0.1, 0.1), "reproduced"),
    ((0.4, 0.4, 0.3), (0.5, 0.1, 0.4), "not reproduced"),   # certainty mends the fault
    ((0.4, 0.4, 0.0), (0.5, 0.0, 0.0), "not reproduced"),   # and does not cure slips
    ((0.4, 0.4, 0.3), (0.0, 0.0, 0.0), "not reproduced"),   # labels do no better
    ((0.4, 0.0, -0.1), (0.5, 0.4, 0.4), "reversed")])
def test_label_free_is_judged_by_what_it_cures_and_what_it_leaves(slips, fault, verdict):
    found, sentence = label_free.judge(learnt(slips, fault))
    assert found == verdict and f"slips: {slips[0]:+.3f}" in sentence


def free(tmp_path, monkeypatch):
    """The whole of the study's own work, on two problems and runs that are the thinker."""
    monkeypatch.setattr(Made, "model", lambda self, run: ROOT / label_free.MODEL)
    monkeypatch.setattr(label_free, "SAMPLES", 8)

    def summary(self, run):
        first = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 200}
        ends = {"before": first, "after": {**first, "value": 0.6 + int(run[-1]) / 9}}
        return {"all": {f"{metric}, held-out": ends for metric in ("sampled", "greedy")}}

    monkeypatch.setattr(Made, "summary", summary)
    return label_free.findings(Made(tmp_path, range(2), {"n": 2}))


def test_pass_at_8_of_a_model_that_stays_is_as_before(tmp_path, monkeypatch):
    found = free(tmp_path, monkeypatch)
    assert len(found.rows) == 6 and all(row[8] == row[9] for row in found.rows)
    assert {row[4] for row in found.rows} == {f"{(0.6 + 0.6 + 1 / 9) / 2:.3f}"}


# ---- MaxRL

def likeliest(tmp_path, monkeypatch, better=0.0):
    """The whole of the study's own work; MaxRL's chances are higher than GRPO's by so much."""
    monkeypatch.setattr(Made, "summary", lambda self, run: {"tokens": 1000})
    monkeypatch.setattr(Made, "model", lambda self, run: Path(run))
    monkeypatch.setattr(Made, "once", lambda self, name, f, model, knobs, n: [
        0.1 + k / 100 + (better + k / 1000) * ("maxrl" in name) for k in range(n)])
    return max_likelihood.findings(Made(tmp_path, range(2), {"n": 12}))


@pytest.mark.parametrize("better, verdict", [(0.1, "reproduced"), (-0.09, "reversed")])
def test_max_likelihood_is_judged_at_pass_at_8(tmp_path, monkeypatch, better, verdict):
    found = likeliest(tmp_path, monkeypatch, better)
    lead = np.mean([(0.9 - k / 100) ** 8 - (0.9 - k / 100 - better - k / 1000) ** 8
                    for k in range(12)])
    assert found.verdict == verdict and found.rows[-1][4].startswith(f"{lead:+.3f}")
    few = {1: Score(-0.1, -0.2, -0.05, 9), 8: Score(0.1, 0.05, 0.2, 9), 64: Score(0, 0, 0, 9)}
    assert max_likelihood.judge(few)[0] == "not reproduced"     # ahead at 8, behind at 1
    assert max_likelihood.judge({**few, 8: Score(0.1, -0.1, 0.2, 9)})[0] == "not reproduced"


# ---- the edge of competence

STARTS = {2: 0.9, 4: 0.75, 6: 0.4, 8: 0.01}  # accuracy of the base by terms


def at_the_edge(tmp_path, monkeypatch, **shares):
    """The whole of the study's own work: RL mends these shares of each class's mistakes."""
    def summary(self, run):
        terms, seed = int(run.split("-")[0]), int(run[-1])
        start = STARTS[terms]
        end = start + shares.get(edge_of_competence.class_of(start), 0) * (1 - start)
        ends = {when: vars(of_seeds(value)[0])
                for when, value in (("before", start), ("after", end + 0.002 * seed))}
        return {"all": {"sampled, held-out": ends, "greedy, held-out": ends}}

    monkeypatch.setattr(Made, "summary", summary)
    return edge_of_competence.findings(Made(tmp_path, range(2), {
        "terms": [terms for terms in STARTS if shares.get(
            edge_of_competence.class_of(STARTS[terms])) is not None]}))


@pytest.mark.parametrize("can, edge, cannot, verdict", [
    (0.3, 0.9, 0.0, "reproduced"),
    (0.95, 0.9, 0.0, "not reproduced"),  # all that could be gained was, though that is little
    (0.9, 0.3, 0.9, "reversed"),
    (0.9, 0.3, 0.0, "not reproduced"),
    (0.3, 0.9, None, "not reproduced")])
def test_the_edge_is_judged_by_the_share_of_mistakes_that_are_mended(tmp_path, monkeypatch, can,
                                                                     edge, cannot, verdict):
    found = at_the_edge(tmp_path, monkeypatch, can=can, edge=edge, cannot=cannot)
    assert found.verdict == verdict
    assert [row[1] for row in found.rows[:3]] == ["can", "can", "edge"]
    share = found.data[6]["mended"]
    assert share.value == pytest.approx(edge + 0.001 / 0.6)
    assert f"{share:+} at the edge" in found.sentence and f"{share:+}" == found.rows[2][5]
    assert share.value - share.low > 0.02 * 2**0.5 / 0.6 / 2**0.5 - 1e-9  # of 2 seeds' 2 ends


def test_a_class_has_all_of_its_lengths_and_may_have_no_mistakes():
    ends = [(of_seeds(0.9, 0.9), of_seeds(1.0, 1.0)), (of_seeds(0.7, 0.7), of_seeds(0.7, 0.7))]
    assert edge_of_competence.mended(ends).value == pytest.approx(0.1 / 0.4)
    assert edge_of_competence.mended(ends, ends[1:]).value == pytest.approx(0.1 / 0.4)
    whole = [(of_seeds(1.0, 1.0), of_seeds(1.0, 1.0))]
    assert edge_of_competence.mended(whole) is None is edge_of_competence.mended([])
    verdict, sentence = edge_of_competence.judge({"can": whole, "edge": ends, "cannot": []})
    assert verdict == "not reproduced"
    assert sentence.endswith(
        "There are none to mend on lengths that the base can do and on lengths that it cannot do. "
        "So the classes cannot be compared.")


def test_the_interval_of_shares_ends_where_they_do():
    """Two seeds far apart: Student's interval alone would pass 1."""
    before, after = of_seeds(0.1, 0.1), of_seeds(0.2, 1.0)
    lead = studies.combined((1, after), (-1, before))
    assert (lead.low, lead.high) == (-1, 1) and lead.value == pytest.approx(0.5)
    mended = edge_of_competence.mended([(before, after)])
    assert mended.high == 1 and mended.value == pytest.approx(0.5 / 0.9)


def test_every_accuracy_has_a_class():
    assert [edge_of_competence.class_of(p) for p in (0, 0.019, 0.02, 0.69, 0.7, 1.0)] == [
        "cannot", "cannot", "edge", "edge", "can", "can"]


# ---- forgetting

def points(grpo, sft, law=lambda kl: 0.1 * kl):
    """Of {lr: [(new, KL) of each seed]} of the two methods."""
    return [{"method": m, "lr": lr, "seed": seed, "new": new, "kl": kl, "forgotten": law(kl)}
            for m, found in (("grpo", grpo), ("sft", sft)) for lr, seeds in found.items()
            for seed, (new, kl) in enumerate(seeds)]


def test_forgetting_is_judged_by_fit_and_order():
    near, far = {"1e-4": [(0.95, 0.5), (0.96, 0.6)]}, {"1e-4": [(0.95, 2.0), (0.99, 2.1)]}
    assert forgetting.judge(points(near, far), 0.9)[0] == "reproduced"
    assert forgetting.judge(points(far, near), 0.9)[0] == "reversed"
    assert forgetting.judge(points(near, far), 0.4)[0] == "not reproduced"
    assert forgetting.judge(points(near, far, lambda kl: -kl), 0.9)[0] == "not reproduced"
    wide = {"1e-4": [(0.95, 0.7), (0.99, 3.0)]}  # further in both seeds, and not beyond noise
    assert forgetting.judge(points(near, wide), 0.9)[0] == "not reproduced"
    verdict, sentence = forgetting.judge(points({"1e-4": [(0.5, 0.1)] * 2}, far), 0.9)
    assert verdict == "not reproduced" and "GRPO learnt the new task at no rate" in sentence


def test_methods_are_compared_at_the_smallest_rate_at_which_they_learn():
    """Numbers, not words, say what is small; SFT forgets more only at a rate it does not need."""
    sft = {"8e-4": [(0.99, 9.0), (0.99, 9.1)], "1e-3": [(0.99, 9.9), (0.99, 9.9)],
           "5e-5": [(0.95, 0.1), (0.96, 0.2)], "1e-5": [(0.95, 0.0), (0.8, 0.0)]}
    grpo = {"2e-4": [(0.95, 0.5), (0.96, 0.6)], "5e-5": [(0.5, 0.1), (0.6, 0.1)]}
    found = points(grpo, sft)
    assert [p["kl"] for p in forgetting.learnt(found, "sft")] == [0.1, 0.2]
    assert [p["kl"] for p in forgetting.learnt(found, "grpo")] == [0.5, 0.6]
    assert forgetting.learnt(found, "dpo") == []
    assert forgetting.judge(found, 0.9)[0] == "reversed"


def test_distillation_has_the_policy_of_grpo_for_a_teacher_that_is_made_before():
    runs = forgetting.runs(range(2))
    order = list(runs)
    for seed in range(2):
        given = runs[f"distill-8e-4-{seed}"]
        teacher = given[given.index("--teacher") + 1]
        assert teacher == f"{forgetting.FOLDER}/grpo-2e-4-{seed}/model"
        assert order.index(f"grpo-2e-4-{seed}") < order.index(f"distill-5e-5-{seed}")


def test_remedies_are_runs_beside_those_of_the_methods_which_stay_as_they_are():
    runs = forgetting.runs(range(3))
    assert len(runs) == 3 * (5 * 3 + 3)
    replaying = {name.rpartition("-")[0] for name, given in runs.items() if "--replay" in given}
    assert replaying == {"sft-replay-2e-4", "sft-replay-new-2e-4"}
    assert {name.rpartition("-")[0] for name, given in runs.items()
            if "grpo" in given and "--beta" not in given} == {"grpo-kl-2e-4"}
    for name, given in runs.items():        # the same but for the remedy
        if name.startswith("sft-replay"):
            plain = runs[f"sft-{name.partition('replay-')[2].removeprefix('new-')}"]
            assert given[: len(plain)] == plain and len(given) == len(plain) + 2


def test_a_remedy_is_held_to_the_method_without_it_at_the_same_rate_and_seed():
    def of(arm, lr, forgotten, new=1.0):
        return [{"method": arm, "lr": lr, "seed": k, "new": new, "forgotten": x, "kl": 1.0}
                for k, x in enumerate(forgotten)]

    found = [*of("sft", "5e-5", [0.2, 0.3, 0.4]), *of("sft", "2e-4", [0.2, 0.3, 0.4]),
             *of("grpo", "5e-5", [0.2, 0.3, 0.4]), *of("sft-replay", "5e-5", [0.1, 0.21, 0.3], 0.9),
             *of("sft-replay", "2e-4", [0.1, 0.4, 0.4]), *of("sft-replay-new", "2e-4", [0.3] * 3),
             *of("grpo-kl", "5e-5", [0.25, 0.36, 0.45])]
    less, new = forgetting.remedied(found)["sft-replay", "5e-5"]
    assert less.value == pytest.approx(-0.29 / 3) and less.high < 0
    assert new.value == pytest.approx(-0.1)
    assert forgetting.helped(found) == (
        "Less is forgotten by sft-replay at 5e-5, by sft-replay-new at no rate, by grpo-kl at no "
        "rate.")


def test_what_is_replayed_is_of_training_problems(tmp_path, monkeypatch):
    monkeypatch.setattr(forgetting, "ROOT", tmp_path)
    forgetting.prepare(Made(tmp_path, range(2)))
    known = {name: File(str(tmp_path / path)) for name, path in forgetting.ROWS.items()}
    prompts = {name: {row["prompt"] for row in file.rows} for name, file in known.items()}
    assert len(known["old"].rows) == 4 * forgetting.EACH
    assert len(known["new"].rows) == forgetting.EACH
    for name, tasks in (("old", forgetting.OLD.values()), ("new", [forgetting.NEW])):
        for task in tasks:
            assert not prompts[name] & {p.prompt for p in task.heldout(200)}


def test_a_quadratic_explains_a_parabola_and_no_noise():
    x = np.linspace(0, 3, 30)
    assert forgetting.fit(x, 1 + 2 * x - x**2) == pytest.approx(1)
    rng = np.random.default_rng(0)
    assert forgetting.fit(x, rng.normal(size=30)) < 0.4
    assert forgetting.fit(x, np.ones(30)) == 0


def forgot(tmp_path, monkeypatch, model=forgetting.BASE):
    """The whole of the study's own work, on four problems a task and runs that end alike."""
    monkeypatch.setattr(Made, "model", lambda self, run: ROOT / model)
    for name in ("abilities", "divergence"):  # all runs are alike, so one is measured
        monkeypatch.setattr(forgetting, name, cache(getattr(forgetting, name)))
    return forgetting.findings(Made(tmp_path, range(2), {"n": 4, "rates": ("2e-4",)}))


def test_a_model_that_has_not_moved_has_forgotten_nothing(tmp_path, monkeypatch):
    far = forgetting.divergence
    found = forgot(tmp_path, monkeypatch)
    assert [p["method"] for p in found.data[::2]] == list(forgetting.ARMS)
    assert {(p["kl"], p["forgotten"]) for p in found.data} == {(0.0, 0.0)}
    assert found.verdict == "not reproduced" and len(found.rows) == len(forgetting.ARMS) == 8
    moved = forgot(tmp_path, monkeypatch, "checkpoints/base")  # another model in the same place
    kl = far(ROOT / "checkpoints/base", ROOT / forgetting.BASE, 4)
    assert {p["kl"] for p in moved.data} == {kl} and kl > 0.1


# ---- process supervision

def supervised(tmp_path, monkeypatch, **leads):
    """Runs of three measurements by hand, of which one samples fewer tokens, in both seeds."""
    for arm, seed in ((arm, seed) for arm in process_supervision.ARMS for seed in range(2)):
        run = tmp_path / process_supervision.run_of(arm, seed)
        run.mkdir(parents=True)
        paid, _, source = arm.partition(", ")
        end = 0.5 + leads.get(source, 0.0) * (paid == "steps")
        scores = {when: {"value": x, "low": x - 0.02, "high": x + 0.02, "n": 200}
                  for when, x in (("before", end), ("after", end + 0.001 * seed))}
        write_json(run / "summary.json", {"all": {"sampled, held-out": scores}})
        lines = [{"num_tokens": (90 + 10 * seed) * k, "completions/mean_length": 60 + seed,
                  **({process_supervision.HELD_OUT: end + 0.001 * seed} if k > 1 else {})}
                 for k in range(1, 4)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(of) + "\n" for of in lines))
    monkeypatch.setattr(process_supervision, "told",
                        cache(lambda *_: {"steps": 0.9, "answers": 0.5}))
    return process_supervision.findings(Made(tmp_path, range(2)))


@pytest.mark.parametrize("exact, learnt, verdict", [
    (0.2, 0.2, "reproduced"), (-0.2, -0.2, "reversed"), (0.2, 0.0, "not reproduced"),
    (0.0, 0.2, "not reproduced"), (0.2, -0.2, "not reproduced")])
def test_process_supervision_is_judged_by_both_leads(tmp_path, monkeypatch, exact, learnt,
                                                     verdict):
    found = supervised(tmp_path, monkeypatch, exact=exact, learnt=learnt)
    assert found.verdict == verdict
    assert [row[2] == "" for row in found.rows] == [True, False, False, False]
    for row, value in zip(found.rows[1:], (exact, learnt)):
        assert [float(row[k].split()[0]) for k in (2, 4)] == pytest.approx([value] * 2)
        assert row[2] in found.sentence
    assert found.rows[0][5:] == ["60", "285"] and "0.900 of the time" in found.notes[0]


def test_accuracy_over_a_run_is_its_mean_over_the_tokens_of_the_shortest():
    rising, flat = [(0, 0.0), (100, 1.0), (200, 1.0)], [(0, 0.5), (100, 0.5)]
    assert process_supervision.over_tokens([rising, flat]) == pytest.approx([0.5, 0.5])
    assert process_supervision.over_tokens([rising, rising])[0] == pytest.approx(0.75, abs=0.01)


def test_a_verifier_is_told_by_its_order_alone():
    found = process_supervision.told(ROOT / process_supervision.BASE,
                                     ROOT / process_supervision.VERIFIER, 12)
    assert set(found) == {"steps", "answers"} and 0.7 < found["steps"] <= 1


# ---- over-optimisation

def test_the_best_of_n_is_expected_over_all_ways_to_draw_n():
    rng = np.random.default_rng(0)
    score, gold = rng.normal(size=(2, 3, 7))
    told = over_optimisation.expected_best(score, gold, [1, 2, 4, 7])
    for n, value in zip([1, 2, 4, 7], told):
        drawn = [gold[p][max(some, key=lambda i: score[p][i])]
                 for p in range(3) for some in combinations(range(7), n)]
        assert value == pytest.approx(np.mean(drawn))


def curves(a, b, heights=(1.0, 1.0), zigzag=0.0, swapped=False):
    """{form: {size: [(d, R) of two seeds]}}, the curve of the n-th size times the n-th height.

    swapped: the curves of each method have the other's form.
    """
    d = np.linspace(0.2, 4.0, 20)
    bent, forms = zigzag * (-1.0) ** np.arange(20), over_optimisation.FORMS
    return {form: {10 ** (k + 3): [(d, h * s * basis(d) @ (a, b) + bent) for s in (1.0, 1.01)]
                   for k, h in enumerate(heights)}
            for form, basis in zip(forms, [*forms.values()][:: -1 if swapped else 1])}


def of_two(small, large):
    """The smaller size of the one, the larger size of the other."""
    return {form: {1000: small[form][1000], 10000: large[form][10000]} for form in small}


FAR = 0.7


@pytest.mark.parametrize("form, other", [("best of n", "RL"), ("RL", "best of n")])
def test_a_form_is_recovered_and_the_other_one_told_apart(form, other):
    (d, r), _ = curves(0.9, 0.4)[form][1000]
    assert over_optimisation.fitted(form, d, r) == pytest.approx([0.9, 0.4])
    by_hand = d * (0.9 - 0.4 * (d if form == "best of n" else np.log(d)))
    assert r == pytest.approx(by_hand)
    assert over_optimisation.explained(form, [(d, r)]) == pytest.approx(1)
    assert over_optimisation.explained(other, [(d, r)]) < 0.97
    assert over_optimisation.foretold(form, [(d, r)]) == pytest.approx(0, abs=1e-20)
    shuffled = np.random.default_rng(0).permutation(20)
    back = r[shuffled] - FAR * (d[shuffled] > 2.1)  # only in the farther half
    assert over_optimisation.foretold(form, [(d[shuffled], back)]) == pytest.approx(FAR**2)
    assert over_optimisation.foretold(other, [(d, r)]) > 0.01
    spoilt = r + (np.arange(20) % 2)  # only in points that are left out
    assert over_optimisation.explained(form, [(d, spoilt)]) == pytest.approx(
        1 - 1 / r[1::2].var())


@pytest.mark.parametrize("data, verdict", [
    (curves(0.9, 0.6, (1.0, 1.2)), "reproduced"),
    (curves(0.9, 0.6, (1.0, 1.2), zigzag=0.3), "not reproduced"),                     # no form
    (curves(0.9, 0.1, (1.0, 1.2)), "not reproduced"),                                # no fall
    (of_two(curves(0.9, 0.1, (0.1,)), curves(0.9, 0.6)), "not reproduced"),          # nor here
    (of_two(curves(0.9, 0.6, (0.1,)), curves(0.9, 0.1)), "reproduced"),
    (curves(0.9, 0.6, (1.0, 1.0)), "not reproduced"),                                # no growth
    (curves(0.9, 0.6, (1.2, 1.0)), "reversed"),
    (curves(0.9, 1.0, (1.0, 1.2), swapped=True), "not reproduced")])           # the other form
def test_over_optimisation_is_judged_by_form_fall_and_growth(data, verdict):
    found, sentence = over_optimisation.judge(data)
    assert found == verdict and sentence.count("the form explains") == 2


def test_a_peak_is_where_the_other_seeds_have_it_and_a_mean_of_neighbours():
    d = np.array([1.0, 2.0, 3.0, 4.0])
    first, second = np.array([0.0, 3.0, 6.0, 0.0]), np.array([9.0, 3.0, 0.0, 3.0])
    assert over_optimisation.heights([(d, first), (d, second)]) == [
        (1.5, 1.5, 3.0, 3.5), (4.0, 2.0, 1.5, 3.5)]


def test_noise_and_a_plateau_are_no_peak():
    """Three seeds on a plateau: a fall is seen in hardly any of them, and a fall where one is."""
    rng, d = np.random.default_rng(0), np.linspace(0.2, 3.0, 20)

    def falls(shape, rounds=200):
        found = 0
        for _ in range(rounds):
            ends = over_optimisation.heights([(d, shape + rng.normal(size=20) * 0.03)
                                              for _ in range(3)])
            found += t_interval([0.9 * top - end for top, _, end, _ in ends]).low > 0
        return found / rounds

    assert falls(0.3 * (1 - np.exp(-2 * d))) <= 0.025
    assert falls(0.3 - 0.1 * (d - 1.5) ** 2) > 0.7
    tops = [over_optimisation.heights([(d, 0.3 + rng.normal(size=20) * 0.03) for _ in range(3)])
            for _ in range(200)]
    assert np.mean([top for of in tops for top, *_ in of]) == pytest.approx(0.3, abs=0.005)


def optimised(tmp_path, monkeypatch):
    """The whole of the study's own work, on few pairs, a small pool, and PPO as it might go."""
    made = Made(tmp_path, range(2), {"widths": (4, 12), "pairs": 150, "pool": (3, 16)})
    monkeypatch.setattr(over_optimisation, "NS", [1, 2, 4, 8, 16])
    over_optimisation.prepare(made)
    path = Path(over_optimisation.pairs_of(tmp_path, 0))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    things = [row["prompt"].split()[2] for row in rows]
    right = [gold(row["chosen"].split(), thing) > gold(row["rejected"].split(), thing)
             for row, thing in zip(rows, things)]
    assert 100 < len(rows) <= 150 and abs(np.mean(right) - 0.75) < 4 * (0.1875 / len(rows)) ** 0.5
    before = path.stat().st_mtime_ns
    over_optimisation.prepare(made)
    assert path.stat().st_mtime_ns == before
    for width, seed in ((width, seed) for width in (4, 12) for seed in range(2)):
        new = tmp_path / f"new-{width}"
        scorer = RewardModel(checkpoint.load(str(new))[0])
        torch.nn.init.normal_(scorer.score.weight, generator=torch.Generator().manual_seed(seed))
        checkpoint.save(tmp_path / f"reward-{width}-{seed}" / "model", scorer, new)
    monkeypatch.setattr(Made, "metrics", lambda self, run: [
        {"kl_per_answer": 0.1 * k, "gold": len(run) * (0.1 * k - 0.005 * k * k)}
        for k in range(18)])
    return over_optimisation.findings(made)


def test_over_optimisation_from_pairs_to_its_table(tmp_path, monkeypatch):
    found = optimised(tmp_path, monkeypatch)
    assert [row[0] for row in found.rows] == ["best of n"] * 2 + ["RL"] * 2
    assert all(len(row) == len(found.columns) for row in found.rows)
    (d, r), _ = found.data["RL"][min(found.data["RL"])]
    assert len(d) == 9 and d[0] == pytest.approx(0.05 ** 0.5)  # the mean of a window's KLs
    best, base = (json.loads((tmp_path / f"{name}.json").read_text())["found"]
                  for name in ("best-4-0", "base"))
    assert best["gold"][0] == pytest.approx(base) and 0 < best["right"] < 1
    (d, r), _ = found.data["best of n"][min(found.data["RL"])]
    assert r == pytest.approx(np.array(best["gold"][1:]) - base)
    assert d[0] == pytest.approx((np.log(2) - 0.5) ** 0.5) and len(r) == 4


# ---- laws of a run

def test_the_entropy_law_is_recovered():
    entropy = np.linspace(1.2, 0.1, 40)
    a, b = entropy_law.fitted(entropy, 1.4 - 0.3 * np.exp(entropy))
    assert (a, b) == (pytest.approx(0.3), pytest.approx(1.4))
    found = entropy_law.windows([{"reward": k} for k in range(25)], "reward", size=10)
    assert [list(x) for x in found] == [[4.5, 14.5]]


def test_a_sigmoid_is_recovered_from_all_of_it():
    compute = np.linspace(1e4, 1e6, 60)
    reward = compute_curve.sigmoid(compute, 0.2, 0.8, 1.5, 2e5)
    ceiling, power, middle = compute_curve.fitted(compute, reward, 0.2)
    assert (ceiling, power, middle) == (pytest.approx(0.8, abs=0.01), pytest.approx(1.5, abs=0.05),
                                        pytest.approx(2e5, rel=0.05))


@pytest.mark.parametrize("seed", range(4))
def test_no_sigmoid_is_nearer_to_a_noisy_quarter_than_the_one_that_is_found(seed):
    """Random searches from several starts do not find a smaller error, nor another end."""
    rng, compute = np.random.default_rng(seed), np.arange(1, 61) * 1.2e4
    reward = compute_curve.sigmoid(compute, 0.22, 0.75, 1.1, 4e5) + rng.normal(size=60) * 0.007
    x, y, start = compute[1:15], reward[1:15], reward[0]
    low = np.array([start, 0.1, np.log(x[0] / 100)])
    high = np.array([1.0, 5.0, np.log(x[-1] * 100)])

    def error(at):
        told = start + (at[0] - start) / (1 + np.exp(at[1] * (at[2] - np.log(x))))
        return np.square(told - y).sum()

    found = compute_curve.fitted(x, y, start)
    ours, best = error([*found[:2], np.log(found[2])]), []
    for _ in range(4):
        at, size = rng.uniform(low, high), 0.3
        for _ in range(2000):
            near = np.clip(at + rng.normal(size=3) * size * (high - low), low, high)
            at, size = (near, size * 1.5) if error(near) < error(at) else (at, size * 0.97)
            size = min(0.3, max(size, 1e-6))
        best.append((error(at), at))
    theirs, at = min(best, key=lambda one: one[0])
    assert ours <= theirs * (1 + 1e-9)
    ends = [compute_curve.sigmoid(compute[-1], start, *of)
            for of in (found, (at[0], at[1], np.exp(at[2])))]
    assert theirs > ours * 1.001 or ends[0] == pytest.approx(ends[1], abs=0.02)


def lines(seed, rule):
    """Forty windows of a run: entropy falls, tokens grow, and reward is what the rule says."""
    rng = np.random.default_rng(seed)
    return [{"entropy": h, "num_tokens": 100.0 * (k + 1),
             "reward": rule(h, k) + rng.normal() * 0.002}
            for k, h in enumerate(np.linspace(1.0, 0.05, 400))]


def followed(module, tmp_path, monkeypatch, rule=lambda h, k: 1.3 - 0.4 * np.exp(h)):
    monkeypatch.setattr(Made, "metrics", lambda self, run: lines(int(run[-1]), rule))
    return module.findings(Made(tmp_path, range(2)))


@pytest.mark.parametrize("rule, law, curve", [
    (lambda h, k: 1.3 - 0.4 * np.exp(h), "reproduced", None),
    (lambda h, k: 0.5 + 0.1 * (k < 100) * (1.0 - h), "reversed", None),
    (lambda h, k: 0.2 + 0.6 / (1 + (6e3 / (100.0 * (k + 1))) ** 2), None, "reproduced")])
def test_laws_hold_where_runs_follow_them(tmp_path, monkeypatch, rule, law, curve):
    for module, verdict in ((entropy_law, law), (compute_curve, curve)):
        assert verdict is None or followed(module, tmp_path, monkeypatch, rule).verdict == verdict


# ---- the length of wrong answers

FEW, MANY, LESS = [0.1, 0.0, -0.1], [2.0, 2.2, 2.1], [-2.1, -2.0, -2.3]


@pytest.mark.parametrize("papers, ours, cure, verdict", [
    (MANY, FEW, FEW, "reproduced"),
    (MANY, FEW, [1.9, 2.4, 2.0], "not reproduced"),         # they grow, and so by the cure
    (MANY, [1.9, 2.4, 2.0], FEW, "not reproduced"),         # something else makes them grow
    ([-1.0, -1.2, -1.1], LESS, LESS, "not reproduced"),     # they shrink less
    (FEW, FEW, MANY, "reversed")])
def test_length_is_judged_by_the_growth_of_wrong_answers(tmp_path, monkeypatch, papers, ours,
                                                         cure, verdict):
    found = lengthened(tmp_path, monkeypatch, papers, ours, cure)
    assert found.verdict == verdict
    name = length_bias.PAPERS
    first = Made(tmp_path, range(3)).metrics(length_bias.run_of(name, 0))
    assert length_bias.growth(first, "wrong") == pytest.approx(papers[0] * 18.5 / 18)
    assert [len(run) for run in found.data[name]["wrong"]] == [5, 5, 5]
    assert found.rows[0][4].startswith("+0.000 [") and found.rows[0][5] == "0.250"


def lengthened(tmp_path, monkeypatch, *grown):
    """The whole of the study's own work, on lines of twenty steps in which lengths grow evenly."""
    grown = dict(zip(length_bias.METHODS, grown))
    by_run = {length_bias.run_of(name, seed): by[seed]
              for name, by in grown.items() for seed in range(3)}

    def lines(self, run):
        return [{"reward": 0.5, **({"completions/mean_length/wrong": 20 + by_run[run] * k / 18,
                                    "completions/mean_length/right": 20.0} if k != 1 else {})}
                for k in range(20)]

    scores = {"all": {"sampled, held-out": {"after": {"value": 0.25}}}}
    monkeypatch.setattr(Made, "metrics", lines)
    monkeypatch.setattr(Made, "summary", lambda self, run: scores)
    return length_bias.findings(Made(tmp_path, range(3)))


def test_an_answer_begins_well_whatever_follows():
    texts = ["fresh ripe warm", "fresh ripe warm ugly", "fresh warm ripe", "fresh ripe",
             "fresh fresh ripe", "calm fresh ripe", "ugly fresh ripe warm", ""]
    found = length_bias.begins_well(["x"] * 8, texts, thing=["soup"] * 8)
    assert found == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert length_bias.begins_well(["x"], texts[:1], thing=["lamp"]) == [0.0]


# ---- the age of answers

@pytest.mark.parametrize("truncated, clip, verdict", [
    ([0.90, 0.89, 0.91], [0.60, 0.62, 0.61], "reproduced"),
    ([0.80, 0.79, 0.81], [0.60, 0.62, 0.61], "not reproduced"),  # loses too much itself
    ([0.90, 0.89, 0.91], [0.89, 0.88, 0.92], "not reproduced"),
    ([0.60, 0.62, 0.61], [0.90, 0.89, 0.91], "reversed")])
def test_staleness_is_judged_at_the_papers_lag(tmp_path, monkeypatch, truncated, clip, verdict):
    found = aged(tmp_path, monkeypatch, truncated, clip)
    assert found.verdict == verdict and len(found.rows) == 1 + 3 * len(staleness.LAGS)
    row, = [row for row in found.rows if row[:2] == ["8", "truncated"]]
    gap = 0.9 - sum(truncated) / 3
    assert float(row[3].split()[0]) == pytest.approx(gap, abs=6e-4) and row[4] == "8"
    assert [lag for lag, _ in found.data["clip"]] == [0, *staleness.LAGS]


def aged(tmp_path, monkeypatch, truncated, clip):
    """The whole of the study's own work, on accuracies by hand."""
    at = {("truncated", 8): truncated, ("clip", 8): clip, ("fresh", 0): [0.90, 0.91, 0.89]}

    def summary(self, run):
        correct, lag, seed = run.split("-")
        value = at.get((correct, int(lag)), [0.5] * 3)[int(seed)]
        score = {"value": value, "low": value - 0.03, "high": value + 0.03, "n": 200}
        return {"all": {"sampled, held-out": {"after": score}}}

    def metrics(self, run):
        return [{"sampling_logp_difference/max": float(run.split("-")[1])}]

    monkeypatch.setattr(Made, "summary", summary)
    monkeypatch.setattr(Made, "metrics", metrics)
    return staleness.findings(Made(tmp_path, range(3)))


# ---- bounds on ratios

@pytest.mark.parametrize("sapo, grpo, gspo, verdict", [
    ([0.90, 0.89, 0.91], [0.60, 0.62, 0.61], [0.70, 0.69, 0.71], "reproduced"),
    ([0.60, 0.62, 0.61], [0.90, 0.89, 0.91], [0.80, 0.79, 0.81], "reversed"),
    ([0.90, 0.89, 0.91], [0.60, 0.62, 0.61], [0.90, 0.88, 0.92], "not reproduced"),
    ([0.90, 0.89, 0.91], [0.95, 0.96, 0.94], [0.70, 0.69, 0.71], "not reproduced")])
def test_soft_gates_are_judged_against_both(tmp_path, monkeypatch, sapo, grpo, gspo, verdict):
    found = bounded(tmp_path, monkeypatch, sapo, grpo, gspo)
    assert found.verdict == verdict
    assert len(found.rows) == len(off_policy.BOUNDS) + len(off_policy.CORRECTIONS) + 1
    row, = [row for row in found.rows if row[:2] == ["passes", "sapo"]]
    lead = (sum(sapo) - sum(grpo)) / 3
    assert float(row[3].split()[0]) == pytest.approx(lead, abs=6e-4)
    assert [row[4] for row in found.rows if row[1] == "masked-answers"] == ["0.25"]


def bounded(tmp_path, monkeypatch, sapo, grpo, gspo):
    """The whole of the study's own work, on accuracies by hand."""
    at = {"passes-sapo": sapo, "passes-grpo": grpo, "passes-gspo": gspo}

    def summary(self, run):
        name, _, seed = run.rpartition("-")
        value = at.get(name, [0.5] * 3)[int(seed)]
        score = {"value": value, "low": value - 0.03, "high": value + 0.03, "n": 200}
        return {"all": {"sampled, held-out": {"after": score}}}

    monkeypatch.setattr(Made, "summary", summary)
    monkeypatch.setattr(Made, "metrics", lambda self, run: [
        {"sampling_logp_difference/max": 0.25 if run.startswith("rounded-masked-answers") else 0}])
    return off_policy.findings(Made(tmp_path, range(3)))


# ---- self-improvement

def sums(chain, *ends):
    """Answers to a chain with the due number of steps: all right but for what each ends in."""
    steps = "\n".join(["1+1=2"] * self_improvement.signs(f"{chain}=?"))
    return [f"{steps}\nAnswer: {end}" for end in ends]


def test_a_filter_knows_lengths_and_votes_and_no_answers_to_long_sums():
    long = "1+1+1+1+1+1+1+1+1"  # nine terms, one more than was taught
    right, other, third = sums(long, 9, 7, 8)
    short, loop = sums(long[:-2], 9)[0], sums(f"{long}+1", 9)[0]

    def passed(*texts, chain=long, reward=self_improvement.filtered, answer=9):
        return reward([f"{chain}=? Think:\n"] * len(texts), texts, answer=[answer] * len(texts))

    assert passed(right, right, right, other) == [1, 1, 1, 0]
    assert passed(other, other, other, right) == [1, 1, 1, 0]  # it does not know better
    assert passed(right, right, other, third) == [0, 0, 0, 0]      # no majority
    assert passed(right, right, short, loop) == [0, 0, 0, 0]       # all four end alike
    assert passed("", "1+1", short, loop) == [0, 0, 0, 0]
    assert passed(right, other, short, "", reward=self_improvement.anything) == [1] * 4
    taught = long[:-2]
    texts = sums(taught, 8, 7, 7, 7)
    for reward in (self_improvement.filtered, self_improvement.anything):
        assert passed(*texts, chain=taught, reward=reward, answer=8) == [1, 0, 0, 0]
    mixed = [f"{long}=?", f"{long}=?", f"{long}-1=?", f"{long}-1=?"]  # each has its own vote
    texts = [right, right, *sums(f"{long}-1", 9, 3)]
    assert self_improvement.filtered(["7+5-3=? Think:\n"], ["7+5-3=9\nAnswer: 9"], [9]) == [0]
    assert self_improvement.filtered(mixed, texts, answer=[9, 9, 8, 8]) == [1, 1, 0, 0]


def grown(*reaches, n=100):
    """For each seed: all right up to a length, none beyond."""
    return [{terms: Score(*([1.0, 0.96, 1.0, n] if terms <= most else [0.0, 0.0, 0.04, n]))
             for terms in self_improvement.LENGTHS} for most in reaches]


@pytest.mark.parametrize("ours, none, old, verdict", [
    ((40, 32, 40), (8, 9, 8), (9, 9, 9), "reproduced"),
    ((16, 12, 16), (8, 8, 8), (8, 8, 8), "not reproduced"),     # not far in every seed
    ((40, 32, 40), (40, 32, 32), (9, 9, 9), "not reproduced"),  # the filter does nothing
    ((40, 32, 40), (8, 9, 8), (40, 40, 40), "not reproduced"),  # nor do the rounds
    ((4, 8, 4), (8, 9, 8), (12, 12, 12), "reversed")])
def test_self_improvement_is_judged_by_reach_and_controls(ours, none, old, verdict):
    found = {"start": grown(9), "filtered": grown(*ours), "no filter": grown(*none),
             "old lengths": grown(*old)}
    assert self_improvement.judge(found)[0] == verdict
    assert f"reaches 9, and after the rounds {ours[0]}" in self_improvement.judge(found)[1]


def test_the_reach_ends_at_the_first_length_that_fails():
    accuracy, = grown(12)
    assert self_improvement.reach(accuracy) == 12
    assert self_improvement.beyond(accuracy).value == pytest.approx(4 / 10)  # 9 to 12, of ten
    assert self_improvement.reach({**accuracy, 4: accuracy[40]}) == 0


def improved(tmp_path, monkeypatch):
    """The whole of the study's own work, on four sums a length and runs that are the base."""
    monkeypatch.setattr(self_improvement, "N", 4)
    monkeypatch.setattr(self_improvement, "LENGTHS", (4, 8, 9))
    monkeypatch.setattr(self_improvement, "ROUNDS", (8, 9))
    monkeypatch.setattr(Made, "model", lambda self, run: ROOT / self_improvement.BASE)
    return self_improvement.findings(Made(tmp_path, range(1)))


def test_rounds_go_on_from_each_other_and_a_model_that_stays_reaches_as_far(tmp_path, monkeypatch):
    found = improved(tmp_path, monkeypatch)
    runs = self_improvement.runs(range(1))
    models = {run: given[given.index("--model") + 1] for run, given in runs.items()}
    folder = self_improvement.FOLDER
    assert models == {
        "start": f"{folder}/slower", "filtered-8-0": f"{folder}/start/model",
        "filtered-9-0": f"{folder}/filtered-8-0/model", "no-filter-8-0": f"{folder}/start/model",
        "no-filter-9-0": f"{folder}/no-filter-8-0/model", "old-lengths-0": f"{folder}/start/model"}
    assert found.verdict == "not reproduced"
    assert [row[1:] for row in found.rows] == [["1.000", "1.000", "0.000", "8", "0.000"]] * 5
    assert found.data["rounds"] == {arm: [[1.0], [0.0]] for arm in ("filtered", "no filter")}


def test_the_start_turns_slower_and_is_else_the_base(tmp_path):
    self_improvement.prepare(Made(tmp_path, range(1)))
    (ours, _), (base, _) = (checkpoint.load(str(where))
                            for where in (tmp_path / "slower", ROOT / self_improvement.BASE))
    assert ours.config.rope_theta == self_improvement.THETA > base.config.rope_theta
    assert all(map(torch.equal, ours.parameters(), base.parameters()))


# ---- the runs

class Here:
    """A Runner that makes runs in this process."""

    stopped = False

    def __init__(self):
        self.made = []

    def run(self, directory, arguments):
        self.made.append((directory.name, arguments[0]))
        code = train.main(arguments)
        self.stopped = code == 130
        return f"code {code}" if code else None


def made_of(runs, folder):
    """(whether all runs are there, {run: the bytes of its model}, what was started or resumed)"""
    runner, made = Here(), Made(folder, range(1))
    study = SimpleNamespace(name="x", prepare=lambda made: None, runs=lambda seeds: runs,
                            then=lambda made, done: {})
    whole = __main__.make(study, made, runner)
    models = {run: (made.model(run) / "model.safetensors").read_bytes() for run in runs} if (
        whole) else {}
    return whole, models, runner.made


def stages(command, folder, reward, seed=0):
    """A run, and one that starts from its model and has a reward of its own."""
    def flags(*given):
        given = command(*given)
        where = given.index("--out")
        return [*given[:where], *given[where + 2 :]]

    return {"first": flags("sft", "--steps", 3, "--batch-size", 4, "--seed", seed),
            "second": flags("rft", "--steps", 3, "--prompts", 4, "--group-size", 2, "--least", 0,
                            "--reward", reward, "--model", folder / "first" / "model")}


def test_a_study_that_is_stopped_anywhere_goes_on(command, tmp_path, reward, stopping):
    """Also where a run starts from another's model, and where its reward is a program."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    there, models, _ = made_of(stages(command, whole, reward), whole)
    assert there
    runs, asked = stages(command, stopped, reward), []
    for k in (1, 2, 1, 2):
        stopping(k)
        there, _, made = made_of(runs, stopped)
        asked += made
        assert not there
    assert asked == [("first", "--algo"), ("first", "--resume"), ("first", "--resume"),
                     ("second", "--algo"), ("second", "--resume")]
    stopping(None)
    there, again, asked = made_of(runs, stopped)
    assert there and asked == [("second", "--resume")]
    assert all(again[run] == models[run] for run in runs)


def test_a_run_waits_for_the_one_from_whose_model_it_starts(tmp_path):
    """Whatever runs at once, and wherever it stands in the list."""
    made = Made(tmp_path / "study", range(1))
    runs = {"a-1": ["--model", "checkpoints/base"], "b": ["--teacher", made.model("a-1")],
            "c": ["--model", made.place("b"), "--reward-model", made.model("a-1")],
            "a-10": ["--model", made.model("../shared")], "d": ["--model", made.model("a-10")]}
    found = __main__.batches(made, runs)
    assert [list(batch) for batch in found] == [["a-1", "a-10"], ["b", "d"], ["c"]]
    assert all(batch[name] is runs[name] for batch in found for name in batch)
    assert __main__.batches(made, {}) == []


def test_runs_at_once_are_said_in_their_order(tmp_path, monkeypatch, capsys):
    """Where one fails, those in progress are the last."""
    both, begun = threading.Barrier(2, timeout=20), []
    if len(compare.own_cores()) < 2:
        pytest.skip("one core")

    def complete(runner, place, given, origin):
        begun.append(place.name)
        if place.name in "ab":
            both.wait()
        elif failing:
            time.sleep(0.2)
        return "start", "it broke" if place.name == failing else None

    monkeypatch.setattr(__main__, "fingerprint", lambda path: path.name)
    monkeypatch.setattr(__main__, "complete", complete)
    given = ["--algo", "sft", "--task", "arithmetic", "--model", "m"]
    study = SimpleNamespace(name="x", prepare=lambda made: None, then=lambda made, done: {},
                            runs=lambda seeds: dict.fromkeys("abcdefgh", given))
    for failing, said in ("", "abcdefgh"), ("a", "a"):
        begun.clear()
        there = __main__.make(study, Made(tmp_path, range(1)), SimpleNamespace(stopped=False), 2)
        assert there == (not failing) and {*begun[:2]} == {"a", "b"}
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "x: 8 runs" and "".join(line[2] for line in lines[1:]) == said
        assert ("it broke" in lines[-1]) == bool(failing) and len(begun) <= (6 if failing else 8)


def test_a_run_is_made_again_where_the_one_before_it_was(command, tmp_path, reward):
    _, models, asked = made_of(stages(command, tmp_path, reward), tmp_path)
    assert asked == [("first", "--algo"), ("second", "--algo")]
    assert made_of(stages(command, tmp_path, reward), tmp_path) == (True, models, [])
    _, others, asked = made_of(stages(command, tmp_path, reward, seed=1), tmp_path)
    assert asked == [("first", "--algo"), ("second", "--algo")]
    assert all(others[run] != models[run] for run in models)


# ---- the page

def test_what_is_computed_is_kept_until_a_model_or_a_setting_changes(tmp_path):
    made, calls, model = Made(tmp_path, range(1)), [], tmp_path / "model"

    def compute(*given):
        calls.append(given)
        return len(calls)

    model.mkdir()
    weights = model / "model.safetensors"
    weights.write_bytes(b"one")
    asked = model, {"terms": (2, 3)}, 100
    assert [made.once("x", compute, *asked) for _ in range(2)] == [1, 1]
    assert calls == [asked]
    weights.write_bytes(b"two")
    assert [made.once("x", compute, *asked) for _ in range(2)] == [2, 2]
    assert made.once("x", compute, model, {"terms": (2, 4)}, 100) == 3
    assert made.once("x", compute, model, {"terms": (2, 4)}, 200) == 4
    write_json(tmp_path / "x.json", {"found": 0})  # of an earlier version, which kept no reason
    assert made.once("x", compute, *asked) == 5


def test_a_run_is_made_again_for_another_reward_model_or_teacher(tmp_path, monkeypatch):
    study, seen, prepared = studies.load("over-optimisation"), [], []
    monkeypatch.setattr(__main__, "fingerprint", lambda path: path.name)
    monkeypatch.setattr(__main__, "complete", lambda runner, place, given, origin: (
        seen.append(origin), ("nothing", None))[1])
    given = ["--algo", "ppo", "--task", "wording", "--model", "m"]
    study = replace(study, prepare=prepared.append, runs=lambda seeds: {
        "a": given, "b": [*given, "--reward-model", "one"], "c": [*given, "--reward-model", "two"]})
    made = Made(tmp_path, range(1))
    assert __main__.make(study, made, SimpleNamespace(stopped=False)) and prepared == [made]
    assert seen[0] == "m" and len(set(seen)) == 3
    given = ["--algo", "distill", "--task", "arithmetic", "--model", "m", "--teacher"]
    study = replace(study, runs=lambda seeds: {name: [*given, name] for name in ("one", "two")})
    assert __main__.make(study, made, SimpleNamespace(stopped=False))
    assert seen[3:] == ["mone", "mtwo"]


# ---- how few trained parameters

GROWS = [0.45, 0.5, 0.6, 0.9, 0.95, 0.95, 0.95]     # after, from 1 number to all weights
SOON = [0.5, 0.94, 0.95, 0.95, 0.95, 0.95, 0.95]


def few(tmp_path, monkeypatch, *after, off=(0.0, 0.0, 0.0)):
    """The whole of the study's own work, on summaries with these means of the sizes."""
    values = {trained_parameters.run_of(setting, size, seed): value + off[seed]
              for setting, row in zip(trained_parameters.SETTINGS, after)
              for size, value in zip(trained_parameters.SIZES, [*row, 0.7, 0.7])
              for seed in range(3)}

    def summary(self, run):
        scores = {when: {"value": x, "low": x - 0.01, "high": x + 0.01, "n": 200}
                  for when, x in (("before", 0.4), ("after", values[run]))}
        return {"all": {"greedy, held-out": scores}}

    monkeypatch.setattr(Made, "summary", summary)
    return trained_parameters.findings(Made(tmp_path, range(3)))


@pytest.mark.parametrize("ours, theirs, verdict", [
    (SOON, GROWS, "reproduced"), (GROWS, SOON, "reversed"), (SOON, SOON, "not reproduced"),
    (GROWS, GROWS, "not reproduced"),
    (SOON, [0.4, 0.5, *[0.95] * 5], "not reproduced"),      # 64 numbers are not a hundred times 13
    (SOON, [0.5, 0.89, 0.89, 0.95, 0.95, 0.95, 0.95], "not reproduced")])  # SFT is hardly behind
def test_trained_parameters_are_judged_by_the_smallest_size_that_is_enough(
        tmp_path, monkeypatch, ours, theirs, verdict):
    found = few(tmp_path, monkeypatch, ours, theirs)
    assert found.verdict == verdict
    numbers = [row[2] for row in found.rows[:7]]
    assert numbers[:3] == ["1", "13", "64"] and len({*numbers}) == 7
    if verdict == "reproduced":
        assert "13 numbers (13) for GRPO on sums, rank 1 (9,760" in found.sentence
        assert found.rows[1][-1] == "0.98" and found.rows[6][-1] == "1.00"


# ---- learning rates that are chosen first

def test_rates_are_tried_until_the_best_is_not_at_an_edge():
    """Beyond the edge, not past what is there, and the runs come one after another."""
    there = set()

    def peak(best_rate):
        return studies.swept(lambda rate: -abs(np.log(rate / best_rate)), 1e-3, there.__contains__)

    assert peak(1.6e-2) == ({}, [5e-4, 1e-3, 2e-3, 4e-3]) and studies.firsts(1e-3) == peak(1)[1]
    there |= {5e-4, 1e-3, 2e-3}
    assert peak(1.6e-2) == ({}, [4e-3])
    for rate in (4e-3, 8e-3, 1.6e-2):
        earned, missing = peak(1.6e-2) if rate > 4e-3 else ({}, [4e-3])
        assert missing == [rate]
        there.add(rate)
    earned, missing = peak(1.6e-2)
    assert missing == [3.2e-2] and studies.best(earned) == 1.6e-2
    there.add(3.2e-2)
    assert peak(1.6e-2)[1] == [] and peak(1e-3)[1] == [] and peak(1e-5)[1] == [2.5e-4]


def test_runs_that_follow_from_others_are_made_once_these_are_there(tmp_path, monkeypatch):
    """And a study that is stopped goes on where it was."""
    made_runs, given = [], ["--algo", "sft", "--task", "arithmetic", "--model"]
    monkeypatch.setattr(__main__, "fingerprint", lambda path: path.name)
    monkeypatch.setattr(__main__, "complete", lambda runner, place, given, origin: (
        made_runs.append(place.name), ("start", None))[1])

    def then(made, done):
        return {"b": [*given, "2"], **({"c": [*given, "3"]} if "b" in done else {})}

    study = replace(studies.load("muon"), prepare=lambda made: None, then=then,
                    runs=lambda seeds: {"a": [*given, "1"]})
    made = Made(tmp_path, range(2))
    assert __main__.make(study, made, SimpleNamespace(stopped=False))
    assert made_runs == ["a", "b", "c"]
    assert not __main__.make(study, made, SimpleNamespace(stopped=True)) and made_runs[3:] == []


# ---- on-policy distillation

def lines_of(algo, accuracies, tokens=1000):
    return [{"num_tokens": tokens * (k + 1), on_policy_distillation.HELD_OUT: x,
             **({"frac_reward_zero_std": 0.25} if algo == "grpo" else {})}
            for k, x in enumerate(accuracies)]


def distilled(tmp_path, monkeypatch, slow=0.035, fast=0.5):
    """The whole of the study's own work: accuracy grows by so much in each step of an arm."""
    module = on_policy_distillation

    def climb(run):
        gain = slow if run.startswith("grpo") else fast
        more = 0.001 * (run[-1] == "1")
        return [min(0.95, 0.4 + gain * (k + 1) + more) for k in range(16)]

    def metrics(self, run):
        return lines_of("distill" if run.startswith("distill") else "grpo", climb(run))

    def summary(self, run):
        first = {"value": 0.4, "low": 0.35, "high": 0.45, "n": 150}
        return {"all": {"sampled, held-out": {"before": first, "after": {**first, "value": 0.9}}}}

    monkeypatch.setattr(Made, "metrics", metrics)
    monkeypatch.setattr(Made, "summary", summary)
    monkeypatch.setattr(Made, "once", lambda self, name, f, model, n: -abs(
        np.log(float(name.split("-", 3)[-1]) / 2e-4)))
    monkeypatch.setattr(module, "sizes", lambda made: (1000, 2000))
    return module.findings(Made(tmp_path, range(2)))


@pytest.mark.parametrize("slow, fast, verdict", [
    (0.035, 0.5, "reproduced"), (0.5, 0.035, "reversed"), (0.04, 0.1, "not reproduced"),
    (0.01, 0.5, "not reproduced"), (0.035, 0.01, "not reproduced")])
def test_distillation_is_judged_by_the_flops_to_nine_tenths(tmp_path, monkeypatch, slow, fast,
                                                            verdict):
    found = distilled(tmp_path, monkeypatch, slow, fast)
    assert found.verdict == verdict and [row[1] for row in found.rows] == ["0.0002"] * 2
    if min(slow, fast) < 0.02:
        assert "of 2 seeds" in found.sentence.lower() and "not reached" in str(found.rows)
    else:
        assert "in the paper it takes 10 times the hours" in found.sentence


def test_what_a_step_costs_against_a_count_by_hand():
    """Ten tokens and three of each prompt: 2N + 6N with a quarter of the groups tied; 8N + 2N_T."""
    module = on_policy_distillation
    read = 10 + 3 * module.PROMPTS["grpo"]
    lines = lines_of("grpo", [0.5, 0.6], 10)
    assert module.flops(lines, "grpo", 3, 100, 7) == pytest.approx(
        [read * (200 + 450), 2 * read * (200 + 450)])
    read = 10 + 3 * module.PROMPTS["distill"]
    assert module.flops(lines_of("distill", [0.5], 10), "distill", 3, 100, 7) == pytest.approx(
        [read * (200 + 14 + 600)])
    lines[1]["frac_reward_zero_std"] = 1.0
    assert module.flops(lines, "teacher", 0, 100, 7)[1] == pytest.approx(10 * (650 + 200))


def test_flops_to_a_level_are_read_on_the_line_between_points():
    module = on_policy_distillation
    assert module.reached([(0, 0.4), (10, 0.8), (30, 1.0), (40, 0.5), (50, 0.95)]) == (
        pytest.approx(20))
    assert module.reached([(0, 0.4), (10, 0.8)]) is None
    assert module.ratio([1.0, None], [1.0, 1.0]) is None
    found = module.ratio([4.0, 16.0], [1.0, 2.0])
    assert found.value == pytest.approx(32 ** 0.5) and found.low < 4 < 8 < found.high
    curves = {"distill": [[(0, 0.4), (5, 0.9)]] * 2, "grpo": [[(0, 0.4), (10, 0.8)]] * 2}
    assert module.equal(curves).value == pytest.approx(0.3)


def test_the_flops_of_a_token_are_those_of_the_models_products():
    assert on_policy_distillation.weights(ROOT / "checkpoints/thinker") == 4 * (
        4 * 128 * 128 + 3 * 128 * 344) + 128 * 512
    assert on_policy_distillation.asked() > 10


def test_accuracy_on_training_problems_is_of_no_run_and_of_nothing_held_out():
    module = on_policy_distillation
    run, held = module.opened(ROOT / module.START), {p.prompt for p in module.TASK.heldout(400)}
    with run.at(10**6):
        drawn = [p.prompt for p in run.problems(50)]
    assert not held & set(drawn) and drawn != [p.prompt for p in run.problems(50)]
    assert 0 < module.accuracy(ROOT / module.START, 24) < 1


# ---- Muon

def moved(tmp_path, monkeypatch, sft=0.5, grpo=0.0, off=0.0):
    """The whole of the study's own work: Muon saves a share of the loss, and adds reward."""
    def metrics(self, run):
        *name, last = run.split("-", 2)[:2] if not run.startswith("try") else run.split("-")[1:3]
        muons = last == "muon"
        tried = run.startswith("try")
        seed = 0 if tried else int(run[-1])
        bad = abs(np.log(float(run.split("-", 3)[3]) / (4e-4 if muons else 2e-4))) if tried else 0
        loss = 0.2 * (1 - (sft + off * seed) * muons)
        return [{"loss": loss + bad, "reward": 0.5 + (grpo + 0.001 * seed) * muons - bad}] * 4

    def summary(self, run):
        score = {"value": 0.9, "low": 0.85, "high": 0.95, "n": 150}
        return {"seconds": 3.0, "all": {"sampled, held-out": {"before": score, "after": score}}}

    monkeypatch.setattr(Made, "metrics", metrics)
    monkeypatch.setattr(Made, "summary", summary)
    return muon.findings(Made(tmp_path, range(2)))


@pytest.mark.parametrize("sft, off, verdict", [
    (0.5, 0.001, "reversed"), (0.0, 0.001, "reproduced"), (-0.2, 0.001, "reproduced"),
    (0.1, 0.2, "not reproduced")])
def test_muon_is_judged_by_the_loss_that_it_saves_in_sft(tmp_path, monkeypatch, sft, off, verdict):
    found = moved(tmp_path, monkeypatch, sft, 0.1, off)
    assert found.verdict == verdict and [row[2] for row in found.rows] == [
        "0.0002", "0.0004"] * 2
    place = "SFT and GRPO" if sft == 0.5 else "GRPO"
    assert "of AdamW's mean loss in SFT and +0.1" in found.sentence
    assert f"It earns its place in {place}" in found.sentence
    assert ("is behind in SFT" in found.sentence) == (sft < 0)


@pytest.mark.parametrize("study", [muon, on_policy_distillation])
def test_what_is_shown_is_at_the_best_rate_of_another_seed(study, tmp_path, monkeypatch):
    """Widened first; each arm has its own rate, and the same command but for that."""
    (moved if study is muon else distilled)(tmp_path, monkeypatch)
    made, done, rounds = Made(tmp_path, range(2)), set(study.runs(range(2))), []
    while more := {name: given for name, given in study.then(made, done).items()
                   if name not in done}:
        rounds.append(more)
        done |= more.keys()
        for given in more.values():
            train.settings_of(list(map(str, given)))
    shown = list(rounds[-1].values())
    assert all("try-" not in name for name in rounds[-1]) and len(shown) == (8 if study is muon
                                                                             else 4)
    assert {given[given.index("--seed") + 1] for given in shown} == {0, 1}
    tried = [given for name, given in study.runs(range(2)).items() if "try-" in name]
    assert {given[given.index("--seed") + 1] for given in tried} == {1000}
    assert all(given[given.index("--eval-n") + 1] == 1 for given in tried)
    rates = {name: given[given.index("--lr") + 1] for name, given in rounds[-1].items()}
    if study is muon:
        assert {rate for name, rate in rates.items() if "muon" in name} == {4e-4}
    assert 2e-4 in rates.values()


FOUND = {  # study: its whole work on a tiny setting
    "compute-curve": lambda *at: followed(compute_curve, *at),
    "edge-of-competence": lambda *at: at_the_edge(*at, can=0.3, edge=0.9, cannot=0.0),
    "entropy-law": lambda *at: followed(entropy_law, *at),
    "forgetting": lambda *at: forgot(*at, "checkpoints/base"),
    "label-free": lambda *at: free(*at),
    "length-bias": lambda *at: lengthened(*at, MANY, FEW, FEW),
    "off-policy": lambda *at: bounded(*at, [0.9, 0.8, 0.9], [0.6, 0.6, 0.7], [0.7, 0.7, 0.6]),
    "max-likelihood": lambda *at: likeliest(*at),
    "muon": lambda *at: moved(*at),
    "on-policy-distillation": lambda *at: distilled(*at),
    "over-optimisation": lambda *at: optimised(*at),
    "pass-at-k": lambda *at: at_pass_k(*at),
    "priming": lambda folder, _: priming.findings(primed(
        folder, {"single": 0.4, "backtracking": 0.9, "wrong": 0.8})),
    "process-supervision": lambda *at: supervised(*at, exact=0.2, learnt=0.1),
    "self-improvement": lambda *at: improved(*at),
    "spurious-rewards": lambda *at: spurious(*at),
    "trained-parameters": lambda *at: few(*at, SOON, GROWS),
    "staleness": lambda *at: aged(*at, [0.90, 0.89, 0.91], [0.60, 0.62, 0.61]),
}


@pytest.mark.parametrize("name", studies.names())
def test_a_study_shows_what_it_found_in_a_table_and_a_plot(name, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    study, found = studies.load(name), FOUND[name](tmp_path, monkeypatch)
    assert found.verdict in VERDICTS and found.sentence.endswith(".")
    assert found.rows and all(len(row) == len(found.columns) for row in found.rows)
    assert "\n".join(__main__.report(study, found, "x.svg")).count(study.TRIED) >= 1
    __main__.draw(study, found, tmp_path / "x.svg")
    axes = drawn(study, found)
    points = [sum(len(line.get_xdata()) for line in each.lines)
              + sum(len(dots.get_offsets()) for dots in each.collections) for each in axes]
    assert all(each.get_xlabel() for each in axes) and min(points) > 2  # not just a line at zero
    assert axes[0].get_ylabel() or name == "spurious-rewards"  # its rows have names


def drawn(study, found):
    from matplotlib.figure import Figure

    figure = Figure()
    study.draw(figure, found)
    return figure.axes


@pytest.mark.parametrize("seeds", ["0", "1", "-3"])
def test_fewer_than_two_seeds_are_refused_before_anything_is_made(seeds, monkeypatch, capsys):
    monkeypatch.setattr(__main__, "make", lambda *given: pytest.fail("it began"))
    with pytest.raises(SystemExit):
        __main__.start(["length-bias", "--seeds", seeds])
    assert f"--seeds {seeds}: an interval over seeds takes at least 2" in capsys.readouterr().err


def test_more_runs_at_once_than_cores_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(__main__, "make", lambda *given: pytest.fail("it began"))
    for jobs in 0, len(compare.own_cores()) + 1:
        with pytest.raises(SystemExit):
            __main__.start(["length-bias", "--jobs", str(jobs)])
        assert f"--jobs {jobs}: expected 1 to" in capsys.readouterr().err


def test_without_matplotlib_no_run_is_made(monkeypatch):
    monkeypatch.setattr(__main__, "make", lambda *given: pytest.fail("it began"))
    monkeypatch.setattr(__main__, "find_spec", lambda name: None)
    with pytest.raises(MinipostError, match="the plots need matplotlib"):
        __main__.start(["length-bias"])


def test_a_run_that_two_studies_share_is_found_by_the_second(tmp_path):
    """Whose own folder is not there yet."""
    one, two = (Made(tmp_path / name, range(1)) for name in ("one", "two"))
    assert one.place("../both/0") == two.place("../both/0") == tmp_path / "both" / "0"


def test_a_report_has_the_verdict_its_figures_and_the_limits():
    study = studies.load("pass-at-k")
    found = Finding(["a"], [["1"]], "reversed", "So it went.", notes=["Note."])
    text = "\n".join(__main__.report(study, found, "pictures/x.svg"))
    for part in ("## Does RL reach beyond", "`make study-pass-at-k`", "**Reversed.** So it went.",
                 "The rule ([pass_at_k.py](../scripts/studies/pass_at_k.py)). *Reproduced:* GRPO's",
                 "outside by chance in at most 5% of cases. *Reversed:* Its pass@k is above",
                 "| 1 |", "![Does RL reach beyond the base, or only sharpen it?](pictures/x.svg)",
                 "Note.", study.LIMITS):
        assert part in text
    assert "Anything else" not in text


def test_the_table_of_verdicts_stands_once_at_the_head_of_the_page():
    page = "# Title\n\nhead\n\n<!-- study-a-b: make study-a-b -->\n## Is A, or B?\n\ntext\n"
    once = __main__.with_verdicts(page, [["a-b", "a.org/paper", "reproduced", "so it is"]])
    row = "| [a-b](#is-a-or-b) | [paper](https://a.org/paper) | reproduced | so it is |"
    assert row in once and once.index("head") < once.index(row) < once.index("<!-- study-a-b")
    assert once.endswith(page[page.index("<!-- study"):])
    again = __main__.with_verdicts(once, [["a-b", "a.org/paper", "reversed", "it is not"]])
    assert "so it is" not in again and "it is not" in again and again.count("verdicts:") == 1
    more = again + "\n<!-- study-a: make study-a -->\n## Why?\n\ntext\n"
    both = __main__.with_verdicts(more, [["a", "a.org/x/other", "reproduced", "as it | was"]])
    first = both.index("| [a](#why) | [other](https://a.org/x/other) | reproduced | as it")
    second = both.index("| [a-b](")
    assert first < second and "paper) | reversed | it is not |" in both
    assert __main__.with_verdicts(both, []) == both
