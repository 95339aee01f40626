"""A model as functions of texts, and the command lines of the test-time methods."""

import json
import math

import pytest
import torch
from fakes import Echo, Letters, tiny
from hypothesis import settings

from minipost import checkpoint, evaluate, solve, test_time
from minipost.errors import MinipostError
from minipost.gpt import RewardModel
from minipost.measure.texts import Texts
from minipost.optim import Learner
from minipost.rollout import logprobs, pack
from minipost.run import ROWS, Run
from minipost.tasks.base import Problem

settings.register_profile("minipost", deadline=None, max_examples=25)
settings.load_profile("minipost")


def texts(task=None, **options):
    task = task or Echo()
    run = Run(Learner(tiny()), Letters(), task, task.reward, max_new_tokens=6)
    return Texts(run, **options)


# ---- functions of texts

def test_every_call_draws_afresh_and_what_was_sampled_is_counted():
    one, two = texts(), texts()
    first, again = one.sample(["ab", "c"], 3), one.sample(["ab", "c"], 3)
    assert [len(row) for row in first] == [3, 3] and first != again
    assert first == two.sample(["ab", "c"], 3)
    assert one.sample([], 3) == []
    tools = texts()
    tools.greedy(["ab", "c"])
    asked = [Problem("ab"), Problem("c")]
    with tools.run.aside():
        rollout = tools.run.sample(asked, 1, temperature=0.0)
    assert tools.tokens == int(rollout.mask.sum()) > 0


def test_greedy_is_the_same_at_every_asking_and_temperature_is_heeded():
    tools = texts()
    assert tools.greedy(["ab", "c"]) == tools.greedy(["ab", "c"]) == texts().greedy(["ab", "c"])
    assert texts(temperature=0.0).sample(["ab"], 2)[0] == 2 * tools.greedy(["ab"])
    hot, cool = texts(temperature=2.0), texts(temperature=0.05)
    assert len({*hot.sample(["ab"], 30)[0]}) > 2 * len({*cool.sample(["ab"], 30)[0]})


def test_many_samples_are_drawn_in_pieces_and_come_out_alike(monkeypatch):
    whole = texts().sample(["ab", "c", "ab", "d"], 5)
    monkeypatch.setattr("minipost.run.ROWS", 7)
    assert texts().sample(["ab", "c", "ab", "d"], 5) == whole
    assert whole[0] != whole[2] and ROWS > 100


def test_a_verdict_is_a_share_of_votes_and_a_worth_their_product():
    class Judged(Echo):
        def questions(self, problem, text):
            return [(q, "ok") for q in (problem.prompt, text) if q]

    tools, asked = texts(Judged()), []

    def judge(questions, votes):
        asked.append((questions, votes))
        words = {"a": ["ok", "ok", "no", "okay"], "b": ["ok"] * 4, "c": ["", "no", "", "ok"]}
        return [words[q] for q in questions]

    tools._judge = judge
    states = [(Problem("a"), "b"), (Problem("a"), "c"), (Problem("b"), ""), (Problem("a"), "b")]
    known = {}
    assert tools.worth(states[:2], 4, known) == [0.5, 0.125]
    assert tools.worth(states, 4, known) == [0.5, 0.125, 1.0, 0.5]
    assert [a for a in asked if a[0]] == [(["a", "b", "c"], 4)]     # each question once in a search
    tools.worth(states[:1], 4, {})
    assert asked[-1] == (["a", "b"], 4)
    assert tools.shares([("a", "ok"), ("a", "no"), ("a", "no")], 4, {}) == [0.5, 0.25, 0.25]
    assert asked[-1] == (["a"], 4)                              # once, whatever reply is looked for
    with pytest.raises(MinipostError, match="echo has no question for a judge"):
        texts().worth(states, 1, {})


def test_confidence_is_the_mean_log_prob_of_an_answer_with_its_eos():
    tools = texts()
    model, words = tools.run.policy.module, Letters()
    prompts, answers = ["ab", "c", "ab"], ["cd", "", "abcdef"]
    for prompt, answer, found in zip(prompts, answers, tools.confidence(prompts, answers)):
        seqs = pack([words.prompt(prompt)], [words.response(answer)], words.pad)
        assert found == pytest.approx(float(logprobs(model, seqs).detach().sum()) / (len(answer) + 1))
    assert tools.confidence([], []) == []


def test_a_verifier_is_read_where_steps_end_and_at_the_end():
    model = RewardModel(tiny())
    with torch.no_grad():
        model.score.weight.normal_(generator=torch.Generator().manual_seed(0))
    tools = texts(Steps(), verifier=model)
    found = tools.verified(["ab", "d"], ["acbca", "c"])
    words = Letters()
    for prompt, answer, chances, places in (("ab", "acbca", found[0], [2, 4, 6]),
                                            ("d", "c", found[1], [1, 2])):
        ids = torch.tensor([words.prompt(prompt) + words.response(answer)])
        score = model(ids).detach()[0, len(words.prompt(prompt)) - 1:]
        assert chances == pytest.approx([float(score[k].sigmoid()) for k in places])
    assert tools.verified([], []) == []


class Steps(Echo):
    step_end = "c"


def test_what_the_context_does_not_hold_is_cut_and_not_an_error():
    model = RewardModel(tiny())
    room = tiny().config.max_position_embeddings - len(Letters().prompt("ab"))
    found, = texts(Steps(), verifier=model).verified(["ab"], ["c" * 2 * room])
    assert len(found) == room                                   # the last step is the whole, once
    tools = texts(verifier=RewardModel(tiny()))
    long = "abcdefgh" * 20
    assert math.isfinite(tools.confidence([long, "a"], ["a", long])[1])
    assert len(tools.verified([long, "a"], ["a", long])) == 2
    assert tools.sample([long], 2) == [["", ""]]
    assert math.isfinite(tools.value([long])[0])


