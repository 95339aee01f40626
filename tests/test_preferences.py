"""Preference data: labels, pairs, comparisons, and their log-probs under the start."""

import json
import random
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from fakes import BOS, EOS, Echo, Letters, make_run, pair_file, pair_task, rollout_of, tiny
from hypothesis import given
from hypothesis import strategies as st

from minipost.datasets import preferences
from minipost.datasets.rows import File
from minipost.errors import MinipostError
from minipost.measure import scorers
from minipost.methods import dpo, plackett_luce
from minipost.ops import row_means
from minipost.rollout import logprobs

make = partial(make_run, max_new_tokens=5)


def test_a_files_reference_is_computed_once_and_is_that_of_each_pair(tmp_path):
    run, cfg = make(pair_task(tmp_path)), dpo.Config(pairs=5)
    data = preferences.StepPairs(run, cfg, None)
    calls = []
    data.ask = lambda pairs: calls.append(pairs)
    for run.step in range(4):
        pairs, logps = data.draw()
        assert len(pairs) == 5
        for side, found in zip((pairs.chosen, pairs.rejected), logps):
            with torch.no_grad():
                assert torch.allclose(found, logprobs(run.policy.module, side), atol=1e-6)
    assert not calls


@pytest.mark.parametrize("steps, likeliest, ahead", [
    (4, 1.0, 0), (5, 1.0, 12), (1, 0.5, 12)])
def test_less_than_two_passes_ask_the_reference_for_the_pairs_of_each_step(tmp_path, steps,
                                                                           likeliest, ahead):
    """So the first of 4 steps of 5 from 12 pairs need not wait for all of them."""
    run, cfg = make(pair_task(tmp_path)), dpo.Config(pairs=5, steps=steps, likeliest=likeliest)
    asked, ask = [], preferences.StepPairs.ask
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preferences.StepPairs, "ask", lambda self, pairs: asked.append(len(pairs))
                      or ask(self, pairs))
        data = preferences.StepPairs(run, cfg, None)
        assert sum(asked) == ahead
        for run.step in range(steps):
            pairs, logps = data.draw()
            for side, found in zip((pairs.chosen, pairs.rejected), logps):
                with torch.no_grad():
                    assert torch.allclose(found, logprobs(run.policy.module, side), atol=1e-6)
        assert asked == ([12] if ahead else [5] * steps)


@pytest.mark.parametrize("source", ["file", "samples"])
def test_the_filter_drops_what_the_reference_finds_unlikely(tmp_path, source):
    run = make(pair_task(tmp_path) if source == "file" else None)
    everything, _ = preferences.StepPairs(run, dpo.Config(pairs=12), preferences.by_reward).draw()
    with torch.no_grad():
        logp = logprobs(run.policy.module, everything.chosen)
    mean = row_means(logp, everything.chosen.mask)
    order = mean.argsort(descending=True)[: (len(mean) + 1) // 2]
    kept, logps = preferences.StepPairs(run, dpo.Config(pairs=12, likeliest=0.5),
                                        preferences.by_reward).draw()
    likely = {tuple(everything.chosen.tokens[i].tolist()) for i in order}

    def bare(rows):
        return {tuple(t for t in row if t) for row in rows}

    assert bare(kept.chosen.tokens.tolist()) == bare(likely) and len(logps[0]) == len(kept)


def asked(values, noise):
    """What by_reward is given: a run that grades answers so, and problems."""
    return SimpleNamespace(task=SimpleNamespace(noise=noise), rng=lambda purpose: random.Random(4),
                           grade=lambda problems, rollout: torch.tensor(values)), values[::2], None


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_noise_turns_the_stated_share_of_labels(noise):
    label = preferences.by_reward(*asked([2.0, 1.0] * 4000, noise))
    assert set(label.tolist()) <= {1.0, -1.0}
    assert float((label < 0).double().mean()) == pytest.approx(noise, abs=0.03 * (noise > 0))
    assert not preferences.by_reward(*asked([1.0, 1.0] * 9, noise)).any()


@given(st.lists(st.tuples(st.sampled_from([-0.5, 0.0, 2.0]), st.booleans()), min_size=1,
                max_size=6))
def test_ranked_pairs(cases):
    """The better first for either sign; no ties, and no two answers of the same words."""
    prompts = [[BOS, 3 + i] for i in range(len(cases)) for _ in "ab"]
    responses = [r for _, same in cases for r in ([7, 8], [7, 8] if same else [9])]
    rollout = rollout_of(prompts, responses)
    pairs = preferences.ranked_pairs(rollout, torch.tensor([label for label, _ in cases]))
    expected = [(i, label) for i, (label, same) in enumerate(cases) if label and not same]
    assert len(pairs) == len(expected)
    rows = [[2 * i, 2 * i + 1][:: 1 if label > 0 else -1] for i, label in expected]
    for side, wanted in ((pairs.chosen, 0), (pairs.rejected, 1)):
        answers = [t[m].tolist() for t, m in zip(side.targets, side.mask)]
        assert answers == [[*responses[row[wanted]], EOS] for row in rows]
        assert side.tokens[:, 1].tolist() == [3 + i for i, _ in expected]


def test_pairs_of_a_file(tmp_path):
    """Each row's two answers, in its order; a ranking of them is a ranking of two."""
    def write(name, prompts):
        path = tmp_path / name
        path.write_text("".join(json.dumps(
            {"prompt": p, "chosen": p[::-1] + "h", "rejected": p}) + "\n" for p in prompts))
        return str(path)

    prompts = [a + b for a in "abcd" for b in "efg"]
    run = make(File(write("train.jsonl", prompts), write("test.jsonl", ["ha", "hb"])))
    pairs, _ = preferences.StepPairs(run, dpo.Config(pairs=12), None).draw()
    places = plackett_luce.draw_rankings(run, plackett_luce.Config(prompts=12))
    compared, wins = preferences.draw_comparisons(run, 12, 4, None, 1.0)
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(compared, places, strict=True))
    assert wins.tolist() == [[[False, True], [False, False]]] * 12
    found = {}
    for name, place in zip(("chosen", "rejected"), places):
        side = getattr(pairs, name)
        assert torch.equal(side.tokens, place.tokens) and torch.equal(side.mask, place.mask)
        for tokens, mask in zip(side.tokens, side.mask):
            answer = tokens[1:][mask].tolist()
            assert answer[-1] == EOS
            prompt = Letters().decode(tokens[1:3].tolist())
            found.setdefault(prompt, {})[name] = Letters().decode(answer)
    assert found == {p: {"chosen": p[::-1] + "h", "rejected": p} for p in prompts}
    splits = {"held-out": run.task.heldout(9)}
    for sign in (1, -1):
        report = scorers.report(run, splits, lambda seqs: sign * seqs.lengths.double())
        assert report["held-out"]["pair accuracy"].rewards == [float(sign > 0)] * 2
        assert set(report["held-out"]) == {"pair accuracy", "calibration error"}


