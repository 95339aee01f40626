"""The bench: what counts as the same work, how rows and shares are made, and that its jobs run."""

import random
from argparse import Namespace
from collections import Counter

import pytest

from minipost import checkpoint, train
from minipost.gpt import GPT, GPTConfig
from scripts import (
    alternate,
    bench,
    bench_methods,
    bench_peer,
    bench_profile,
    bench_speed,
    bench_test_time,
)
from scripts.alternate import ROOT, Bench, Failed, row
from scripts.bench_speed import same_work
from scripts.floor import Pass
from scripts.pretrain import tokenizer


def result(**more):
    return {"row": [1, 5, 6], "losses": [0.7, 0.6, 0.5, 0.4], "length": 0, **more}


def test_work_is_the_same_if_rows_and_first_losses_are():
    later = result(losses=[0.7004, 0.6, 0.5, 9.0])
    assert same_work({"own": [result()], "peer": [later]}) == "3"
    with pytest.raises(Failed, match="the first losses differ"):
        same_work({"own": [result()], "peer": [result(losses=[0.702, 0.6, 0.5, 0.4])]})
    with pytest.raises(Failed, match="the first losses differ"):
        same_work({"own": [result()], "peer": [result(losses=[float("nan")] * 3)]})
    with pytest.raises(Failed, match=r"other rows, of \[3, 4\] tokens"):
        same_work({"own": [result()], "peer": [result(row=[1, 1, 5, 6])]})


def test_work_is_the_same_if_sampled_answers_are_as_long():
    own = [result(row=None, length=length) for length in (44, 45, 46)]
    assert same_work({"own": own, "peer": [result(row=None, length=45.9)]}) == "45.0 and 45.9"
    with pytest.raises(Failed, match="45.0 tokens for minipost, 48.0"):
        same_work({"own": own, "peer": [result(row=None, length=48)]})


def test_rows_compare_medians_with_what_is_wanted():
    assert row("step", [1.0, 2.0, 9.0], [4.0, 4.0, 4.5], alternate.sec, (">=", 1.8)) == [
        "step", "2.00 s", "4.00 s", "2.00 [0.50, 4.00]", ">= 1.8", "yes"]
    assert row("memory", [3.0], [4.0], alternate.sec, ("<=", 0.55), True)[-3:] == [
        "0.75 [0.75, 0.75]", "<= 0.55", "no"]
    assert row("reach", [None], [4.0], alternate.sec, (">=", 3.0))[1:] == [
        "not reached", "4.00 s", "", ">= 3.0", "no"]


def test_a_disturbed_round_is_done_again_at_most_as_often_as_rounds_are_wanted(tmp_path):
    others = iter([0.0, 0.5, 0.5, 0.5, 0.5])
    job = lambda _: {"seconds": 1.0, "others": next(others)}
    bench = Bench(tmp_path, "", quick=False)
    assert len(bench.rounds(2, own=job)["own"]) == 2
    assert (bench.discarded, bench.worst) == (2, 0.5)
    assert len(Bench(tmp_path, "", quick=False, begun=-1e9).rounds(1, own=job)["own"]) == 1


def test_parts_of_a_step_add_up():
    """Steps end every 10 s, are sampled 4 s after the one before, and three are left out."""
    found = {"ends": [50, *range(60, 120, 10)], "sampled": [1, *range(54, 114, 10)]}
    assert bench_speed.parts_of(found) == {"step": 10, "sampling": 4, "training": 6}
    floors = [{"products": {"sampling": 1.0, "training": 5.0, "ppo": 9.0},
               "batched": {"sampling": 0.5, "training": 0.25}}]
    assert bench_speed.floor_rows([found], floors) == [
        ["GRPO step", "10000 ms", "6000 ms", "750 ms", "60% [60%, 60%]", ">= 55%", "yes"],
        ["GRPO sampling", "4000 ms", "1000 ms", "500 ms", "25% [25%, 25%]", "", ""],
        ["GRPO training", "6000 ms", "5000 ms", "250 ms", "83% [83%, 83%]", "", ""]]


