"""The comparison of methods, on fabricated runs: what is made again, what is said, the plot."""

import json
import os
import signal
import threading
from dataclasses import asdict, fields

import pytest
from fakes import Steps, drive, toy

import minipost.run
from minipost import methods, train
from minipost.errors import MinipostError
from minipost.measure.stats import interval, paired, weighted
from scripts import compare, looks

ROOT = compare.ROOT


def rewards(right, n=400):
    return (1.0,) * right + (0.0,) * (n - right)


def score(right, n=400):
    return interval(rewards(right, n))


def outcome(right, before=220, tokens=280_500, seconds=30.0, steps=28):
    """A run that went from `before` right answers of 400 to `right`, a third of the way at 4."""
    middle = before + (right - before) / 3
    return compare.Outcome(score(before), score(right), score(398), tokens, seconds,
                           ((0, 0, before / 400), (4, tokens * 4 // steps, middle / 400),
                            (steps, tokens, right / 400)), rewards(right))


def runs(*right, **facts):
    return [outcome(k, **facts) for k in right]


def fabricate(args, algo, seed, right=390, origin="o", summary=True, state=True):
    """The directory of a run as minipost.train leaves it, without the weights."""
    directory = compare.place(args, algo, seed)
    (directory / "state").mkdir(parents=True)
    wanted = train.settings_of(compare.flags(args, algo, seed))
    (directory / "config.json").write_text(json.dumps({
        "algo": algo, "options": {**asdict(wanted.options), "out": str(directory)},
        "method": asdict(wanted.config),
        "task": {"name": wanted.task.name, **asdict(wanted.task)}}))
    (directory / "origin").write_text(origin)
    if state:
        (directory / "state/state.safetensors").touch()
    lines = [{"step": k, "num_tokens": 10 * k, "seconds": k, **(
        {"eval/held-out/sampled": k / 8, "eval/held-out/greedy": 1.0} if k % 2 == 0 else {})}
        for k in range(1, 5)]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(m) + "\n" for m in lines))
    if summary:
        results = {name: {"before": asdict(score(200)), "after": asdict(score(right))}
                   for name in ("greedy, held-out", "sampled, held-out")}
        results["greedy, held-out"]["after"] = asdict(score(396))
        (directory / "summary.json").write_text(json.dumps({
            "metric": "sampled reward, held-out", "seconds": 4.5, "tokens": 40, "all": results}))
        (directory / "rewards.json").write_text(json.dumps({"sampled, held-out": {
            "before": rewards(200), "after": rewards(right)}}))
    return directory


@pytest.fixture
def args(tmp_path):
    return compare.parse(["--quick", "--methods", "grpo,dapo", "--seeds", "2", "--runs",
                          str(tmp_path / "runs"), "--out", str(tmp_path / "x.md"), "--plot",
                          str(tmp_path / "plots/x.svg")])


def test_how_often_the_bound_was_broken(tmp_path):
    """Of the accepted steps alone; a KL that was not finite broke it."""
    assert compare.bound([]) == ""
    for name, delta, steps in (("a", 0.1, [(1, 0.1), (1, 0.11), (0, 0.3)]),
                               ("b", 0.2, [(1, 0.11), (1, None), (0, 0.0)])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"method": {"delta": delta}}))
        (tmp_path / name / "metrics.jsonl").write_text("".join(
            json.dumps({"accepted": accepted, "kl": kl}) + "\n" for accepted, kl in steps))
    assert compare.bound([tmp_path / "a"]) == "TRPO broke its KL bound in 1 of 2 accepted steps."
    assert compare.bound([tmp_path / "a", tmp_path / "b"]).endswith("in 2 of 4 accepted steps.")


@pytest.mark.parametrize("algo", ["self-critical", "dapo", "vineppo", "prime", "gspo", "maxrl",
                                  "ttrl", "es"])
def test_all_tokens_that_a_method_samples_to_learn_count(algo, spy):
    """Greedy answers, dropped groups, branches, votes and the answers of perturbed weights too."""
    method, run, drawn = methods.load(algo), toy(Steps()), spy(minipost.run, "generate")
    few = {"prompts": 2, "group_size": 2, "population": 3, "branches": 2, "minibatch_size": 4}
    known = {field.name for field in fields(method.Config)}
    cfg = method.Config(**{name: value for name, value in few.items() if name in known})
    drive(run, method.train(run, cfg), 2)
    assert run.tokens == sum(int(rollout.mask.sum()) for _, rollout in drawn) > 0
    assert compare.default_step(algo) > 0  # it has a step, which the comparison may size


