"""What asking an untrained model gets: votes and choices among samples, beside a run's result."""

import json

import pytest

from minipost import train
from minipost.measure.asked import asked
from tests.fakes import Echo, make_run


class Scripted(Echo):
    """Right is the prompt's letter alone."""

    def parse(self, text):
        return text or None

    def reward(self, prompts, completions, letter, **columns):
        return [float(text == c) for text, c in zip(completions, letter)]


def test_votes_choices_and_an_exact_checker_on_the_same_samples():
    """Against the definitions, from samples that are drawn once more."""
    run = make_run(Scripted())
    problems, n = run.task.heldout(4), 40
    found = asked(run, problems, n)
    assert list(found) == ["vote of 40", "surest of 40", "any of 40 right"]
    with run.aside():
        rollout = run.sample(problems, n, temperature=1.0, purpose="asked")
    texts = run.texts(rollout)
    for k, problem in enumerate(problems):
        mine = texts[k * n : (k + 1) * n]
        sure = [float(rollout.logp[row].sum()) / int(rollout.mask[row].sum())
                for row in range(k * n, (k + 1) * n)]
        said = [text for text in mine if text]
        most = max(map(said.count, said))
        voted = found["vote of 40"].texts[k]
        assert said.count(voted) == most == max(map(said.count, dict.fromkeys(said)))
        assert found["surest of 40"].texts[k] == mine[sure.index(max(sure))]
        right = problem.columns["letter"] in mine
        assert found["any of 40 right"].rewards[k] == right
        for result in found.values():
            assert result.rewards[k] == (result.texts[k] == problem.columns["letter"])
    assert run.tokens == 0


def test_without_a_stated_answer_the_first_sample_stands():
    class Silent(Scripted):
        def parse(self, text):
            return None

    run = make_run(Silent())
    found = asked(run, run.task.heldout(2), 3)
    with run.aside():
        texts = run.texts(run.sample(run.task.heldout(2), 3, temperature=1.0, purpose="asked"))
    assert list(found["vote of 3"].texts) == [texts[0], texts[3]]


@pytest.mark.parametrize("flags, ask", [
    ([], 33), (["--task", "arithmetic"], 0), (["--ask", "5"], 5), (["--task=countdown"], 0)])
def test_only_a_demo_asks_by_itself(flags, ask):
    settings = train.settings_of(["--algo", "grpo", *flags])
    assert settings.options.ask == ask
    assert settings.options.model == (
        "checkpoints/thinker" if not any("--task" in f for f in flags) else "checkpoints/base")


def test_the_summary_and_the_screen_show_them(command, tmp_path, tiny, capsys):
    flags = ("--steps", 1, "--prompts", 2, "--group-size", 2, "--task", "arithmetic", "--ask", 3)
    assert train.main(command("grpo", *flags)) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert set(summary["asked"]) == {f"{way}, held-out" for way in (
        "vote of 3", "surest of 3", "any of 3 right")}
    assert set(summary["all"]) == {"greedy, held-out", "sampled, held-out"}
    assert "vote of 3, held-out" in capsys.readouterr().out