def test_ppo_passes():
    """Two answers of 1 and 3 tokens: 15 + BOS of each prompt are read, and all but each last."""
    read = 2 * 16 + 4 - 2
    assert bench_methods.ppo_passes([1, 3]) == Counter({
        Pass(read, 4): 2, Pass(read, 0): 1, Pass(read, 4, True): 1, Pass(read, 0, True): 1})


def test_a_profile_adds_up_to_the_time_without_the_profiler():
    """Events that are no operators are Python's, as is the time of no event."""
    events = [("aten::mm", "sampling", 1.0), ("aten::addmm_", "sampling", 2.0),
              ("aten::view", "sampling", 1.0), ("MulBackward0", "sampling", 5.0),
              ("mkldnn::_linear_pointwise", "training", 3.0), ("aten::unheard_of", "training", 1.0)]
    found = bench_profile.tally(events, {"sampling": 8.0, "training": 4.0},
                                {"sampling": 4.0, "training": 4.0}, steps=2)
    assert found["sampling"] == {"matrix products": (1.5, 1), "views and memory": (0.5, 0.5),
                                 bench_profile.PYTHON: (2.0, 0)}
    assert found["training"] == {"matrix products": (3.0, 0.5), "other operators": (1.0, 0.5),
                                 bench_profile.PYTHON: (0.0, 0)}
    lines = bench_profile.lines([{"kinds": found, "plain": {"sampling": 4.0, "training": 4.0}}])
    assert lines[0] == ["matrix products", "1500.0 ms (38%)", "1", "3000.0 ms (75%)", "0"]
    assert lines[-1] == ["in all", "4000.0 ms", "", "4000.0 ms", ""]


@pytest.mark.parametrize("job", [*bench_methods.JOBS["own"], "grpo", "sft", "profile"])
def test_own_jobs_run(job, tmp_path, monkeypatch):
    """Each does its steps with a tiny model and says when they ended."""
    words = tokenizer()
    for name in ("model", "teacher"):
        checkpoint.create(tmp_path / name, GPT(GPTConfig(words.vocab_size, 8, 8, 1, 1, 1, 8)),
                          words)
    monkeypatch.setattr("minipost.parallel.default_workers", lambda device: 1)
    monkeypatch.setattr(bench_profile, "PROFILED", 1)
    monkeypatch.setattr("scripts.floor.LEAST", 1e-3)
    args = Namespace(model=str(tmp_path / "model"), steps=5 if job == "profile" else 2, seed=0)
    jobs = {**bench_peer.JOBS["own"], **bench_methods.JOBS["own"], **bench_profile.JOBS["own"]}
    found = jobs[job](args)
    if job == "floor":
        assert set(found["products"]) == {"sampling", "training", "ppo"}
    elif job == "profile":
        assert all(sum(seconds for seconds, _ in found["kinds"][part].values())
                   == pytest.approx(found["plain"][part]) for part in bench_profile.PARTS)
    else:
        assert len(found["ends"]) == len(found["losses"]) == 2
        assert (found["length"] > 0) == ("row" not in found)


def test_the_long_demo_is_measured_as_make_runs_it():
    """Its arguments stand in the Makefile and in bench.py."""
    text = (ROOT / "Makefile").read_text().partition("\ndemo-grpo-long:")[2].partition("\n\n")[0]
    words = text.replace("$(or $(STEPS),200)", "200").replace("\\\n", " ").split()
    given = words[words.index("minipost.train") + 1 : words.index("--out")]
    assert given == bench.DEMOS["grpo-long"]


def test_what_the_searcher_is_taught_fits_what_it_may_say():
    """Without a bound some searches with four numbers were longer than the model's context."""
    settings = train.settings_of(bench_test_time.LEARNT["searcher"].split())
    task, limit = settings.task, settings.options.max_new_tokens
    words, rng = checkpoint.load(str(ROOT / settings.options.model))[1].tokenizer, random.Random(0)
    assert "--max-new-tokens 480" in bench_test_time.TEXT and limit == 480
    asked = task.sample(400, rng)
    longest = max(len(words.encode(task.demonstrate(p, rng))) for p in asked)
    assert 300 < longest < limit and max(len(words.encode(p.prompt)) for p in asked) < 512 - limit