# ---- which runs are made

@pytest.mark.parametrize("change, needs", [
    ({}, "nothing"), ({"summary": False}, "resume"), ({"summary": False, "state": False}, "start"),
    ({"origin": "other weights"}, "start"), ({"origin": "other", "summary": False}, "start"),
    ({"state": False}, "nothing"),
])
def test_what_a_run_still_needs(args, change, needs):
    directory = fabricate(args, "grpo", 0, **change)
    wanted = train.settings_of(compare.flags(args, "grpo", 0))
    assert compare.to_do(directory, wanted, "o") == needs


@pytest.mark.parametrize("option, value", [
    ("budget", 3001), ("knobs", "--terms 5"), ("model", "elsewhere"), ("eval_every", 5),
    ("eval_n", 11), ("workers", 1),
])
@pytest.mark.parametrize("summary", [True, False])
def test_other_settings_make_a_run_anew(args, option, value, summary):
    directory = fabricate(args, "grpo", 0, summary=summary)
    setattr(args, option, value)
    wanted = train.settings_of(compare.flags(args, "grpo", 0))
    assert compare.to_do(directory, wanted, "o") == "start"


def test_a_changed_default_of_a_method_makes_its_run_anew(args):
    directory = fabricate(args, "grpo", 0)
    saved = json.loads((directory / "config.json").read_text())
    saved["method"]["lr"] *= 2
    (directory / "config.json").write_text(json.dumps(saved))
    assert compare.to_do(directory, train.settings_of(compare.flags(args, "grpo", 0)),
                         "o") == "start"


def test_a_directory_without_a_run_is_started(args, tmp_path):
    wanted = train.settings_of(compare.flags(args, "grpo", 0))
    assert compare.to_do(tmp_path / "none", wanted, "o") == "start"
    directory = fabricate(args, "grpo", 0)
    (directory / "config.json").write_text('{"algo": "grpo", "op')
    assert compare.to_do(directory, wanted, "o") == "start"
    (fabricate(args, "grpo", 1) / "origin").unlink()
    wanted = train.settings_of(compare.flags(args, "grpo", 1))
    assert compare.to_do(compare.place(args, "grpo", 1), wanted, "o") == "start"


def test_the_fingerprint_is_of_weights_and_settings_but_not_of_the_card(tmp_path):
    for name in ("config.json", "model.safetensors", "README.md"):
        (tmp_path / name).write_text(name)
    first = compare.fingerprint(tmp_path)
    (tmp_path / "README.md").write_text("measured again")
    assert compare.fingerprint(tmp_path) == first
    (tmp_path / "model.safetensors").write_text("trained again")
    assert compare.fingerprint(tmp_path) != first


class Fake:
    """A Runner that only notes what it is asked to do."""

    stopped = False

    def __init__(self, says=None, stop_at=None):
        self.says, self.stop_at, self.asked = says or {}, stop_at, []

    def run(self, directory, arguments):
        self.asked.append((directory.name, arguments[0]))
        self.stopped = self.stopped or len(self.asked) == self.stop_at
        left = {path.name for path in directory.rglob("*") if path.is_file()}
        assert arguments[0] == "--resume" or left <= {"origin", "metrics.jsonl"}
        assert (directory / "origin").read_text() == "o"
        return self.says.get(directory.name)


def test_each_run_gets_what_it_needs(args, capsys, monkeypatch):
    """Of seed 0 grpo is there and dapo half made; dapo 0 and grpo 1 fail, dapo 1 is stopped."""
    monkeypatch.setattr(compare, "fingerprint", lambda model: "o")
    fabricate(args, "grpo", 0)
    fabricate(args, "dapo", 0, summary=False)
    runner = Fake(dict.fromkeys(("arithmetic-dapo-0", "arithmetic-grpo-1"), "error: no"), 3)
    assert compare.make(args, runner) is None
    assert runner.asked == [("arithmetic-dapo-0", "--resume"), ("arithmetic-grpo-1", "--algo"),
                            ("arithmetic-dapo-1", "--algo")]
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "1/4  grpo, seed 0: 0.500 -> 0.975, 40 tokens, 4 s, made earlier"
    assert said[1].startswith("2/4  dapo, seed 0: failed: error: no (see ")
    assert said[2].startswith("3/4  grpo, seed 1: failed: error: no (see ")
    assert said[3] == "4/4  dapo, seed 1: stopped"


