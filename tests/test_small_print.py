"""What docstrings promise in passing, and planted mistakes showed that no test held them to."""

import json
import math
import random
from types import SimpleNamespace

import pytest
import torch
from fakes import Digits, Echo, Hidden, answer_file, make_run, sequences

from minipost import checkpoint, files, parallel
from minipost.datasets.trajectories import Trajectories
from minipost.errors import MinipostError
from minipost.layout import tensor_file
from minipost.measure.results import Arm
from minipost.methods import distill, oreo, trpo
from minipost.opening import open_run
from minipost.rollout import Pairs
from minipost.tasks.base import Problem
from minipost.tasks.countdown import Countdown
from minipost.tasks.recall import Recall
from minipost.test_time import (
    adaptive_consistency,
    best_of_n,
    budget_forcing,
    graph_of_thoughts,
    mcts,
    memory,
    self_feedback,
    self_polish,
    speculative_rejection,
    tot,
    uct,
    universal_self_consistency,
)


def test_a_reward_file_shows_what_a_task_hides(tiny, reward):
    options = SimpleNamespace(model=str(tiny), dtype="float32", reward=[], reward_timeout=0.0,
                              seed=3, micro_batch_size=5, max_new_tokens=7, control_tokens="stop",
                              chat=False, gradient_checkpointing=False, optimizer="adamw",
                              chat_template="", sampler="own", lora=0, lora_numbers=0, prefix=0,
                              bottleneck=0, base_bits=0, merge=False)
    assert open_run(options, Hidden(), "cpu").hidden
    assert not open_run(options, Echo(), "cpu").hidden
    options.reward = [reward]
    run = open_run(options, Hidden(), "cpu")
    assert not run.hidden and (run.seed, run.micro_batch_size, run.max_new_tokens) == (3, 5, 7)
    assert run.reward(prompts=[""], completions=["123456789"]) == [1.0]


def test_a_file_draws_as_many_problems_as_are_asked_for(tmp_path):
    task, run = answer_file(tmp_path), make_run()
    found = task.sample(25, run.rng("x"))
    assert len(found) == 25 and {p.prompt for p in found} <= {p.prompt for p in task.training()}


def test_a_files_own_reward_is_its_completion_but_for_the_space_around_it(tmp_path):
    task = answer_file(tmp_path)
    assert task.reward(None, [" ab\n", "b"], completion=["ab ", "a"]) == [1.0, 0.0]
    for missing in (None, ["ab", ""]):
        with pytest.raises(MinipostError, match="without a completion, .* --reward"):
            task.reward(["p", "q"], ["ab", "b"], completion=missing)


def test_a_state_has_the_same_bytes_in_whatever_order_its_facts_come(tmp_path):
    tensors, facts = {"x": torch.ones(2)}, {"step": 1, "carried": {"b": 2.0, "a": 1.0}}
    turned = {"carried": {"a": 1.0, "b": 2.0}, "step": 1}
    for name, given in (("one", facts), ("two", turned)):
        tensor_file.save_state(tmp_path / name, tensors, given)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_keys_that_a_config_leaves_out_are_what_transformers_takes_them_for(tmp_path):
    raw = {"model_type": "llama", "vocab_size": 11, "hidden_size": 24, "intermediate_size": 40,
           "num_hidden_layers": 2, "num_attention_heads": 3, "max_position_embeddings": 50}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    config = checkpoint.read_config(tmp_path)[0]
    assert (config.num_key_value_heads, config.head_dim, config.rms_norm_eps, config.rope_theta,
            config.tie_word_embeddings) == (3, 8, 1e-6, 10000.0, False)


def test_an_arms_cost_is_per_problem():
    assert Arm.of("x", 12, [1.0, 0.0, 1.0], ["a"] * 3, [{}] * 3).each == 4.0


@pytest.mark.parametrize("place, found", [(0, 1.0), (4, 1.0), (5, 0.0)])
def test_any_of_five_looks_at_five(place, found):
    texts = [str(k) for k in range(1, 8)]
    problem, tools = Problem(texts[place]), Digits("")
    first, among = tot.ranked("x", [problem], [texts], [{}], tools, 0)
    assert among.name == "x, any of 5" and among.result.rewards == [found]
    assert first.result.rewards == [float(place == 0)] and first.result.texts == ["1"]


