"""SFT: the cost of an answer is minus the log of its chance."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from fakes import (
    ANSWERS,
    Echo,
    Letters,
    answer_file,
    drive,
    logp_of,
    make_run,
    randn,
    sequences,
    small,
    tiny,
)
from hypothesis import given
from hypothesis import strategies as st

from minipost.errors import MinipostError
from minipost.methods import sft
from minipost.optim import Learner
from minipost.rollout import logprobs
from minipost.run import Run


def test_sft_equals_cross_entropy_and_log_v_when_uniform():
    model, seqs = tiny(), sequences(5)
    count = int(seqs.mask.sum())
    value = sft.loss(logprobs(model, seqs), seqs.mask, count=count)[0]
    expected = torch.nn.functional.cross_entropy(
        model(seqs.inputs)[seqs.mask], seqs.targets[seqs.mask])
    assert torch.allclose(value, expected)
    uniform = torch.full(seqs.mask.shape, -torch.log(torch.tensor(11.0)))
    assert sft.loss(uniform, seqs.mask, count=count)[0] == pytest.approx(2.3978953)


def test_an_answer_that_does_not_fit_the_context_is_refused():
    task = Echo()
    run = Run(Learner(tiny(context=8)), Letters(), task, task.reward)
    task.demonstrate = lambda problem, rng: "a" * 6
    with pytest.raises(MinipostError, match=r"a prompt of 2 tokens \('.'\) and a response of 7 "
                       r"\('aaaaaa'\) do not fit the model's context of 8$"):
        next(sft.train(run, sft.Config(batch_size=2)))
    task.demonstrate = lambda problem, rng: "a" * 5
    next(sft.train(run, sft.Config(batch_size=2)))
    assert run.tokens == 2 * 6


seeds = st.integers(0, 10_000)


@given(seeds)
def test_fine_tuning_costs_minus_the_log_of_an_answers_chance(seed):
    """Each chance a product of two softmaxes by hand; over all nine answers they add up to one."""
    table, mask, total = randn(seed, 4, 3), torch.ones(1, 2, dtype=torch.bool), 0.0
    weight = [[math.exp(x) for x in row] for row in table.tolist()]
    for k, (first, second) in enumerate(ANSWERS):
        chance = (weight[0][first] / sum(weight[0])
                  * weight[1 + first][second] / sum(weight[1 + first]))
        cost = float(sft.loss(logp_of(table)[k : k + 1], mask, count=1)[0])
        assert cost == pytest.approx(-math.log(chance))
        total += math.exp(-cost)
    assert total == pytest.approx(1)


# ---- replay

def replaying(folder, share=0.3, **options):
    """A Config that replays the rows of a file: two letters, answered the other way round."""
    return sft.Config(replay=answer_file(folder).data, replay_share=share,
                      **{"steps": 9, "batch_size": 5, **options})


def written(run, seen):
    """Let a run note what it encodes: [(prompt, answer)] of each call."""
    encode = run.encode
    run.encode = lambda problems, answers: seen.append(
        [(p.prompt, text) for p, text in zip(problems, answers)]) or encode(problems, answers)
    return run


def test_without_a_share_it_is_fine_tuning_as_it_was(tmp_path):
    """Bit for bit; with a share it is not."""
    found = []
    for cfg in (sft.Config(steps=9, batch_size=5), replaying(tmp_path, 0.0), replaying(tmp_path)):
        run = make_run()
        found.append((drive(run, sft.train(run, cfg), 3), run.policy.flat, run.tokens))
    (plain, weights, tokens), (none, same, as_many), (_, others, more) = found
    assert plain == none and torch.equal(weights, same) and tokens == as_many
    assert not torch.equal(weights, others) and more > tokens


@pytest.mark.parametrize("share", [0.05, 0.1, 0.3, 0.5, 0.8])
def test_replayed_answers_have_their_share_and_cost_the_others_nothing(tmp_path, share):
    cfg, seen, alone = replaying(tmp_path, share), [], []
    run, plain = written(make_run(), seen), written(make_run(), alone)
    drive(run, sft.train(run, cfg), 9)
    drive(plain, sft.train(plain, sft.Config(steps=9, batch_size=5)), 9)
    own, old = ([rows for rows in seen if (len(rows[0][0]) == 1) == one] for one in (True, False))
    assert own == alone and all(len(rows) == 5 for rows in own)
    assert all(answer == prompt[::-1] for rows in old for prompt, answer in rows)
    replayed = sum(map(len, old))
    assert abs(replayed - share * (replayed + 45)) < 1
    assert max(map(len, old)) - min(map(len, old)) <= 1 or share < 0.1


def test_a_step_with_replay_descends_the_mean_over_all_its_tokens(tmp_path):
    cfg, seen = replaying(tmp_path, max_grad_norm=1e9, weight_decay=0.0), []
    run, model = written(make_run(), seen), tiny()
    words = Letters()
    drive(run, sft.train(run, cfg), 1)
    total = count = 0
    for prompt, answer in [row for rows in seen for row in rows]:
        ids, said = words.prompt(prompt), words.response(answer)
        logp = model(torch.tensor([ids + said]))[0].log_softmax(-1)
        total = total - sum(logp[len(ids) - 1 + k, i] for k, i in enumerate(said))
        count += len(said)
    (total / count).backward()
    assert [len(rows) for rows in seen] == [5, 2] and count == run.tokens
    slope = torch.cat([p.grad.flatten() for p in sorted(
        model.parameters(), key=lambda p: p.dim() < 2)])
    assert torch.allclose(run.policy.m, 0.1 * slope, rtol=0, atol=1e-12)


def test_what_a_step_replays_follows_from_seed_and_step(tmp_path):
    """So a run that goes on at step 4 replays what one without a stop does."""
    cfg, seen = replaying(tmp_path), {}
    for seed, since in ((0, 0), (0, 4), (1, 0)):
        run = written(make_run(seed=seed), seen.setdefault((seed, since), []))
        run.step = since
        drive(run, sft.train(run, cfg), 9 - since)
    assert seen[0, 0][8:] == seen[0, 4] and seen[0, 0] != seen[1, 0]
    replayed = seen[0, 0][1::2]
    assert len({str(rows) for rows in replayed}) > 6    # drawn anew in each step


def test_replay_of_the_old_keeps_it_and_replay_of_the_new_does_not(tmp_path):
    """Echoing letters is new; the old, to turn pairs of letters round, is forgotten meanwhile."""
    old = answer_file(tmp_path)
    new = tmp_path / "new.jsonl"
    new.write_text("".join(json.dumps({"prompt": c, "completion": 2 * c}) + "\n" for c in "abcd"))
    common = dict(batch_size=8, lr=3e-3, schedule="constant", warmup_steps=0)
    start = make_run(old, small())
    drive(start, sft.train(start, sft.Config(steps=120, **common)), 120)
    lost = {}
    for name, replay in (("none", ""), ("old", old.data), ("new", str(new))):
        run = make_run(Echo(), small())
        run.policy.assign(start.policy.flat)
        again = dict(replay=replay, replay_share=0.2) if replay else {}
        cfg = sft.Config(steps=60, **again, **common)
        drive(run, sft.train(run, cfg), 60)
        costs = {}
        for task in (old, Echo()):
            rows = old.training() if task is old else task.heldout(4)
            seqs = run.encode(rows, [task.demonstrate(p, None) for p in rows])
            costs[task.name] = -float(run.logprobs(run.policy.module, seqs).sum(1).mean())
        assert costs["echo"] < 0.2, costs
        lost[name] = costs["file"]
    assert lost["old"] < 0.3 < 1 < min(lost["none"], lost["new"]), lost


def test_what_cannot_be_replayed_is_said_in_a_sentence(tmp_path):
    run = make_run()
    with pytest.raises(MinipostError, match="--replay nothing.jsonl: there is no such file, nor "
                                            "such a task; tasks are arithmetic,"):
        sft.check(run, sft.Config(replay="nothing.jsonl"))
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": a + b}) + "\n"
                            for a in "abcdefgh" for b in "abcdefgh"))
    with pytest.raises(MinipostError, match="the row has no completion to learn from"):
        sft.check(run, sft.Config(replay=str(rows)))
    rows.write_text("".join(json.dumps({"messages": [
        {"role": "user", "content": a}, {"role": "assistant", "content": a}]}) + "\n"
        for a in map(str, range(20))))
    with pytest.raises(MinipostError, match="its prompts are messages, and those of echo are "
                                            "strings; add --chat"):
        sft.check(run, sft.Config(replay=str(rows)))
    with pytest.raises(MinipostError, match=r"--replay .*: .*rows.jsonl, line 2: "):
        rows.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": 3}\n')
        sft.check(run, sft.Config(replay=str(rows)))
    sft.check(run, SimpleNamespace(steps=3))   # another method, which replays nothing
    with pytest.raises(MinipostError, match="replay_share is 1.0; expected less than 1"):
        sft.Config(replay_share=1.0)