def test_what_is_left_of_an_older_run_never_passes_for_a_new_one(args, monkeypatch):
    """Where a run with other settings is stopped before it begins, it is started again."""
    monkeypatch.setattr(compare, "fingerprint", lambda model: "o")
    args.methods, args.seeds = ["grpo"], 1
    directory = fabricate(args, "grpo", 0, origin="older weights")
    assert compare.make(args, Fake(stop_at=1)) is None
    wanted = train.settings_of(compare.flags(args, "grpo", 0))
    assert compare.to_do(directory, wanted, "o") == "start"


def sleeper(tmp_path, monkeypatch, body):
    """Let a script stand in for minipost.train."""
    package = tmp_path / "minipost"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "train.py").write_text(body)
    monkeypatch.setattr(compare, "ROOT", tmp_path)
    return tmp_path


def test_a_signal_reaches_the_run_once_and_the_runner_waits_for_it(tmp_path, monkeypatch):
    """The stand-in signals its parent, counts what it gets back and ends a little later."""
    folder = sleeper(tmp_path, monkeypatch, """
import os, signal, sys, time
got = []
signal.signal(signal.SIGINT, lambda *_: got.append(1))
os.kill(os.getppid(), signal.SIGTERM)
time.sleep(0.3)
print("got", len(got), "in a session of its own", os.getsid(0) == os.getpid(), flush=True)
sys.exit(130)
""")
    runner = compare.Runner()
    previous = signal.signal(signal.SIGTERM, runner.handle)
    try:
        said = runner.run(folder, [])
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert runner.stopped and said == "got 1 in a session of its own True"


def test_a_run_that_fails_says_its_last_line(tmp_path, monkeypatch):
    """Of this start alone: the log keeps what earlier ones said."""
    folder = sleeper(tmp_path, monkeypatch, """
import sys
if sys.argv[1:]:
    print("loading", *sys.argv[1:], sep="\\n")
sys.exit(1)
""")
    runner = compare.Runner()
    assert runner.run(folder, ["error: no model"]) == "error: no model"
    assert runner.run(folder, []) == "no message"
    assert not runner.stopped
    assert (folder / "log.txt").read_text() == "loading\nerror: no model\n"


def test_a_run_that_was_killed_has_failed(tmp_path, monkeypatch):
    folder = sleeper(tmp_path, monkeypatch, """
import os
print("step 3", flush=True)
os.kill(os.getpid(), 9)
""")
    assert compare.Runner().run(folder, []) == "ended by signal 9 after saying: step 3"


def test_a_run_that_ends_well_says_nothing(tmp_path, monkeypatch):
    folder = sleeper(tmp_path, monkeypatch, "print('31 s of training')")
    assert compare.Runner().run(folder, []) is None


def test_a_finished_run_is_read(args):
    """The curve starts before training, and its end is measured once though it is logged twice."""
    found = compare.read(fabricate(args, "grpo", 0))
    assert found == compare.Outcome(score(200), score(390), score(396), 40, 4.5, (
        (0, 0, 0.5), (2, 20, 0.25), (4, 40, 0.975)), rewards(390))


def test_a_run_from_before_rewards_were_kept_is_made_again(args):
    directory = fabricate(args, "grpo", 0)
    wanted = train.settings_of(compare.flags(args, "grpo", 0))
    assert compare.to_do(directory, wanted, "o") == "nothing"
    (directory / "rewards.json").unlink()
    assert compare.to_do(directory, wanted, "o") == "resume"


def test_runs_side_by_side_have_cores_of_their_own():
    """As many at once as were asked for, on shares that do not overlap, answered in order."""
    cores, both = compare.own_cores(), threading.Barrier(2, timeout=20)

    def task(k):
        both.wait()     # two tasks are here at once, or this breaks
        mine = os.sched_getaffinity(0)
        both.wait()     # no share is given back before both have looked
        return k, mine

    jobs = 2
    if len(cores) < jobs:
        pytest.skip("one core")
    found = list(compare.side_by_side(jobs, [lambda k=k: task(k) for k in range(4)]))
    assert [k for k, _ in found] == [0, 1, 2, 3]
    for (_, one), (_, other) in (found[:2], found[2:]):
        assert one | other == set(cores) and not one & other
    assert compare.own_cores() == cores
    for wrong in 0, len(cores) + 1:
        with pytest.raises(SystemExit):
            compare.parse(["--jobs", str(wrong)])


