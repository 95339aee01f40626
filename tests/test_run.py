"""A run: its parts, streams of problems, micro-batches, samples."""

import itertools
import json
import random

import pytest
import torch
from fakes import BOS, PAD, Echo, Hidden, make_run, small, tiny, toy
from hypothesis import example, given
from hypothesis import strategies as st

from minipost import parallel
from minipost.datasets.rows import File
from minipost.errors import MinipostError
from minipost.gpt import AND_BACK, RewardModel
from minipost.methods import rft
from minipost.optim import Learner
from minipost.rollout import NO_TOKENS, pack
from minipost.run import Run
from minipost.tasks.base import Problem
from minipost.tokenizer import Tokenizer, Vocabulary


def test_a_reference_is_the_policy_as_it_was():
    run = make_run()
    reference, start = run.reference(), run.policy.flat.clone()
    run.policy.flat.add_(1.0)
    assert run.reference() is reference and not any(p.requires_grad for p in reference.parameters())
    kept = sorted(reference.parameters(), key=lambda p: p.dim() < 2)
    flat = torch.cat([p.flatten() for p in kept])
    assert torch.equal(flat, start)


def test_a_part_that_nobody_asks_for_after_a_resume_stays_in_the_state():
    run, again = make_run(), make_run()
    run.reference()
    run.learner("critic", tiny)
    tensors, facts = run.state()
    again.restore(tensors, facts)
    found, numbers = again.state()
    assert numbers == facts and found.keys() == tensors.keys()
    assert all(torch.equal(found[key], tensors[key]) for key in tensors)


def test_a_finite_list_is_gone_through_in_epochs():
    class Finite(Echo):
        def training(self):
            return [Problem("a", {"letter": i}) for i in range(7)]

    run, seen = make_run(Finite()), []
    for run.step in range(7):
        seen += [p.columns["letter"] for p in run.problems(4)]
    assert all(sorted(seen[k : k + 7]) == list(range(7)) for k in range(0, 28, 7))
    assert seen[:7] != seen[7:14]
    run.step = 3
    assert [p.columns["letter"] for p in run.problems(4)] == seen[12:16]    # by the step alone


def dealt(seed, step, n, rows):
    """What `Run.deal` promises, written out: all epochs one behind the other, cut into steps."""
    long = []
    for epoch in range((step + 1) * n // rows + 1):
        order = list(range(rows))
        random.Random(f"{seed}/epoch {epoch}").shuffle(order)
        long += order
    return long[step * n : (step + 1) * n]


@given(st.integers(0, 5), st.integers(1, 9), st.lists(st.tuples(
    st.integers(0, 9), st.integers(1, 12)), min_size=1, max_size=6))
def test_epochs_are_dealt_in_order_whatever_else_is_dealt_between(seed, n, draws):
    run = make_run(seed=seed)
    for step, rows in draws:
        run.step = step + 2
        assert run.deal(range(rows), n, since=2) == dealt(seed, step, n, rows)


def test_an_epochs_order_is_made_once(spy):
    run, shuffles = make_run(seed=12345), spy(random.Random, "shuffle")
    for run.step in range(10):
        run.deal(range(100), 10)
    assert len(shuffles) == 1


@pytest.mark.parametrize("problem, answer, part", [
    (Problem("ab", place="x.jsonl, line 7"), "cdefg", "^x.jsonl, line 7: a prompt of 3 tokens"),
    (Problem("ab"), "cdefg", "^a prompt of 3 tokens"), ("ab", "cdefg", "^a prompt of 3 tokens"),
])
def test_the_last_line_of_defence_names_the_row(problem, answer, part):
    run = make_run(model=tiny(context=8))
    with pytest.raises(MinipostError, match=part):
        run.encode(["a", problem], ["b", answer])
    assert run.encode([problem], ["cdef"]).tokens.shape == (1, 8)
    run.vocabulary.prompt = lambda text: []
    with pytest.raises(MinipostError, match="an empty prompt needs a BOS"):
        run.encode([problem], ["c"])


def answers_to(prompts, lengths):
    """Sequences: the answer of row k has lengths[k] tokens, its prompt the ids prompts[k]."""
    return pack([[BOS, *ids] for ids in prompts], [[3] * n for n in lengths], PAD)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 8)), min_size=1, max_size=30),
       st.integers(1, 8), st.integers(1, 3))
