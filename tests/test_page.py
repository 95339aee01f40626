"""The page about runs: what it says, how large it is, and that no text of a model acts in it."""

import json
import re
import shutil
import subprocess
import time
from html.parser import HTMLParser
from pathlib import Path

import hostile
import pytest

from minipost import page, report
from minipost.checks.finding import OK, WARNING
from minipost.errors import MinipostError
from minipost.page import health, plots, view
from minipost.page.reading import RunData

SCORE = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 100}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
                None)


def answer(text, tokens=None, **more):
    tokens = tokens or [text]
    n = len(tokens)
    return {"text": text, "reward": 1.0, "advantage": 0.5, "finished": True, "length": n,
            "tokens": tokens, "logp": [-0.25] * n, "entropy": [0.5] * n, "ratio": [-0.1] * n,
            "kl": [0.01] * n, "value": [0.3] * n, **more}


def node(text, **more):
    return {"text": text, "state": "", "parent": None, "depth": 0, "worth": 0.5, "open": False,
            "finished": False, "expanded": True, **more}


def workings(text):
    """Every kind of working, made of this text."""
    tree = [node(""), node(text, parent=0, finished=True), node("x" + text, parent=0, worth=0.0)]
    visited = {"text": "", "visits": 3, "q": 0.5, "prior": 1.0, "children": [
        {"text": text, "visits": 2, "q": 0.7, "prior": 0.5, "children": []}]}
    return [{"tree": tree}, {"tree": visited},
            {"votes": [{"answer": text, "votes": 3}], "samples": [text]},
            {"rounds": [{"answer": text, "critique": text}, {"answer": text, "critique": None}]},
            {"episodes": [{"question": text, "recalled": [[text, text]], "said": text,
                           "right": text, "good": True, "told": True}]},
            {"chosen": 0, "samples": [{"text": text, "score": 0.5}]}, {"other": text}]