def test_stopped_side_by_side_nothing_more_begins(args, monkeypatch):
    monkeypatch.setattr(compare, "fingerprint", lambda model: "o")
    args.jobs, args.seeds = min(2, len(compare.own_cores())), 4
    runner = Fake(stop_at=1)
    assert compare.make(args, runner) is None
    assert len(runner.asked) <= 2


# ---- what is said

def test_means_over_seeds_take_the_wider_end():
    """Seeds that agree by chance leave the evaluations' noise, seeds that do not leave t's."""
    same = compare.average([score(390)] * 3)
    noise = weighted([score(390)] * 3, [1 / 3] * 3)
    assert (same.low, same.high) == (noise.low, noise.high) and same.n == 1200
    assert same.value == pytest.approx(0.975)
    apart = compare.average([score(200), score(240), score(280)])   # 0.5, 0.6, 0.7
    assert apart.value == pytest.approx(0.6)
    assert apart.high - 0.6 == pytest.approx(0.6 - apart.low)
    assert apart.high - 0.6 == pytest.approx(4.30265 * 0.1 / 3**0.5, abs=1e-5)
    assert compare.average([score(400), score(300)]).high == 1.0
    one = compare.average([score(390)])
    assert (one.low, one.high) == pytest.approx((score(390).low, score(390).high))


def test_differences_are_paired_by_seed():
    """Seeds that lift both methods alike are no noise of their difference."""
    best, other = [score(k) for k in (380, 300, 220)], [score(k) for k in (339, 260, 181)]
    found = compare.difference(other, best)     # -41, -40, -39 of 400: s = 1/400
    half = 4.30265 / 400 / 3**0.5
    noise = weighted([*other, *best], [1 / 3] * 3 + [-1 / 3] * 3)
    assert found.value == pytest.approx(-0.1)
    assert half < 0.1 - abs(noise.high)         # so here the evaluations' noise is the wider
    assert (found.low, found.high) == (noise.low, noise.high) and found.high < 0
    far = compare.difference([score(k) for k in (300, 340, 380)], [score(380)] * 3)
    assert far.low == pytest.approx(-0.1 - 4.30265 * 0.1 / 3**0.5, abs=1e-5)
    assert far.high == pytest.approx(-0.1 + 4.30265 * 0.1 / 3**0.5, abs=1e-5)
    whole = compare.difference([score(0), score(400)], [score(400), score(0)])
    assert (whole.low, whole.high) == (-1.0, 1.0)


def test_differences_are_paired_by_problem():
    """That both fail on the same problems is no noise of their difference."""
    ours, theirs = [rewards(k) for k in (380, 381)], [rewards(k) for k in (376, 377)]
    found = compare.paired_difference(ours, theirs)
    each = paired(theirs[0], ours[0])
    loose = compare.difference([score(380), score(381)], [score(376), score(377)])
    assert found.value == pytest.approx(loose.value) == pytest.approx(0.01)
    assert 0 < found.low < each.value and each.low < found.low    # two seeds know more than one
    assert loose.low < 0                                            # scores alone do not tell
    backwards = compare.paired_difference(theirs, ours)
    assert (backwards.low, backwards.high) == pytest.approx((-found.high, -found.low))
    # other problems are as noisy as they look
    apart = compare.paired_difference(ours, [side[::-1] for side in theirs])
    assert apart.low < 0 and apart.value == found.value
    # a problem without a reward on either side is left out
    some = compare.paired_difference([(None, 1.0, 1.0)], [(1.0, None, 0.0)])
    assert (some.value, some.n) == (1.0, 1)
    # what differs between seeds counts too
    wide = compare.paired_difference([rewards(400), rewards(300)], [rewards(300), rewards(300)])
    assert (wide.low, wide.high) == (-1.0, 1.0)


FOUND = {"reinforce": runs(330, 336, 340), "ppo": [*runs(390), compare.Failure(1, "error: a | b")],
         "grpo": runs(386, 390, 392, tokens=280_900), "dapo": [
             outcome(391, seconds=50.0), outcome(392, seconds=41.0), outcome(393, steps=29)]}