def test_pairs_keep_their_sides_on_another_device():
    pairs = Pairs(sequences(3, seed=0), sequences(3, seed=1))
    for moved in (pairs.to("cpu"), pairs[[0, 1, 2]]):
        assert torch.equal(moved.chosen.tokens, pairs.chosen.tokens)
        assert torch.equal(moved.rejected.tokens, pairs.rejected.tokens)
    assert len(pairs) == 3 and len(pairs[[1]]) == 1


def test_workers_are_cores_where_forking_is_safe(monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2}, raising=False)
    assert (parallel.default_workers("cpu"), parallel.default_workers("cuda")) == (3, 1)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(9)), raising=False)
    assert parallel.default_workers("cpu") == 4
    monkeypatch.setattr("sys.platform", "darwin")
    assert parallel.default_workers("cpu") == 1


def test_a_directory_is_made_with_those_above_it(tmp_path):
    for _ in range(2):                                      # also where it is there
        files.make_directory(tmp_path / "a" / "b" / "c")
    assert (tmp_path / "a/b/c").is_dir()


def test_rewards_have_the_precision_of_what_was_sampled():
    run = make_run()
    problems = run.problems(2)
    rollout = run.sample(problems, 2, temperature=1.0)
    assert run.grade(problems, rollout).dtype == rollout.logp.dtype == torch.float32


def test_a_teacher_is_read_from_its_directory_and_does_not_learn(tiny, wide):
    model, vocabulary = checkpoint.load(tiny)
    run = make_run(model=model)
    run.vocabulary = vocabulary
    teacher = distill.load_teacher(run, wide)
    assert teacher.context == 256 and not any(p.requires_grad for p in teacher.parameters())
    kept = checkpoint.load(wide)[0].state_dict()
    assert all(torch.equal(kept[name], x) for name, x in teacher.state_dict().items())


@pytest.mark.parametrize("step", [0, 1, 2, 3])
def test_a_resumed_run_makes_the_set_of_its_part_at_any_step(step):
    run = make_run()
    run.step = step
    data = Trajectories(run, oreo.Config(steps=4, iterations=4, prompts=2, group_size=2))
    assert data.refresh() and (data.since, data.length) == (step, 1) and not data.refresh()
    assert len(data.seqs) == len(data.problems) == len(data.reward) == 4


def test_without_an_iteration_there_is_no_step_and_no_division_by_zero():
    g = torch.tensor([3.0, 4.0])
    step, residual = trpo.full_step(lambda v: v, g, 0.1, 0)
    assert not step.any() and residual == 1.0


def test_the_last_answer_of_a_life_is_judged_as_the_task_reads_it():
    for said, right in ((" 17\n", True), ("17", True), ("7", False)):
        life = [{"question": "hut", "said": "3", "right": "3"},
                {"question": "red box", "said": said, "right": "17"}]
        working = {"episodes": memory.judged([life], Recall())[0]}
        assert memory.outcome(working) == ("red box?", right)


def test_a_memory_does_not_mind_capitals():
    found = memory.Memory()
    found.write("Code of the RED box", "1")
    found.write("code of the old hut", "2")
    assert found.nearest("some RED hat", 1) == [("Code of the RED box", "1")]


@pytest.mark.parametrize("seed", range(12))
def test_the_nearest_are_those_of_the_highest_cosine_of_weighted_counts(seed):
    rng, found = random.Random(seed), memory.Memory()
    texts = [" ".join(rng.choices("code of the red old box door".split(), k=rng.randint(1, 6)))
             for _ in range(9)]
    for k, text in enumerate(texts):
        found.write(text, str(k))
    asked = " ".join(rng.choices("code of the red blue box".split(), k=4))

    def vector(text):
        shared = {w: sum(w in other.split() for other in texts) for w in text.split()}
        return {w: text.split().count(w) * math.log(1 + 9 / n) for w, n in shared.items() if n}

    def cosine(a, b):
        size = math.hypot(*a.values()) * math.hypot(*b.values())
        return sum(a[w] * b.get(w, 0.0) for w in a) / size if size else 0.0

    likeness = [cosine(vector(asked), vector(text)) for text in texts]
    order = sorted(range(9), key=lambda k: (round(likeness[k], 9), k))
    assert [int(answer) for _, answer in found.nearest(asked, 9)] == order


