"""A run's models as functions of texts."""

import math

import pytest
import torch
from fakes import Echo, Letters, make_run, tiny

from minipost.errors import MinipostError
from minipost.gpt import RewardModel
from minipost.measure.texts import Texts
from minipost.optim import Learner
from minipost.rollout import logprobs, pack
from minipost.run import ROWS, Run
from minipost.tasks.base import Problem


def test_a_value_is_read_after_the_last_token():
    run = make_run()
    model = RewardModel(tiny(seed=4))
    with torch.no_grad():
        model.score.weight.normal_(generator=torch.Generator().manual_seed(0))
    texts = ["abc", "d", "hgfedcba"]
    with torch.no_grad():
        expected = [float(model(torch.tensor([Letters().prompt(text)]))[0, -1]) for text in texts]
    value = Texts(run, verifier=model).value
    assert value(texts) == pytest.approx(expected)
    long = "abcdefgh" * 9                                   # of which the context holds 64 - 1
    assert value([long]) == pytest.approx(value([long[:63]]))


def texts(task=None, **options):
    task = task or Echo()
    run = Run(Learner(tiny()), Letters(), task, task.reward, max_new_tokens=6)
    return Texts(run, **options)


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
        assert found == pytest.approx(float(logprobs(model, seqs).detach().sum()) / (len(answer)
                                                                                     + 1))
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
    step_end = call_end = "c"


@pytest.mark.parametrize("first, then", [("step", "sample"), ("turn", "sample"), ("turn", "step"),
                                         ("step", "turn")])
def test_an_answer_is_no_longer_than_it_may_be_whoever_goes_on(first, then):
    tools = texts(Steps())
    begun = ["ab" + more for more in getattr(tools, first)(["ab"], 60)[0] if more.endswith("c")]
    whole = [text + more for text in begun for more in getattr(tools, then)([text], 20)[0]]
    assert begun and max(map(len, whole)) == 2 + 6
    assert tools.heard(begun[0], "d") == (len(begun[0]) < 2 + 5)


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


def test_equal_rows_are_scored_once_and_each_has_the_score_of_its_own_text(spy):
    model = RewardModel(tiny(seed=4))
    with torch.no_grad():
        model.score.weight.normal_(generator=torch.Generator().manual_seed(0))
    tools = texts(verifier=model)
    calls = spy(tools.run, "for_all")
    prompts, answers = ["ab", "c", "ab", "ab", "c"], ["c", "c", "a", "c", "c"]
    for score in (tools.confidence, tools.verified, lambda p, a: tools.value(
            [x + y for x, y in zip(p, a)])):
        calls.clear()
        found = score(prompts, answers)
        assert [len(given["seqs"]) for given, _ in calls] == [3]
        alone = [score([p], [a])[0] for p, a in zip(prompts, answers)]
        assert found[0] == found[3] and found[1] == found[4]
        for ours, theirs in zip(found, alone):
            assert ours == pytest.approx(theirs)
    assert tools.value([]) == tools.confidence([], []) == []