def test_the_table():
    found = compare.rows(FOUND, {"dapo": 4e-4})
    assert [row[0] for row in found] == ["dapo", "grpo", "reinforce", "ppo"]
    assert all(len(row) == len(compare.COLUMNS) for row in found)
    best = compare.average([score(k) for k in (391, 392, 393)])
    greedy = compare.average([score(398)] * 3)
    assert [row[1] for row in found[:3]] == ["lr 0.0004", "lr 0.0002", "lr 0.0002"]
    del found[0][1]
    assert found[0] == ["dapo", "0.550", f"0.980 [{best.low:.3f}, {best.high:.3f}]", "is the best",
                        f"0.995 [{greedy.low:.3f}, {greedy.high:.3f}]", "280,500", "41", "28-29"]
    assert found[1][4].startswith("-0.007 [-0.0") and found[1][6:] == ["280,900", "30", "28"]
    assert found[2][4].startswith("-0.142 [-0.1")
    assert found[3] == ["ppo", "failed: seed 1: error: a \\| b", *[""] * 7]
    assert compare.step_said("trpo", {}) == "delta 0.003"


def test_pairs_that_differ():
    assert compare.pairs({k: v for k, v in FOUND.items() if k != "ppo"}) == (
        "Of 3 pairs of methods 2 differ beyond noise: dapo over reinforce, grpo over reinforce.")
    assert compare.pairs({"grpo": runs(390, 391, 392), "dapo": runs(389, 391, 390)}) == (
        "Of 1 pairs of methods 0 differ beyond noise.")


def test_a_step_is_chosen_by_the_reward_on_training_problems(args, monkeypatch, capsys):
    """The last quarter of the steps decides, of runs that look at no held-out problem meanwhile."""
    monkeypatch.setattr(compare, "fingerprint", lambda model: "o")
    args.methods, args.sweep = ["grpo", "trpo"], 1
    earned = {"grpo-1000-0.0004": [0.1, 0.1, 0.1, 0.9], "grpo-1000-0.0002": [0.9, 0.9, 0.9, 0.8],
              "trpo-1000-0.006": [0, 0, 0, 0.5]}

    class Steps(Fake):
        def run(self, directory, arguments):
            given = dict(zip(arguments[::2], arguments[1::2]))
            assert given["--seed"] == "1000" and given["--eval-every"] == "0"
            rewards = earned.get(directory.name.removeprefix("arithmetic-"), [0, 0, 0, 0.1])
            (directory / "metrics.jsonl").write_text(
                "".join(json.dumps({"reward": r}) + "\n" for r in rewards))
            return super().run(directory, arguments)

    assert compare.choose(args, Steps()) == {"grpo": 4e-4, "trpo": 0.006}
    assert "grpo: reward by lr: 0.0001 0.100, 0.0002 0.800, 0.0004 0.900" in capsys.readouterr().out
    assert compare.choose(args, Steps(stop_at=2)) is None
    args.sweep = 0
    assert compare.choose(args, None) == {"grpo": None, "trpo": None}


@pytest.mark.parametrize("earned, wanted", [
    ({1: 0.1, 2: 0.3, 4: 0.2}, []), ({1: 0.1, 2: 0.3}, [4.0]), ({1: 0.4, 2: 0.3}, [0.5]),
    ({1: 0.4, 2: 0.4}, [0.5]), ({1: -float("inf"), 2: -float("inf")}, [0.5]),
    ({32: 0.4, 16: 0.3}, []), ({1 / 32: 0.4, 1: 0.3}, []), ({16: 0.4, 8: 0.3}, [32.0])])
def test_the_sweep_goes_on_while_the_best_is_at_an_edge(earned, wanted):
    assert compare.farther(earned, 1.0) == wanted


def test_the_verdict_names_who_cannot_be_told_apart():
    noise = "not differ from it beyond noise (the interval of the paired difference contains 0)"
    assert compare.verdict(FOUND) == (f"dapo comes out highest; grpo does {noise}; reinforce is "
                                      "behind it by more than noise.")
    near = {"grpo": runs(390, 391, 392), "dapo": runs(389, 391, 390), "rloo": runs(391, 389, 390)}
    assert compare.verdict(near) == f"grpo comes out highest; dapo and rloo do {noise}."
    far = {"grpo": runs(390, 391, 392), "a2c": runs(300, 301, 302), "ppo": runs(310, 300, 302),
           "trpo": runs(200, 201, 199)}
    assert compare.verdict(far) == ("grpo comes out highest; ppo, a2c and trpo are behind it by "
                                    "more than noise.")
    nobody = "There are no two methods to compare."
    assert compare.verdict({"ppo": FOUND["ppo"], "grpo": FOUND["grpo"]}) == nobody
    assert compare.verdict({"ppo": FOUND["ppo"]}) == nobody