# ---- command lines

@pytest.fixture(scope="module")
def verifier(tmp_path_factory, tiny):
    """The directory of an untrained reward model on the tiny model."""
    model, _ = checkpoint.load(tiny)
    directory = tmp_path_factory.mktemp("verifier")
    checkpoint.save(directory / "model", RewardModel(model), tiny)
    return directory / "model"


QUICK = {"self-consistency": ["--group-size", "2", "--curve", "1"], "best-of-n": ["--group-size", "2"],
         "tot": ["--copies", "2", "--expansions", "3"], "mcts": ["--simulations", "2", "--copies", "2"],
         "memory": ["--length", "4", "--things", "2", "--lives", "2", "--trials", "2"],
         "graph-of-thoughts": ["--copies", "1"], "self-feedback": ["--attempts", "2"],
         "beam": ["--width", "1", "--copies", "2", "--depth", "3"], "cot": ["--shots", "1"]}


def arguments(method, tiny, verifier, *more):
    needs = ["--verifier", str(verifier)] if method in ("best-of-n", "beam") else []
    return ["--method", method, "--model", str(tiny), "--max-new-tokens", "6", *needs, *QUICK[method], *more]


def test_every_method_is_listed_here():
    assert set(QUICK) == set(test_time.names())


@pytest.mark.parametrize("method", test_time.names())
def test_evaluate_writes_a_summary_and_an_untrained_model_breaks_nothing(method, tiny, verifier, tmp_path,
                                                                        capsys):
    command = arguments(method, tiny, verifier, "--n", "2", "--workers", "1")
    assert evaluate.main([*command, "--out", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert {"name", "task", "seed", "metric", "before", "after", "seconds", "tokens", "all"} <= set(summary)
    assert summary["tokens"] > 0 and summary["name"] == method and summary["before"]["n"] == summary["after"]["n"] > 0
    assert all(0 <= row["score"]["low"] <= row["score"]["high"] <= 1 and row["tokens per problem"] >= 0
               for row in summary["all"].values())
    assert "held-out problem 1" in shown and "tokens" in shown
    assert evaluate.main([*command, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["all"] == summary["all"] and set(data["arms"]) == set(summary["all"])


@pytest.mark.parametrize("method", test_time.names())
def test_solve_shows_the_working_as_text_and_as_data(method, tiny, verifier, capsys):
    command = arguments(method, tiny, verifier, "--index", "1")
    assert solve.main(command) == 0
    assert "tokens sampled" in capsys.readouterr().out
    assert solve.main([*command, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert {"method", "problem", "answer", "right", "tokens", "working", "settings"} <= set(data)
    assert solve.main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == data          # the same seed, the same answer


def test_a_problem_of_ones_own(tiny, verifier, capsys):
    for method, problem, shown in (("tot", "4 9 10 13", "Reach 24 from 4 9 10 13:"),
                                   ("self-feedback", "7+5-3", "7+5-3=? Think:")):
        assert solve.main(arguments(method, tiny, verifier, "--problem", problem)) == 0
        assert capsys.readouterr().out.startswith(shown)


@pytest.mark.parametrize("said", ["right", "other"])
def test_a_life_is_right_where_its_own_last_question_was_answered(said, tiny, verifier, capsys, monkeypatch):
    def live(streams, answer, how, size, rng):
        question, code, told = streams[0][-1]
        return [[{"question": question, "recalled": [], "said": code if said == "right" else "x",
                  "right": code, "told": told}]]

    monkeypatch.setattr("minipost.test_time.memory.live", live)
    assert solve.main(arguments("memory", tiny, verifier, "--json")) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["right"] == (said == "right")
    assert data["problem"] == data["working"]["episodes"][-1]["question"] + "?"


@pytest.mark.parametrize("command, sentence", [
    (["--method", "tot", "--problem", "4 9"], "expected 4 whole numbers"),
    (["--method", "memory", "--problem", "x"], "takes no --problem"),
    (["--method", "tot", "--index", "100"], "expected 0 to 99"),
    (["--method", "tot", "--max-new-tokens", "500"], "the context of"),
    (["--method", "tot", "--task", "recall"], "no question for a judge"),
    (["--method", "best-of-n", "--verifier", "nowhere"], "nowhere"),
])
def test_bad_input_is_one_sentence(command, sentence, tiny, capsys):
    assert solve.main([*command, "--model", str(tiny), *([] if "--max-new-tokens" in command else ["--max-new-tokens", "6"])]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and sentence in error and error.count("\n") == 1


@pytest.mark.parametrize("flag, value", [("--width", "0"), ("--max-new-tokens", "0"), ("--temperature", "-1"),
                                         ("--temperature", "nan"), ("--votes", "0"), ("--n", "0"),
                                         ("--workers", "-1"), ("--show", "-1")])
def test_senseless_settings_are_refused(flag, value, capsys):
    with pytest.raises(SystemExit):
        evaluate.main(["--method", "tot", flag, value])
    assert f"{flag[2:].replace('-', '_')} is {value}" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        solve.main(["--method", "tot", "--index", "-1"])
    assert "index is -1" in capsys.readouterr().err


def test_help_names_every_method_and_every_knob(capsys):
    assert solve.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in test_time.names())
    for method in test_time.names():
        with pytest.raises(SystemExit):
            solve.main(["--method", method, "--help"])
        shown = capsys.readouterr().out
        assert "--temperature" in shown and "--index" in shown