def test_every_two_answers_of_a_prompt_are_compared():
    """By their reward, in the order in which they stand; the same words tie."""
    run, asked = make(), []

    def label(run, problems, rollout):
        asked.append(len(rollout))
        return preferences.by_reward(run, problems, rollout)

    places, wins = preferences.draw_comparisons(run, 12, 3, label, 1.0)
    rollout = run.sample(run.problems(12), 3, temperature=1.0, purpose="pairs")
    gold, words = run.grade(run.problems(12), rollout).view(12, 3), rollout.responses()
    assert asked == [12 * 3 * 2] and wins.shape == (12, 3, 3)
    for k, place in enumerate(places):
        assert torch.equal(place.tokens, rollout[k::3].tokens)
    for p in range(12):
        for i in range(3):
            for j in range(3):
                same = words[3 * p + i] == words[3 * p + j]
                assert bool(wins[p, i, j]) == (not same and bool(gold[p, i] > gold[p, j]))
    assert wins.sum() > 12
    always = preferences.draw_comparisons(run, 12, 3, lambda r, p, rollout: torch.ones(len(p)), 1.0)
    for p in range(12):
        same = [words[3 * p + i] == words[3 * p + j] for i, j in ((0, 1), (0, 2), (1, 2))]
        assert (~always[1][p, [0, 0, 1], [1, 2, 2]]).tolist() == same
    assert not always[1].tril().any()


def test_noise_turns_each_comparison_by_itself():
    class Noisy(Echo):
        noise = 0.3

    run, clean = make(Noisy()), make(Echo())
    turned = preferences.draw_comparisons(run, 300, 4, preferences.by_reward, 1.0)[1]
    right = preferences.draw_comparisons(clean, 300, 4, preferences.by_reward, 1.0)[1]
    assert torch.equal(turned | turned.mT, right | right.mT)
    share = (turned & ~right).sum((1, 2)) / right.sum((1, 2)).clamp(min=1)
    full = right.sum((1, 2)) >= 3
    assert full.sum() > 60 and float(share[full].mean()) == pytest.approx(0.3, abs=0.06)
    assert float(((share[full] > 0) & (share[full] < 1)).double().mean()) > 0.5


def test_pairs_of_a_file_that_do_not_fit_the_context(tmp_path):
    """BOS, 2 of the prompt, 6 of the longer answer and EOS are 10 tokens."""
    held = pair_file(tmp_path / "test.jsonl", [("hh", "a", "b")])
    for context in (9, 10):
        for side in (("aaaaaa", "b"), ("b", "aaaaaa")):
            data = pair_file(tmp_path / f"{context}{side[0]}.jsonl", [("ef", *side)])
            run = make(File(data, held), tiny(context=context))
            if context == 10:
                assert len(preferences.StepPairs(run, dpo.Config(pairs=1), None).draw()[0]) == 1
                continue
            with pytest.raises(MinipostError, match=r"a prompt of 3 tokens \('ef'\) and a response "
                               r"of 7 \('aaaaaa'\) do not fit the model's context of 9$"):
                preferences.StepPairs(run, dpo.Config(pairs=1), None)


@pytest.mark.parametrize("likeliest", [1.0, 0.5])
def test_the_tokens_of_a_files_pairs_count_as_they_are_drawn(tmp_path, likeliest):
    """All of a step's pairs, those that the filter drops among them."""
    run = make_run(pair_task(tmp_path))
    data = preferences.StepPairs(run, dpo.Config(pairs=5, likeliest=likeliest), None)
    assert run.tokens == 0
    whole = data.whole.chosen.lengths + data.whole.rejected.lengths
    expected = 0
    for run.step in range(3):
        expected += int(whole[run.deal(range(len(data.whole)), 5)].sum())
        data.draw()
        assert run.tokens == expected