def test_methods_that_agree_to_the_last_digit_in_every_seed_differ_by_noise():
    """One answer of 400 less in each of three seeds: t alone would be sure of it."""
    found = {"grpo": runs(390, 391, 392), "dapo": runs(389, 390, 391)}
    assert "dapo does not differ" in compare.verdict(found)


def test_the_report_says_how_it_was_made(args):
    found = {"grpo": runs(386, 390), "ppo": runs(380, 380)}
    args.knobs, args.model, args.sweep = "", "checkpoints/base", 0
    text = "\n".join(compare.report(args, found, ["--quick", "--task", "arithmetic"]))
    assert "`python -m scripts.compare --quick --task arithmetic`" in text
    assert "train --algo METHOD --task arithmetic --seed SEED --model checkpoints/base" in text
    assert "![Held-out accuracy against response tokens, by method](plots/x.svg)" in text
    assert "400 held-out problems per seed" in text and "paired by seed" in text
    assert "those of ppo (wording) are for another task" in text
    assert "`make compare`" in "\n".join(compare.report(args, found, []))
    failed = "\n".join(compare.report(args, {"ppo": [compare.Failure(0, "no")] * 2}, []))
    assert "failed: seed 0: no" in failed and "![" not in failed
    args.sweep = 1
    trust = "\n".join(compare.report(args, {"trpo": [compare.Failure(0, "no")] * 2}, []))
    assert "--lr SIZE` (--delta SIZE with trpo), for 2 seeds" in trust
    assert "--delta" not in "\n".join(compare.report(args, {"ppo": found["ppo"]}, []))


@pytest.mark.parametrize("flags, said", [
    (["--methods", "grpo,gpro"], "no method 'gpro' to compare"),
    (["--methods", "reward"], "reward makes no policy"), (["--budget", "0"], "--budget is 0"),
    (["--model", "data"], "holds no config.json"), (["--task", "wording"], "invalid choice"),
])
def test_options_that_make_no_sense(capsys, flags, said):
    with pytest.raises(SystemExit) as stop:
        compare.parse(flags)
    assert stop.value.code == 2 and said in capsys.readouterr().err