def made(path, text="7+5=12", steps=3, tokens=None, groups=1, name="kl"):
    """A directory as a run leaves it, with this text wherever a text may stand."""
    path.mkdir()
    config = {"algo": "grpo", "options": {"seed": 0, "model": text, "dtype": "float32"},
              "method": {"steps": steps, "lr": 1e-4}, "task": {"name": "arithmetic"}}
    (path / "config.json").write_text(json.dumps(config))
    (path / "metrics.jsonl").write_text("".join(json.dumps(
        {"step": k + 1, "reward": (k % 7) / 7, name: 0.1, "entropy": 1.0, "num_tokens": k,
         "completions/mean_length": 9, "grad_norm": 0.5, "loss": 0.1, "eval/held-out/greedy": 0.5,
         "seconds": k / 10}) + "\n" for k in range(steps)))
    result = {"before": SCORE, "after": SCORE, "gain": {**SCORE, "value": 0.0, "low": -0.1}}
    (path / "summary.json").write_text(json.dumps(
        {"name": "grpo", "task": "arithmetic", "seed": 0, "metric": text, **result, "seconds": 3.0,
         "tokens": 100, "skipped": 0, "all": {text: result}, "asked": {text: SCORE}}))
    rows = [{"kind": "run", "differs": {"model": [text, text]}, "device": text, "workers": 1,
             "when": text, "versions": {text: text}, "steps": steps}]
    rows += [{"kind": "group", "step": k + 1, "prompt": text, "answers": [
        answer(text, tokens), answer(text + "!", tokens, reward=0.0, advantage=-0.5,
                                     finished=False)]} for k in range(groups)]
    rows += [{"kind": "group", "step": 1, "prompt": "", "answers": [answer(text, prompt=text)]},
             {"kind": "judged", "by": text, "answers": [
                 answer(text, prompt=text, steps=[{"text": text, "value": 0.5}])]},
             {"kind": "pairs", "split": text, "metric": text, "better": 1, "worse": 0, "n": 2,
              "rows": [{"prompt": text, "before": text, "after": f"{text}\nmore",
                        "rewards": [0.0, 1.0]}]}]
    rows += [{"kind": "working", "arm": text, "problem": 1, "prompt": text, "answer": text,
              "reward": 1.0, "lines": [text], "working": found} for found in workings(text)]
    (path / "report.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class Markup(HTMLParser):
    """The tags and attributes of a page, and its text."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.words = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_data(self, data):
        self.words.append(data)

    def handle_comment(self, data):
        raise AssertionError(f"a comment: {data}")


# ---- hostile texts

@pytest.fixture(scope="module")
def harmless(tmp_path_factory):
    return Markup(page.render([page.load(made(tmp_path_factory.mktemp("a") / "run"))]))


def test_there_are_fifty_texts():
    assert len(set(hostile.TEXTS)) == 50
    assert not any(hostile.MARKER in text for text in hostile.TEXTS)


@pytest.mark.parametrize("k", range(len(hostile.TEXTS)))
def test_no_hostile_text_is_markup(k, tmp_path, harmless):
    """The page has the tags and attributes that it has with a harmless text."""
    text = hostile.TEXTS[k]
    run = page.load(made(tmp_path / "run", text, name=text))
    found = page.render([run])
    seen = Markup(found)
    assert set(seen.tags) <= set(harmless.tags) and seen.tags.count("script") == 1
    plain = {(tag, name) for tag, name, _ in harmless.attributes}
    assert {(tag, name) for tag, name, _ in seen.attributes} <= plain
    for tag, name, value in seen.attributes:
        assert not name.startswith("on") and name not in ("src", "srcdoc", "action", "style")
        assert name != "href" or re.fullmatch("#[a-z]+", value)
    if "7 * 7" in text:  # no template was evaluated
        assert text in seen.words
    # Nothing that steers a screen or turns text around is there but as it is spelled.
    assert all(c == "\n" or c.isprintable() or c.isspace() and c not in "\r\u2028\u2029\x85"
               for c in found)
    if "\u202e" in text:
        assert "\\u202e" in "".join(seen.words)


def test_a_hostile_token_is_seen_as_it_is(tmp_path):
    text = hostile.TEXTS[0]
    seen = Markup(page.render([page.load(made(tmp_path / "run", text))]))
    assert seen.words.count(text) > 10


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to open the page")
def test_a_browser_runs_none_of_them(tmp_path):
    """All fifty in one page each; the marker would stand in the document that the browser built."""
    together = tmp_path / "all"
    made(together)
    rows = [json.loads(line) for k, text in enumerate(hostile.TEXTS)
            for line in (made(tmp_path / f"r{k}", text) / "report.jsonl").read_text().splitlines()]
    (together / "report.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = page.write(together)

    def dumped(file):
        done = subprocess.run(
            [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000",
             f"--user-data-dir={tmp_path}/profile", "--dump-dom", file.as_uri()],
            capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-500:]
        return done.stdout

    document = dumped(path)
    assert hostile.MARKER not in document
    assert '<div id="tip"' in document  # and our own script did run
    bare = tmp_path / "bare.html"   # the control: in a page that escapes nothing they do run
    bare.write_text(f"<!doctype html><title>x</title>{hostile.TEXTS[0]}{hostile.TEXTS[12]}")
    assert hostile.MARKER in dumped(bare)


# ---- size, and one input gives one page

def test_a_long_run_s_page_is_small(tmp_path, capsys):
    """1,500 steps with answers of as many tokens as are ever kept."""
    steps, tokens = 1500, [f"w{k}" for k in range(700)]
    run = made(tmp_path / "run", "a text", steps, tokens, groups=8)
    start = time.perf_counter()
    path = page.write(run)
    seconds, size = time.perf_counter() - start, path.stat().st_size
    with capsys.disabled():
        print(f"\nthe page of {steps:,} steps: {size / 1e6:.2f} MB in {seconds:.2f} s")
    assert size < 5e6


def test_the_same_run_gives_the_same_page(tmp_path):
    one, two = made(tmp_path / "run"), tmp_path / "elsewhere" / "run"
    shutil.copytree(one, two)
    assert page.write(one).read_bytes() == page.write(two).read_bytes()


def test_more_tokens_than_a_page_shows(tmp_path):
    run = page.load(made(tmp_path / "run", tokens=["x"] * 5000, groups=4))
    found = view.samples(run)["groups"]
    assert sum(len(a["shown"]) for g in found for a in g["answers"]) <= 14_000
    assert found[0]["step"] == 1 and found[-1]["kind"] == "judged"


# ---- what it says

@pytest.mark.parametrize("low, high, tone, part", [
    (0.1, 0.3, "good", "It got better."), (-0.3, -0.1, "bad", "It got worse."),
    (-0.1, 0.2, "flat", "No difference can be told from chance."),
])
def test_the_verdict(low, high, tone, part):
    summary = {"metric": "greedy reward, held-out", "before": SCORE, "after": SCORE,
               "gain": {"value": 0.1, "low": low, "high": high, "n": 9}}
    found = view.verdict(RunData(None, {"algo": "grpo"}, [], summary))
    assert found[0] == tone and found[1].startswith(part)


@pytest.mark.parametrize("low, high", [(0.1, 0.3), (-0.3, -0.1), (-0.1, 0.2)])
def test_too_few_problems_have_no_verdict(low, high):
    """Five gains of 0.25 have an interval of no width, and are no more than chance."""
    gain = {"value": 0.1, "low": low, "high": high, "n": 5}
    run = RunData(None, {"algo": "grpo"}, [], {"before": SCORE, "after": SCORE, "gain": gain})
    assert view.verdict(run)[0] == "flat" and view.verdict(run)[1].startswith("Too few problems")
    found, = [each for each in health.examine(run) if each.check == "result"]
    assert found.status == WARNING and "5 problems are too few" in found.sentence


def test_a_headline_at_its_ceiling_does_not_hide_what_rose():
    ones, gain = {**SCORE, "value": 1.0}, {"value": 0.0, "low": -0.1, "high": 0.1, "n": 9}
    rose = {"before": {**SCORE, "value": 0.4}, "after": ones,
            "gain": {"value": 0.6, "low": 0.319, "high": 0.772, "n": 9}}
    flat = {"before": ones, "after": ones, "gain": gain}
    run = RunData(Path("run"), {"algo": "grpo"}, [], {
        "metric": "greedy reward, held-out", **flat, "all": {
            "greedy, held-out": flat, "sampled, held-out": rose, "sampled, other": rose}})
    said = view.verdict(run)[1]
    assert said.startswith("No difference of the greedy reward can be told from chance.")
    assert said.endswith("Sampled, held-out, rose from 0.400 to 1.000: +0.600, 95% interval "
                         "+0.319 to +0.772.") and "other" not in said
    found, = health.examine(run)
    assert found.status == OK and "sampled, held-out does not" in found.sentence
    labels = [row["label"] for row in view.scores([run, run])["rows"]]
    assert labels == 2 * [f"run: {name}" for name in run.summary["all"]]


def test_a_run_that_has_not_ended(tmp_path):
    run = made(tmp_path / "run", steps=5)
    (run / "summary.json").unlink()
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "rew')
    assert view.verdict(page.load(run)) == ("flat",
                                            "Not finished: 5 of 5 steps have been made.")
    assert "Not finished" in page.write(run).read_text()


def falls(a, b, n=20):
    return [a + (b - a) * k / (n - 1) for k in range(n)]


FLAT = [0.5] * 20


@pytest.mark.parametrize("check, metrics, status, part", [
    ("KL", {"kl": falls(0, 2)}, WARNING, "raise --beta"),
    ("KL", {"kl": falls(0, 0.1)}, OK, "nats per token"),
    ("entropy", {"entropy": falls(1, -0.05)}, WARNING, "nearly alike"),
    ("entropy", {"entropy": falls(1, -0.05), "reward": falls(0.1, 1)}, OK, "nearly solved"),
    ("entropy", {"entropy": falls(1, -0.05), "reward": falls(0.1, 3)}, WARNING, "alike"),
    ("entropy", {"entropy": falls(1, 0.8)}, OK, "went from"),
    ("rewards", {"unscored_ratio": falls(0.1, 1)}, WARNING, "applies to 95% of the answers"),
    ("rewards", {"unscored_ratio": falls(0.1, 0.3)}, OK, "of the answers"),
    ("tied groups", {"frac_reward_zero_std": falls(0.2, 1)}, WARNING, "dapo"),
    ("tied groups", {"frac_reward_zero_std": falls(0.2, 1), "reward": falls(0, 1)}, OK, "solved"),
    ("cut-off answers", {"completions/clipped_ratio": falls(0, 0.6)}, WARNING, "--max-new-tokens"),
    ("sampler and training", {"sampling_logp_difference/max": falls(0, 0.1)}, WARNING, "float32"),
    ("sampler and training", {"sampling_logp_difference/max": falls(0, 1e-5)}, OK, "at most"),
    ("gold reward", {"gold": falls(0, 1) + falls(1, 0), "reward": falls(0, 1, 40)}, WARNING,
     "stop near step"),
    ("gold reward", {"gold": falls(0, 1), "reward": falls(0, 1)}, OK, "not fallen"),
    ("gold reward", {"gold": [0.5 + 0.1 * (-1) ** k for k in range(20)], "reward": falls(0, 1)},
     OK, "not fallen"),
    ("clipping", {"clip_ratio": falls(0, 0.5)}, WARNING, "--epochs"),
    ("length", {"completions/mean_length": falls(10, 40), "reward": falls(0, 1)}, WARNING,
     "length that is rewarded"),
    ("length", {"completions/mean_length": falls(10, 40), "reward": FLAT}, OK, "tokens"),
    ("critic", {"explained_variance": falls(0, -0.5)}, WARNING, "--critic-lr"),
    ("numbers", {"loss": [0.1, None, 0.1]}, "fault", "loss was not finite in step 2"),
])
def test_what_is_said_of_a_run_s_health(check, metrics, status, part):
    n = max(map(len, metrics.values()))
    lines = [{"step": k + 1, **{m: xs[k] for m, xs in metrics.items() if k < len(xs)}}
             for k in range(n)]
    run = RunData(None, {"algo": "grpo", "options": {"dtype": "float32"}}, lines)
    found, = (f for f in health.examine(run) if f.check == check)
    assert found.status == status and part in found.sentence


@pytest.mark.parametrize("low, high, status", [
    (0.1, 0.3, OK), (-0.1, 0.3, WARNING), (-0.3, -0.1, WARNING)])
def test_whether_the_gain_is_more_than_chance(low, high, status):
    gain = {"value": 0.0, "low": low, "high": high, "n": 9}
    found, = health.examine(RunData(None, {}, [], {"before": SCORE, "after": SCORE, "gain": gain}))
    assert found.check == "result" and found.status == status


def test_reward_up_while_held_out_results_fall():
    lines = [{"step": k + 1, "reward": k / 9} for k in range(10)]
    gain = {"value": -0.2, "low": -0.3, "high": -0.1, "n": 9}
    run = RunData(None, {}, lines, {"before": SCORE, "after": SCORE, "gain": gain, "skipped": 2})
    found = {f.check: f.sentence for f in health.examine(run)}
    assert "exploit the reward" in found["result"] and "2 updates" in found["updates"]


# ---- charts

def test_a_long_curve_keeps_its_extremes():
    lines = [{"step": k, "x": 1.0 if k == 777 else k / 1e6} for k in range(1, 1501)]
    points = plots.merged([lines], "x")
    assert len(points) == plots.POINTS and points[-1][0] == 1500
    assert max(p[3] for p in points) == 1.0


def test_seeds_of_a_method_are_a_band(tmp_path):
    runs = []
    for seed in (0, 1):
        run = made(tmp_path / f"s{seed}")
        config = json.loads((run / "config.json").read_text())
        config["options"]["seed"] = seed
        (run / "config.json").write_text(json.dumps(config))
        (run / "metrics.jsonl").write_text(json.dumps({"step": 1, "reward": seed}) + "\n")
        runs.append(page.load(run))
    other = page.load(made(tmp_path / "other"))
    other.config = {**other.config, "method": {"steps": 3, "lr": 5e-4}}
    groups = view.seeds([*runs, other])
    assert [(label, len(mine)) for label, mine in groups] == [
        ("grpo lr 0.0001 (2 seeds)", 2), ("grpo lr 0.0005", 1)]
    assert plots.merged([r.lines for r in runs], "reward") == [(1, 0.5, 0, 1)]
    again = page.load(made(tmp_path / "again"))  # of seed 0, with settings that move no number
    again.config["options"].update(save_every=3, workers=4, device="cpu")
    for run, label in (([*runs, again], "3 runs, 2 seeds"), ([runs[0], again], "2 runs, 1 seed")):
        assert [name for name, _ in view.seeds(run)] == [f"grpo ({label})"]
    assert "3 runs compared" in page.render([*runs, other])


def test_labels_do_not_lie_over_each_other():
    lines = [plots.Line(f"m{k}", k, [(1, 1.0, 1.0, 1.0), (2, 1.0 + k / 1e3, 1.0, 2.0)])
             for k in range(8)]
    places = sorted(line["label_y"] for line in plots.chart(lines)["lines"])
    assert all(b - a > 11.8 for a, b in zip(places, places[1:]))
    assert places[-1] <= plots.HEIGHT - plots.BOTTOM


@pytest.mark.parametrize("low, high", [(0, 1), (0.31, 0.35), (-3, 12), (1, 1500), (2e-6, 9e-6)])
def test_ticks_are_round_and_few(low, high):
    found = plots.ticks(low, high)
    assert 2 <= len(found) <= 6 and all(low - 1e-9 <= t <= high + 1e-9 for t in found)


def test_levels_of_a_colour():
    assert [view.level(x, 1.0) for x in (None, 0, 0.01, 0.3, 1, 9, -9)] == [0, 0, 0, 1, 4, 4, -4]


def test_the_path_to_the_answer_comes_first(tmp_path):
    tree = [node(""), node("a\n", parent=0, worth=0.9), node("b\n", parent=0, worth=0.1),
            node("b\nc", parent=2, worth=0.2, finished=True),
            *(node(f"a\n{k}", parent=1, worth=k / 9, finished=True) for k in range(9))]
    root = view.grown(tree, "b\nc")
    assert [n["step"] for n in root["children"]] == ["b", "a"]
    assert [n["chosen"] for n in root["children"]] == [True, False]
    assert len(root["children"][1]["rest"]) == 5
    assert root["children"][1]["first"][0]["step"] == "8"


# ---- what is no run

@pytest.mark.parametrize("spoil, part", [
    (lambda run: shutil.rmtree(run), "there is no such folder"),
    (lambda run: [(run / name).unlink() for name in ("config.json", "summary.json")],
     "is no run"),
    (lambda run: (run / "config.json").write_text("{"), "not readable as JSON"),
    (lambda run: (run / "summary.json").write_text('{"before": {"n": 3}, "after": {"n": 3}}'),
     "a file there is not as minipost writes it"),
    (lambda run: (run / "report.jsonl").write_text('{"kind": "pairs"}\n'),
     "a file there is not as minipost writes it"),
])
def test_what_is_no_run_gets_one_sentence(tmp_path, spoil, part):
    run = made(tmp_path / "run")
    spoil(run)
    with pytest.raises(MinipostError, match=part):
        page.render([page.load(run)])


# ---- a log that is not what a run wrote

@pytest.mark.parametrize("harm, said", [
    ("gone", "is not there, and holds a line for each step of a run"),
    ("empty", "is empty, although the run is finished"),
    ("junk", "2 of 2 lines are not the metrics of a step"),
    ("one", "1 of 3 lines are not the metrics of a step"),
])
def test_a_broken_log_is_named(tmp_path, capsys, harm, said):
    """The page is written, and says it too."""
    run = made(tmp_path / "run")
    log, text = run / "metrics.jsonl", (run / "metrics.jsonl").read_text()
    log.unlink() if harm == "gone" else log.write_text({
        "empty": "", "junk": "x\n[]\n", "one": "{" + text}[harm])
    assert report.main([str(run)]) == 0
    told = capsys.readouterr()
    assert told.err.startswith(f"warning: {log}: {said}, so curves and checks lack those steps")
    assert said in (run / "report.html").read_text()
    assert report.main([str(run), "--json"]) == 0
    assert said in json.loads(capsys.readouterr().out)[0]["health"][0]["finding"]


@pytest.mark.parametrize("left", ["", '{"step": 1, "loss": 0.1}\n{"step": 2, "lo'])
def test_the_log_of_a_run_that_goes_on_is_not_complained_of(tmp_path, left):
    run = made(tmp_path / "run")
    (run / "metrics.jsonl").write_text(left)
    (run / "summary.json").unlink()
    assert page.load(run).complaint == ""


def test_a_test_time_run_has_no_log(tmp_path):
    run = made(tmp_path / "run")
    for name in ("config.json", "metrics.jsonl"):
        (run / name).unlink()
    assert page.load(run).complaint == ""
