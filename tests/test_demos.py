"""What `make demos` makes of several seeds."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from minipost import train
from scripts import demos


def summary(value, low, high, seconds=1.0):
    gain = {"value": value, "low": low, "high": high, "n": 400}
    return {"task": "t", "metric": "m", "before": gain, "after": gain, "gain": gain,
            "seconds": seconds}


def test_one_seed_is_as_it_is():
    one = summary(0.5, 0.4, 0.6)
    assert demos.pooled([one]) == {**one, "seeds": 1}


def test_seeds_that_agree_are_as_sure_as_one_of_them():
    """The problems are the same, so three seeds do not make them three times as many."""
    whole = demos.pooled([summary(0.5, 0.4, 0.7, s) for s in (1, 5, 2)])
    assert whole["gain"] == pytest.approx({"value": 0.5, "low": 0.4, "high": 0.7, "n": 400})
    assert whole["seconds"] == 2 and whole["seeds"] == 3


def test_seeds_that_differ_widen_the_interval():
    """Student's: 4.303 of 2 degrees of freedom, a deviation of 0.1 over the root of 3."""
    whole = demos.pooled([summary(v, v - 0.01, v + 0.01) for v in (0.1, 0.2, 0.3)])
    half = 4.3027 * 0.1 / 3**0.5
    assert whole["gain"]["value"] == pytest.approx(0.2)
    assert whole["gain"]["low"] == pytest.approx(0.2 - half, abs=1e-4)
    assert whole["gain"]["high"] == pytest.approx(0.2 + half, abs=1e-4)
    assert demos.gained(whole).endswith("(no effect seen)")


@pytest.mark.parametrize("keep, made, ran", [(False, False, [0, 1, 2]), (True, False, [1, 2]),
                                             (False, True, [])])
@pytest.mark.parametrize("name", ["grpo", "lora", "tot"])
def test_what_lies_in_runs_is_kept_where_it_is_asked_for(tmp_path, monkeypatch, keep, made, ran,
                                                         name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demos, "checkpoints", lambda: {"base": "digest"})
    args, seen = SimpleNamespace(seeds=3, keep=keep, made=made, steps=0, n=0, lines=0), []

    def ran_before(args, change=str):
        demos.place(name, 0).mkdir(parents=True, exist_ok=True)
        (demos.place(name, 0) / "summary.json").write_text(json.dumps(summary(0.5, 0.4, 0.6)))
        (demos.place(name, 0) / "made-from.txt").write_text(change(demos.made_from(name, 0, args)))

    monkeypatch.setattr(demos, "demo",
                        lambda name, seed, args: seen.append(seed) or summary(0.5, 0.4, 0.6))
    ran_before(args)
    found = demos.ended(name, args)
    assert seen == ran and (found is None) == made
    seen.clear()
    ran_before(SimpleNamespace(**{**vars(args), "steps": 3, "n": 3}))
    demos.ended(name, args)                                 # of other settings: never kept
    assert seen == ([] if made else [0, 1, 2])
    seen.clear()
    ran_before(args, lambda text: text.replace("digest", "other"))
    demos.ended(name, args)                                 # of another model
    assert seen == ([] if made else [0, 1, 2])
    seen.clear()
    ran_before(args)
    (demos.place(name, 0) / "summary.json").write_text(json.dumps(summary(0.7, 0.4, 0.8)))
    demos.ended(name, args)                                 # another command ran there since
    assert seen == ([] if made else [0, 1, 2])


def test_a_demo_leaves_what_it_was_made_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demos, "checkpoints", lambda: {"base": "digest"})

    def run(command, text, **kept):
        out = Path(command[command.index("--out") + 1])
        out.mkdir(parents=True)
        (out / "summary.json").write_text(json.dumps(summary(0.5, 0.4, 0.6)))
        return SimpleNamespace(returncode=0, stdout="")

    monkeypatch.setattr(demos.subprocess, "run", run)
    args = SimpleNamespace(seeds=1, keep=True, made=True, steps=0, n=0, lines=1)
    for name in ("grpo", "tot"):
        assert demos.made(name, 0, args) is None
        assert demos.demo(name, 0, args) == demos.made(name, 0, args) == summary(0.5, 0.4, 0.6)


def test_a_row_of_the_page_gets_its_figures_and_no_other_cell_changes():
    page = ("text\n| 1 | a | [f](f) | `make demo-grpo` | sums | 0.1 | 0.2 | +0.1 | 9, 1 |\n"
            "| 2 | b | [f](f) | `x` | y | 0.3 | 0.4 |  | 8, 2 |\n")
    found = demos.filled(page, {"grpo": demos.pooled([summary(0.5, -0.1, 0.6)] * 3), "x": None})
    assert found == page.replace("0.1 | 0.2 | +0.1 | 9, 1", "0.500 | 0.500 | +0.500 [-0.100, "
                                 "+0.600] (no effect seen) | 400, 3")


def test_the_interval_of_a_share_ends_where_shares_do():
    near = [{**summary(0.99, 0.95, 1.0), "before": {**summary(0, 0, 0.1)["gain"], "value": v},
             "after": {**summary(0, 0.9, 1.0)["gain"], "value": 1 - v},
             "gain": {"value": 1 - 2 * v, "low": 0.9, "high": 1.0, "n": 400}}
            for v in (0.0, 0.05, 0.0)]
    whole = demos.pooled(near)
    assert whole["before"]["low"] == 0 and whole["after"]["high"] == whole["gain"]["high"] == 1
    past = demos.pooled([{**each, "after": {**each["after"], "high": 1.2}} for each in near])
    assert past["gain"]["high"] > 1                         # such a reward is no share


def test_the_makefile_knows_the_demos_that_are_no_files():
    line, = re.findall(r"^OTHERS = (.*)$", Path("Makefile").read_text(), flags=re.MULTILINE)
    assert line.split() == [*demos.OTHERS]
    page = Path("METHODS.md").read_text()
    assert all(f"`make demo-{name}`" in page for name in demos.OTHERS)


@pytest.mark.parametrize("name", demos.OTHERS)
def test_a_demo_that_is_no_file_is_a_run_with_flags(name):
    algo, flags = demos.OTHERS[name]
    given = train.settings_of(["--algo", algo, *flags.split(), *demos.cut(algo, 3)])
    assert given.config.steps == 3