@example([(0, 1)] * 4, 1, 2)
@example([(0, 3)] + [(1, 3)] * 3, 1, 3)
def test_micro_batches_cover_the_rows_prompt_by_prompt_in_order_of_length(rows, micro, world):
    """The ranks' parts together are all rows; each has a prompt's rows together, and equal work."""
    run, (which, lengths) = make_run(micro_batch_size=micro), zip(*rows)
    seqs = answers_to([[4] * (k + 1) for k in which], lengths)
    every, work, prompts = [], [], [k + 2 for k in which]
    own = [max(1, length - 1) for length in lengths]    # the last token is not read
    for rank in range(world):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(parallel, "rank", lambda rank=rank: rank)
            patch.setattr(parallel, "world", lambda: world)
            cut = run.micro_batches(range(len(rows)), seqs)
        sizes = [len(part) for part in cut]
        assert not cut or (max(sizes) <= micro and max(sizes) - min(sizes) <= len(sizes))
        assert len(cut) == -(-sum(sizes) // micro)
        mine = [row for part in cut for row in part]
        runs = [key for key, _ in itertools.groupby(which[row] for row in mine)]
        assert len(runs) == len(set(runs))
        for key in runs:
            inside = [lengths[row] for row in mine if which[row] == key]
            assert inside == sorted(inside)
        every += mine
        work.append(sum(own[row] for row in mine) + sum(key + 2 for key in runs))
    assert sorted(every) == list(range(len(rows)))
    # The busiest rank was the least busy one when it got its last piece.
    largest = max(prompts) + max(own) * max(1, len(rows) // (4 * world))
    assert max(work) <= sum(own) / world + sum(set(prompts)) + largest


@pytest.mark.parametrize("prompts, group, length, answers, world, most", [
    (2, 8, 512, 48, 2, 900),    # a whole prompt for each rank
    (1, 16, 500, 75, 2, 1120),  # one prompt is read by both
    (3, 8, 16, 40, 2, 600),     # three short prompts are cut, since two and one would be uneven
    (8, 8, 16, 48, 2, 1600),
])
def test_a_long_prompt_is_read_by_few_ranks(prompts, group, length, answers, world, most,
                                            monkeypatch):
    seqs = answers_to([[4 + k] * (length - 1) for k in range(prompts) for _ in range(group)],
                      [answers] * (prompts * group))
    monkeypatch.setattr(parallel, "world", lambda: world)
    read = []
    for rank in range(world):
        monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
        mine = [row for part in make_run(micro_batch_size=8).micro_batches(
            range(prompts * group), seqs) for row in part]
        read.append(len({row // group for row in mine}) * length + len(mine) * answers)
    assert max(read) <= most


def test_a_micro_batch_holds_the_prompt_of_its_first_row_too(monkeypatch):
    """Room for 110 tokens: 16 rows of a prompt of 101 have 2 tokens each to be read besides."""
    run = make_run(micro_batch_size=16)
    seqs = answers_to([[4] * 100] * 16, [3] * 16)
    monkeypatch.setattr("minipost.run.memory",
                        lambda device: 110 * (AND_BACK * run.policy.module.bytes_per_token
                                              + 24 * 11))
    assert [len(part) for part in run.micro_batches(range(16), seqs)] == [4, 4, 4, 4]


def test_rows_without_a_common_prompt_come_in_order_of_length():
    lengths = [5, 1, 8, 3, 3, 7]
    seqs = answers_to([[4] * k for k in range(6)], lengths)
    flat = [row for part in make_run().micro_batches(range(6), seqs) for row in part]
    ends = seqs.spans()[1].tolist()
    assert [ends[row] for row in flat] == sorted(ends)


def test_what_else_ends_a_response():
    run = make_run(model=small(), max_new_tokens=9)
    with run.aside():
        rollout = run.sample([Problem("ab")], 60, temperature=1.0, purpose="evaluation", stop={5})
    ends = [5 in ids[:-1] for ids in (t[m].tolist() for t, m in zip(rollout.targets, rollout.mask))]
    assert not any(ends) and (rollout.targets == 5).any()


def test_equal_answers_have_equal_scores(monkeypatch):
    """Rounding, which differs between micro-batches, must not tell them apart."""
    run = toy(Hidden())
    run.reward_model = run.policy.module
    rollout = run.sample(run.problems(3), 40, temperature=0.7)
    noise = torch.arange(len(rollout), dtype=torch.float64) * 1e-9
    monkeypatch.setattr(run, "final_scores", lambda model, seqs: seqs.lengths + noise)
    score, rows = run.finite_scores(rollout), {}
    for k, ids in enumerate(rollout.responses()):
        rows.setdefault((int(rollout.prompt[k]), bool(rollout.finished[k]), *ids), []).append(k)
    assert any(len(same) > 1 for same in rows.values()) and len(rows) > 9
    for same in rows.values():
        assert len({float(score[k]) for k in same}) == 1
    assert (score - rollout.lengths).abs().max() < 1e-6
    assert len({float(score[same[0]]) for same in rows.values()}) == len(rows)


def test_a_score_that_is_the_same_for_all_answers_is_refused():
    with pytest.raises(MinipostError, match="scores 256 answers of the policy all alike"):
        toy(Hidden()).score_by(RewardModel(tiny(seed=5)))


def test_one_rule_of_context():
    """A prompt and its response, BOS and EOS included, fill the context and do not pass it."""
    for context, fits in ((8, True), (7, False)):
        run = make_run(model=tiny(context=context))
        problem = [Problem("ab")]                           # BOS and two letters
        for ask in (lambda: run.encode(["ab"], ["cdef"]),   # four letters and EOS
                    lambda: run.sample(problem, 2, temperature=1.0, max_new_tokens=5)):
            if fits:
                assert ask().tokens.shape[1] <= context
                continue
            with pytest.raises(MinipostError, match=r"a prompt of 3 tokens.* and a response of.* 5"
                                                    r".* do not fit the model's context of 7"):
                ask()


# ---- the user's own texts

@pytest.fixture(scope="module")
def tagged():
    """A vocabulary with a control token, 280, of the user's own."""
    backend = Tokenizer.train(["7+5=? Answer: 12"], 270).backend
    backend.add_special_tokens(["<think>"])
    words = Tokenizer(backend)
    return Vocabulary(words, words.before, [2], 0, [0])


def reading(tagged, folder, choice, rows, **options):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    size = tagged.tokenizer.vocab_size
    return Run(Learner(tiny(size)), tagged, File(str(path)), None, control_tokens=choice,
               max_new_tokens=4, **options)


ROWS = [{"prompt": f"a<think>{k}", "completion": "<think>7", "reward": 1.0} for k in range(3)]


def test_control_tokens_of_a_file_are_read_as_the_user_says(tagged, tmp_path):
    think = tagged.tokenizer.id("<think>")
    with pytest.raises(MinipostError, match="rows.jsonl: the text .* spells out .*'<think>'"):
        reading(tagged, tmp_path, "stop", ROWS).prompt_ids("a<think>")
    for choice, count in (("tokens", 2), ("plain", 0)):
        run = reading(tagged, tmp_path, choice, ROWS)
        seqs = run.encode(["a<think>"], ["<think>7"])
        assert (seqs.tokens == think).sum() == count
        asked = run.sample([Problem("a<think>")], 1, temperature=1.0)
        assert (asked.tokens[:, :4] == think).sum() == count // 2


def test_texts_that_are_not_the_users_are_characters(tagged):
    """Those of a task of ours, and all that a model wrote."""
    run = make_run()
    run.vocabulary, run.control_tokens = tagged, "tokens"
    assert tagged.tokenizer.id("<think>") not in run.prompt_ids("a<think>")
    assert tagged.tokenizer.id("<think>") not in tagged.prompt("a<think>")


def test_rejection_sampling_keeps_the_ids_that_were_sampled(tagged, tmp_path):
    run = reading(tagged, tmp_path, "tokens", ROWS)
    data = rft.Trajectories(run, rft.Config())
    data.refresh()
    seqs, _, _ = rft.keep(run, rft.Config(), data)
    assert (seqs.tokens == tagged.tokenizer.id("<think>")).sum() == 2 * len(seqs)


def test_an_empty_prompt_without_bos_is_refused(tagged, tmp_path):
    bare = Vocabulary(tagged.tokenizer, [], [2], 0)
    with pytest.raises(MinipostError) as error:
        reading(bare, tmp_path, "plain", ROWS).prompt_ids("")
    assert str(error.value) == NO_TOKENS
    assert reading(tagged, tmp_path, "plain", ROWS).prompt_ids("") == [1]
