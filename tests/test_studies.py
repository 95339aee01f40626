"""Studies: what decides a verdict, on figures by hand, and their own sums."""

import os
from pathlib import Path

import numpy as np
import pytest

from minipost import train
from minipost.measure.stats import pass_at
from scripts import studies
from scripts.studies import (
    VERDICTS,
    Finding,
    Made,
    __main__,
    compute_curve,
    edge_of_competence,
    entropy_law,
    forgetting,
    length_bias,
    pass_at_k,
    spurious_rewards,
    staleness,
)

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", studies.names())
def test_a_studys_file_says_what_decides_and_its_runs_are_commands(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    study = studies.load(name)
    assert all(f"\n{verdict}  " in study.module.__doc__ for verdict in VERDICTS)
    assert study.LIMITS.count(". ") == 2 and study.LIMITS.endswith(".")
    assert study.PAPER.startswith("arxiv.org/abs/") and study.CLAIM.endswith(".")
    runs = study.runs(range(2))
    for given in runs.values():
        train.settings_of(list(map(str, given)))  # fails where a flag is unknown
    assert len({tuple(map(str, given)) for given in runs.values()}) == len(runs)
    assert len(runs) >= 2


# ---- pass@k

def chances(*values):
    return [list(values)]


def test_pass_at_k_is_judged_at_both_ends():
    base = chances(*[0.01] * 50, *[0.011] * 50)
    sharper = chances(*[0.9] * 60, *[0.0] * 40)
    assert pass_at_k.judge({"t": {"base": base, "grpo": sharper}})[0] == "reproduced"
    better = chances(*[0.5] * 50, *[0.6] * 50)
    never = chances(*[0.0] * 50, *[0.01] * 50)
    assert pass_at_k.judge({"t": {"base": never, "grpo": better}})[0] == "reversed"
    assert pass_at_k.judge({"t": {"base": base, "grpo": base}})[0] == "not reproduced"


def test_a_policy_that_is_the_base_is_nowhere_ahead(tmp_path, monkeypatch):
    """The whole of the study's own work, on five problems and runs that are the base."""
    monkeypatch.setattr(Made, "model", lambda self, run: ROOT / pass_at_k.BASE)
    for algo in pass_at_k.METHODS:
        folder = tmp_path / pass_at_k.run_of("countdown-3", algo, 0)
        folder.mkdir()
        (folder / "summary.json").write_text("{}")
    found = pass_at_k.findings(Made(tmp_path, range(1), {
        "n": 5, "tasks": {"countdown-3": dict(numbers=3)}}))
    assert found.verdict == "not reproduced" and [row[1] for row in found.rows] == [
        "base", *pass_at_k.METHODS]
    assert len({tuple(row[3:8]) for row in found.rows}) == 1
    assert {tuple(row[8:]) for row in found.rows[1:]} == {("never", "0 (0)")}
    assert 0 < float(found.rows[0][3]) < float(found.rows[0][5]) <= 1


def test_a_crossing_is_where_the_base_stays_ahead():
    base, found = chances(0.01, 0.01), chances(0.5, 0.0)
    first = float(pass_at_k.crossing(base, found).replace(",", ""))
    k = next(k for k in pass_at_k.GRID if pass_at(0.01, k) > (1 - 0.5**k) / 2)
    assert first == round(k) and pass_at_k.crossing(found, base) == "never"
    assert pass_at_k.lost(base[0], found) == "1 (0)"
    assert pass_at_k.lost(found[0], base) == "0 (1)"


# ---- spurious rewards

def test_a_coin_is_fair_and_knows_nothing_of_the_answer():
    from minipost.tasks.arithmetic import Arithmetic

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
    assert spurious_rewards.wrong(prompts, texts, answer=right) == [k % 2 for k in range(300)]
    assert spurious_rewards.wrong(["x"], ["no number"], answer=[3]) == [0.0]


@pytest.mark.parametrize("right, other, verdict", [
    ([0.2, 0.1, 0.3], [-0.1, -0.2, 0.0], "reproduced"),
    ([0.2, 0.1, 0.3], [0.1, 0.05, 0.2], "not reproduced"),
    ([0.0, -0.1, 0.1], [0.1, 0.05, 0.2], "reversed"),
    ([0.0, -0.1, 0.1], [0.0, -0.1, 0.1], "not reproduced")])
def test_spurious_rewards_are_judged_by_the_coin(right, other, verdict):
    data = {f"{base}, coin": gain for base, gain in zip(spurious_rewards.BASES, (right, other))}
    assert spurious_rewards.judge(data) == verdict


# ---- the edge of competence

@pytest.mark.parametrize("can, edge, cannot, verdict", [
    ([0.1, 0.0, 0.2], [0.5, 0.4, 0.6], [0.0, -0.1, 0.1], "reproduced"),
    ([0.1, 0.0, 0.2], [0.5, 0.15, 0.6], [0.0, -0.1, 0.1], "not reproduced"),
    ([0.5, 0.4, 0.6], [0.1, 0.0, 0.2], [0.4, 0.3, 0.5], "reversed"),
    (None, [0.5, 0.4, 0.6], [0.0, -0.1, 0.1], "not reproduced")])
def test_the_edge_is_judged_by_the_largest_gain_of_each_class(can, edge, cannot, verdict):
    best = {"can": can, "edge": edge, "cannot": cannot}
    assert edge_of_competence.judge(best) == verdict
    assert "the largest gain" in edge_of_competence.sentence(best).lower()


def test_every_accuracy_has_a_class():
    assert [edge_of_competence.class_of(p) for p in (0, 0.019, 0.02, 0.69, 0.7, 1.0)] == [
        "cannot", "cannot", "edge", "edge", "can", "can"]


# ---- forgetting

def points(grpo, sft, law=lambda kl: 0.1 * kl):
    return [{"method": m, "new": new, "kl": kl, "forgotten": law(kl)}
            for m, found in (("grpo", grpo), ("sft", sft)) for new, kl in found]


def test_forgetting_is_judged_by_fit_and_order():
    near, far = [(0.95, 0.5), (0.96, 0.7)], [(0.95, 2.0), (0.99, 3.0)]
    assert forgetting.judge(points(near, far), 0.9)[0] == "reproduced"
    assert forgetting.judge(points(far, near), 0.9)[0] == "reversed"
    assert forgetting.judge(points(near, far), 0.4)[0] == "not reproduced"
    assert forgetting.judge(points(near, far, lambda kl: -kl), 0.9)[0] == "not reproduced"
    assert forgetting.judge(points([(0.5, 0.1)], far), 0.9)[0] == "not reproduced"


def test_a_quadratic_explains_a_parabola_and_no_noise():
    x = np.linspace(0, 3, 30)
    assert forgetting.fit(x, 1 + 2 * x - x**2) == pytest.approx(1)
    rng = np.random.default_rng(0)
    assert forgetting.fit(x, rng.normal(size=30)) < 0.4
    assert forgetting.fit(x, np.ones(30)) == 0


def test_a_model_that_has_not_moved_has_forgotten_nothing(tmp_path, monkeypatch):
    """The whole of the study's own work, on four problems a task and runs that are the base."""
    monkeypatch.setattr(Made, "model", lambda self, run: ROOT / forgetting.BASE)
    made = Made(tmp_path, range(1), {"n": 4, "rates": ("2e-4",)})
    monkeypatch.setattr(Made, "once", lambda self, name, compute, of=(): compute())
    found = forgetting.findings(made)
    assert [p["method"] for p in found.data] == list(forgetting.METHODS)
    assert {(p["kl"], p["forgotten"]) for p in found.data} == {(0.0, 0.0)}
    assert found.verdict == "not reproduced" and len(found.rows) == len(forgetting.METHODS)
    assert forgetting.divergence(ROOT / "checkpoints/base", 4) > 0.1  # another model


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


def lines(seed, rule):
    """Forty windows of a run: entropy falls, tokens grow, and reward is what the rule says."""
    rng = np.random.default_rng(seed)
    return [{"entropy": h, "num_tokens": 100.0 * (k + 1),
             "reward": rule(h, k) + rng.normal() * 0.002}
            for k, h in enumerate(np.linspace(1.0, 0.05, 400))]


@pytest.mark.parametrize("rule, law, curve", [
    (lambda h, k: 1.3 - 0.4 * np.exp(h), "reproduced", None),
    (lambda h, k: 0.5 + 0.1 * (k < 100) * (1.0 - h), "reversed", None),
    (lambda h, k: 0.2 + 0.6 / (1 + (6e3 / (100.0 * (k + 1))) ** 2), None, "reproduced")])
def test_laws_hold_where_runs_follow_them(tmp_path, monkeypatch, rule, law, curve):
    made = Made(tmp_path, range(2))
    monkeypatch.setattr(Made, "metrics", lambda self, run: lines(int(run[-1]), rule))
    assert law is None or entropy_law.findings(made).verdict == law
    assert curve is None or compute_curve.findings(made).verdict == curve


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
    """The whole of the study's own work, on lines of twenty steps in which lengths grow evenly."""
    grown = dict(zip(length_bias.METHODS, (papers, ours, cure)))
    by_run = {length_bias.run_of(name, seed): by[seed]
              for name, by in grown.items() for seed in range(3)}

    def lines(self, run):
        return [{"reward": 0.5, **({"completions/mean_length/wrong": 20 + by_run[run] * k / 18,
                                    "completions/mean_length/right": 20.0} if k != 1 else {})}
                for k in range(20)]

    scores = {"all": {"sampled, held-out": {"after": {"value": 0.25}}}}
    monkeypatch.setattr(Made, "metrics", lines)
    monkeypatch.setattr(Made, "summary", lambda self, run: scores)
    found = length_bias.findings(Made(tmp_path, range(3)))
    assert found.verdict == verdict
    name = length_bias.PAPERS
    assert length_bias.growth(lines(None, length_bias.run_of(name, 0)), "wrong") == \
        pytest.approx(papers[0] * 18.5 / 18)
    assert [len(run) for run in found.data[name]["wrong"]] == [5, 5, 5]
    assert found.rows[0][4].startswith("+0.000 [") and found.rows[0][5] == "0.250"


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
    found = staleness.findings(Made(tmp_path, range(3)))
    assert found.verdict == verdict and len(found.rows) == 1 + 3 * len(staleness.LAGS)
    row, = [row for row in found.rows if row[:2] == ["8", "truncated"]]
    gap = 0.9 - sum(truncated) / 3
    assert float(row[3].split()[0]) == pytest.approx(gap, abs=6e-4) and row[4] == "8"
    assert [lag for lag, _ in found.data["clip"]] == [0, *staleness.LAGS]


# ---- the page

def test_what_is_computed_is_kept_until_its_run_is_newer(tmp_path):
    made, calls = Made(tmp_path, range(1)), []

    def compute():
        calls.append(1)
        return len(calls)

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "summary.json").write_text("{}")
    assert [made.once("x", compute, ["run"]) for _ in range(2)] == [1, 1]
    os.utime(tmp_path / "run" / "summary.json", (2e9, 2e9))
    assert made.once("x", compute, ["run"]) == 2


def test_a_run_that_two_studies_share_is_found_by_the_second(tmp_path):
    """Whose own folder is not there yet."""
    one, two = (Made(tmp_path / name, range(1)) for name in ("one", "two"))
    assert one.place("../both/0") == two.place("../both/0") == tmp_path / "both" / "0"


def test_a_report_has_the_verdict_its_figures_and_the_limits():
    study = studies.load("pass-at-k")
    found = Finding(["a"], [["1"]], "reversed", "So it went.", notes=["Note."])
    text = "\n".join(__main__.report(study, found, "pictures/x.svg"))
    for part in ("## Does RL reach beyond", "`make study-pass-at-k`", "**Reversed.** So it went.",
                 "| 1 |", "![pass-at-k](pictures/x.svg)", "Note.", study.LIMITS):
        assert part in text