def test_held_out_hands_come_in_an_order_that_says_nothing():
    """So any first few are as hard as the others: not sorted by their numbers."""
    hands = [sorted(p.columns["numbers"]) for p in Countdown(numbers=4, target=24).heldout(60)]
    assert hands != sorted(hands)
    first, second = ([h[0] for h in half] for half in (hands[:30], hands[30:]))
    assert abs(sum(first) - sum(second)) < 40


WORKINGS = {
    best_of_n: ({"chosen": 1, "samples": [{"text": " a\n", "score": 0.25},
                                          {"text": "b", "score": 1.0}]},
                ["      0.250  'a'", "->    1.000  'b'"]),
    self_feedback: ({"rounds": [{"answer": " a", "critique": "no "},
                                {"answer": "b", "critique": None}]},
                    ["draft: 'a'", "critique: 'no'", "revision 1: 'b'"]),
    graph_of_thoughts: ({"thoughts": [{"prompt": "1+2=? ", "text": "x\ny", "of": []},
                                      {"prompt": "3=?", "text": "z", "of": [0, 1]}]},
                        ["0: 1+2=?  x; y", "1 of 0, 1: 3=?  z"]),
    mcts: ({"answer": " b;", "tree": {"text": "", "visits": 4, "q": 0.5, "prior": 1.0, "children": [
        {"text": "a;", "visits": 1, "q": 0.25, "prior": 0.5, "children": []},
        {"text": "b;", "visits": 2, "q": 0.75, "prior": 0.5, "children": []}]}},
        ["   4 visits  0.50", "     2 visits  0.75  b;", "     1 visits  0.25  a;",
         "answer: 'b;'"]),
    uct: ({"answer": " b;c", "answers": 3, "tree": {
        "text": "", "visits": 4, "q": 0.5, "children": [
            {"text": "a;", "visits": 1, "q": 0.25, "children": []},
            {"text": "b;", "visits": 3, "q": 0.75, "children": []}]}},
        ["   4 visits  0.50", "     3 visits  0.75  b;", "     1 visits  0.25  a;",
         "best of 3 answers: 'b;c'"]),
    speculative_rejection: ({"chosen": 1, "samples": [
        {"text": " a\n", "score": 0.25, "rejected": 2}, {"text": "b", "score": 1.0,
                                                         "rejected": 0}]},
        ["      0.250  'a'  rejected in round 2", "->    1.000  'b'"]),
    adaptive_consistency: ({"samples": ["a", "b", "a"], "safe": 0.6875,
                            "votes": [{"answer": "1", "votes": 2.0}, {"answer": "2",
                                                                      "votes": 1.0}]},
                           ["stopped after 3 samples, lead safe by 0.688", "2 votes for 1",
                            "1 votes for 2"]),
    budget_forcing: ({"text": "a\nAnswer: b\n", "lines of thought": 1, "waits": 0},
                     ["a", "Answer: b", "1 lines of thought, 0 waits put in"]),
    universal_self_consistency: (
        {"listed": [" a\n", "b"], "chosen": 1, "reply": "1: a\nAnswer: 2"},
        ["   1: 'a'", "-> 2: 'b'", "1: a", "Answer: 2"]),
    self_polish: ({"wordings": [{"words": "x? Answer:", "answer": " 1", "kept": True},
                              {"words": "y? Answer:", "answer": "2", "kept": False}]},
                  ["x? Answer: '1'", "y? Answer: '2'  (asks for another number)"]),
    memory: ({"episodes": [{"question": "red box", "said": " 1", "right": "1", "good": True,
                            "recalled": []},
                           {"question": "hut", "said": "2", "right": "3", "good": False,
                            "recalled": [("red box", "1")]}]},
             ["episode 1: red box?  said '1', right; written: 1",
              "episode 2: hut?  said '2', wrong; written: 3", "    read: red box? 1"]),
    tot: ({"tree": [vars(tot.Node("", "", None, 0, expanded=True)),
                    vars(tot.Node("a\n", "", 0, 1, 0.5, expanded=True)),
                    vars(tot.Node("b", "", 0, 1, 0.25, finished=True)),
                    vars(tot.Node("a\nc\n", "", 1, 2, 0.75))]},
          ["+ 0.50  a", "  . 0.75  c", "= 0.25  b"]),
}


@pytest.mark.parametrize("method", WORKINGS)
def test_a_working_is_shown_whole_line_by_line(method):
    working, lines = WORKINGS[method]
    assert method.show(working) == lines