def test_a_method_without_what_is_needed_is_told_before_the_runs_or_after_its_first(
        monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(compare.STEP, "grpo", "stride")
    with pytest.raises(SystemExit):
        compare.parse(["--methods", "grpo"])
    assert "grpo has no setting stride, which is the size of its step" in capsys.readouterr().err
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    with pytest.raises(MinipostError, match="a step logs no metric 'reward', by which --sweep 1"):
        compare.at_the_end(tmp_path)


def test_of_one_method_nothing_is_said_of_pairs(args):
    args.methods = ["grpo"]
    text = "\n".join(compare.report(args, {"grpo": runs(390, 391)}, []))
    assert "There are no two methods to compare." in text and "pairs of methods" not in text


def test_a_try_out_touches_nothing_that_is_shipped(capsys):
    with pytest.raises(SystemExit):
        compare.parse(["--help"])
    assert "[--quick]" in capsys.readouterr().out
    real, quick = compare.parse([]), compare.parse(["--quick"])
    assert real.out == ROOT / "BENCHMARKS.md"
    assert real.plot == ROOT / "docs/pictures/compare-arithmetic.svg"
    assert real.methods == list(compare.METHODS) and real.runs == ROOT / "runs/compare"
    assert {quick.out.parent, quick.plot.parent, quick.runs} == {ROOT / "runs/compare-quick"}


# ---- from runs to report

def test_from_runs_to_report(args, monkeypatch, capsys):
    """Of four runs three are there; the fourth fails, is stopped, and then succeeds."""
    pytest.importorskip("matplotlib")
    origin = compare.fingerprint(ROOT / args.model)
    for algo, seed in (("grpo", 0), ("dapo", 0), ("grpo", 1)):
        fabricate(args, algo, seed, origin=origin)
    given = ["--quick", "--methods", "grpo,dapo", "--seeds", "2", "--runs", str(args.runs),
             "--out", str(args.out), "--plot", str(args.plot)]
    handler = signal.getsignal(signal.SIGINT)

    monkeypatch.setattr(compare.Runner, "run", lambda *_: "error: too bad")
    assert compare.main(given) == 1
    assert "| dapo | failed: seed 1: error: too bad |" in args.out.read_text()
    args.out.unlink()

    monkeypatch.setattr(compare.Runner, "run", lambda runner, *_: runner.handle(2, None))
    capsys.readouterr()
    assert compare.main(given) == 130 and not args.out.exists()
    assert "go on with: python -m scripts.compare --quick --methods grpo" in capsys.readouterr().err

    monkeypatch.setattr(compare.Runner, "run", lambda runner, directory, _: directory.rename(
        directory.with_name("away")) and fabricate(args, "dapo", 1, origin=origin) and None)
    assert compare.main(given) == 0
    monkeypatch.setattr(compare.Runner, "run", lambda *_: pytest.fail("nothing is left to make"))
    assert compare.main(given) == 0
    text = args.out.read_text()
    assert "failed" not in text and text.count("## RL methods at an equal budget") == 1
    assert args.plot.is_file() and signal.getsignal(signal.SIGINT) == handler


def test_without_matplotlib_nothing_is_trained(monkeypatch, capsys):
    monkeypatch.setattr(compare, "find_spec", lambda name: None)
    monkeypatch.setattr(compare, "make", lambda *_: pytest.fail("it trained"))
    assert compare.main(["--quick"]) == 1
    assert "needs matplotlib" in capsys.readouterr().err


# ---- the plot

def test_curves_of_seeds_meet_step_by_step_and_at_their_ends():
    """Inner points beyond the end of the shorter run have no partner and are left out."""
    short = compare.Outcome(None, None, None, 0, 0.0, (
        (0, 0, 0.5), (4, 40, 0.6), (8, 80, 0.7), (10, 100, 0.8)))
    long = compare.Outcome(None, None, None, 0, 0.0, (
        (0, 0, 0.3), (4, 44, 0.8), (8, 90, 0.9), (12, 118, 0.9), (13, 120, 1.0)))
    assert compare.pooled([short, long]) == [
        (0, pytest.approx(0.4), 0.3, 0.5), (42, pytest.approx(0.7), 0.6, 0.8),
        (85, pytest.approx(0.8), 0.7, 0.9), (110, pytest.approx(0.9), 0.8, 1.0)]
    assert compare.pooled([short]) == [(t, v, v, v) for _, t, v in short.curve]


def test_the_plot_is_the_same_file_each_time(tmp_path):
    pytest.importorskip("matplotlib")
    for name in ("a/x.svg", "b/x.svg"):
        compare.draw(tmp_path / name, FOUND, "a title")
    first, second = ((tmp_path / name).read_bytes() for name in ("a/x.svg", "b/x.svg"))
    assert first == second and first.startswith(b"<?xml") and b"dc:date" not in first


def test_the_plot_shows_each_method_and_how_far_it_is_from_the_best(tmp_path, monkeypatch):
    """Seen through the figure that is saved, since the file holds outlines of letters."""
    matplotlib = pytest.importorskip("matplotlib.figure")
    saved = []
    monkeypatch.setattr(matplotlib.Figure, "savefig", lambda figure, *_, **__: saved.append(figure))
    compare.draw(tmp_path / "x.svg", FOUND, "a title")
    axes, right = saved[0].axes
    assert [text.get_text() for text in axes.texts] == [
        "reinforce  0.838", "grpo  0.973", "dapo  0.980"]
    lines = {name: next(line for line in axes.lines if line.get_color() == looks.colour(name))
             for name in ("dapo", "grpo", "reinforce")}
    assert list(lines["grpo"].get_xdata()) == [t for t, *_ in compare.pooled(FOUND["grpo"])]
    assert list(lines["grpo"].get_ydata()) == [v for _, v, *_ in compare.pooled(FOUND["grpo"])]
    assert axes.get_title(loc="left") == "a title" and axes.get_xlabel() and axes.get_ylabel()
    low, high = axes.get_ylim()
    assert low < 0.55 and high == 1.0
    assert [text.get_text() for text in right.get_yticklabels()] == ["grpo", "reinforce"]
    gaps = compare.gaps(FOUND)
    assert [bar[0].get_xdata()[0] for bar in right.containers] == [
        gaps["grpo"].value, gaps["reinforce"].value]
