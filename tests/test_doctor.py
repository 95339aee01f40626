"""The doctor: every check on a healthy set-up and on one with a planted fault; the command line."""

import json
import os
import re
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes import BOS, EOS, PAD, Echo, Letters, sequences, tiny as model
from test_cli import check as explained, helped, names

from minipost import checkpoint, doctor
from minipost.checks import data, model as checkup
from minipost.checks.model import FAULT, NONE, OK, WARNING
from minipost.cli.console import Console
from minipost.datasets.rows import File
from minipost.gpt import RewardModel
from minipost.methods import reinforce
from minipost.optim import Learner
from minipost.rollout import Sequences, logprobs
from minipost.run import Run
from minipost.tasks import TASKS
from minipost.tasks.base import Problem
from minipost.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[1]


def said(finding, status, *parts):
    """The finding has this status and is one sentence with these parts; what is wrong says it all."""
    assert finding.status == status, finding
    sentence = finding.sentence
    assert "\n" not in sentence and sentence.endswith(".") and not sentence.endswith("..")
    if status in (WARNING, FAULT):
        assert finding.why and finding.todo
        assert sentence.rindex(", so ") < sentence.rindex("; ")
    for part in parts:
        assert part in sentence, sentence


def run_of(module=None):
    return Run(Learner(module or model()), Letters(), Echo(), Echo().reward, max_new_tokens=8)


def sampled(run, temperature=1.0):
    return run.sample(run.problems(4), 4, temperature=temperature)


def spoilt(module, how):
    """The module with final hidden states changed by how(hidden)."""
    whole = module.hidden
    module.hidden = lambda *arguments, **options: how(whole(*arguments, **options))
    return module


def noisy(hidden):
    return hidden + 0.1 * torch.randn_like(hidden)


def leaky(hidden):
    """Every position sees all others, padding too."""
    return hidden + hidden.mean(1, keepdim=True)


# ---- control ids

Ids = namedtuple("Ids", "bos eos pad", defaults=(1, frozenset([2]), 0))


def stated(bos=1, eos=2, pad=0):
    kinds = {"bos": {bos}, "eos": {eos}, "pad": {pad} - {None}}
    return {file: kinds for file in ("config.json", "generation_config.json", "tokenizer_config.json")}


def test_pad_with_an_id_of_its_own():
    said(checkup.control_ids(Ids(), stated()), OK, "BOS 1, EOS 2, PAD 0")
    said(checkup.control_ids(Ids(bos=None), stated(pad=None)), OK, "no BOS", "no PAD named")
    said(checkup.control_ids(Ids(bos=2), stated(bos=2)), OK, "one id for both")


@pytest.mark.parametrize("kind", ["eos", "bos"])
def test_pad_that_is_another_control_token(kind):
    found = stated()
    found["generation_config.json"] = {"bos": {1}, "eos": {2, 4}, "pad": {{"eos": 4, "bos": 1}[kind]}}
    said(checkup.control_ids(Ids(), found), WARNING, f"generation_config.json gives PAD and {kind.upper()}")


def test_the_ids_of_a_directory_are_read_from_every_file(tiny, tmp_path):
    directory = tmp_path / "model"
    shutil.copytree(tiny, directory)
    (directory / "tokenizer_config.json").write_text(json.dumps(
        {"pad_token": {"content": "<eos>"}, "eos_token": "<eos>", "bos_token": None}))
    (directory / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    found = checkup.stated_ids(directory, checkpoint.load(directory)[1].tokenizer)
    assert found == {
        "config.json": {"bos": {BOS}, "eos": {EOS}, "pad": {PAD}},
        "generation_config.json": {"bos": set(), "eos": {2, 7}, "pad": set()},
        "tokenizer_config.json": {"bos": set(), "eos": {EOS}, "pad": {EOS}}}
    said(checkup.control_ids(Ids(), found), WARNING, "tokenizer_config.json gives PAD and EOS")


def test_the_eos_of_answers_is_that_of_the_tokenizer():
    said(checkup.eos_in_files(Ids(), stated()), OK)
    said(checkup.eos_in_files(Ids(eos=frozenset([2, 9])), stated(eos=9)), WARNING, "end in id 2", "be 9")


# ---- sequences

def test_context_that_holds_prompts_and_answers():
    said(checkup.context([10, 16], [40, 64], 48, 64), OK, "16 of 64")
    said(checkup.context([10, 17], [], 48, 64), FAULT, "1 of 2 prompts", "--max-new-tokens 47")
    said(checkup.context([10, 80], [], 48, 64), FAULT, "leave out prompts of more than 16 tokens")
    said(checkup.context([10], [64, 65, 70], 48, 64), FAULT, "2 of 3 given answers", "the longest with 70")


def test_every_answer_learns_its_eos():
    rollout, answers = sampled(run_of()), sequences(5)
    assert 0 < rollout.finished.sum() < len(rollout)        # those cut off have no EOS to learn
    done = int(rollout.finished.sum())
    said(checkup.eos_in_loss(answers, rollout, {EOS}), OK, "5 answers", f"{done} finished samples")
    same = Sequences(answers.tokens.where(answers.tokens != PAD, EOS), answers.mask)
    said(checkup.eos_in_loss(same, rollout, {EOS}), OK)     # EOS as padding is not in the loss
    cut = replace(rollout, finished=torch.zeros_like(rollout.finished))
    said(checkup.eos_in_loss(None, cut, {EOS}), NONE)


@pytest.mark.parametrize("fault", ["mask ends before EOS", "mask goes on after EOS", "no EOS"])
def test_an_eos_that_is_not_learnt_as_the_last_token(fault):
    seqs, eos = sequences(5), {EOS}
    last = seqs.mask.int().cumsum(1).argmax(1)
    mask = torch.nn.functional.pad(seqs.mask, (0, 1))
    tokens = torch.nn.functional.pad(seqs.tokens, (0, 1), value=PAD)
    if fault == "mask ends before EOS":
        mask[1, last[1]] = False
    elif fault == "mask goes on after EOS":
        mask[1, last[1] + 1] = True
    else:
        tokens[1, last[1] + 1] = 5
    rollout = sampled(run_of())
    said(checkup.eos_in_loss(Sequences(tokens, mask), rollout, eos), FAULT, "1 of 5 answers to learn from")
    done = rollout.finished.nonzero()[0]
    worse = replace(rollout, mask=rollout.mask.clone())
    worse.mask[done, rollout.mask[done].int().cumsum(1).argmax(1)] = False
    said(checkup.eos_in_loss(None, worse, eos), FAULT, f"1 of {int(rollout.finished.sum())} finished")


# ---- the sampler and the trainer

def test_a_trainer_that_agrees_with_itself_and_with_the_sampler():
    run = run_of()
    run.micro_batch_size = 3
    for temperature in (1.0, 0.6):
        rollout = sampled(run, temperature)
        said(checkup.ratio_at_start(run, rollout, temperature), OK, f"{int(rollout.mask.sum())} tokens")
        said(checkup.sampler_and_trainer(run, rollout, temperature), OK)


def test_a_forward_pass_that_is_random():
    torch.manual_seed(0)
    run = run_of(spoilt(model(), noisy))
    rollout = sampled(run)
    said(checkup.ratio_at_start(run, rollout, 1.0), FAULT, "off 1 by", "dropout")
    said(checkup.sampler_and_trainer(run, rollout, 1.0), FAULT)


def test_samples_of_another_temperature_or_of_other_weights():
    run = run_of()
    rollout = sampled(run, temperature=0.5)
    said(checkup.sampler_and_trainer(run, rollout, 1.0), FAULT, "start outside a clip", "same temperature")
    rollout = sampled(run_of(model(seed=5)))
    said(checkup.sampler_and_trainer(run, rollout, 1.0), FAULT)
    broken = replace(rollout, logp=rollout.logp * float("nan"))
    said(checkup.sampler_and_trainer(run, broken, 1.0), FAULT)


def test_rounding_that_eats_into_the_clip():
    """In bfloat16 a ratio may be off, but not those of more than one token in a hundred."""
    run = run_of(model().bfloat16())
    rollout = sampled(run)
    with torch.no_grad():
        logp = logprobs(run.policy.module, rollout)
    said(checkup.sampler_and_trainer(run, replace(rollout, logp=logp), 1.0), OK)
    off = replace(rollout, logp=logp - 0.3 * rollout.mask)
    said(checkup.sampler_and_trainer(run, off, 1.0), WARNING, "100.0% of", "--dtype float32")


def test_log_probs_that_padding_changes():
    rollout = sampled(run_of())
    said(checkup.padding(model(), rollout, PAD, 1.0), OK, "8 answers")
    said(checkup.padding(spoilt(model(), leaky), rollout, PAD, 1.0), FAULT, "8 answers", "in its batch")
    alike = rollout[rollout.lengths == rollout.lengths[0]][:2]    # no padding unless the check adds it
    said(checkup.padding(spoilt(model(), leaky), alike, PAD, 1.0), FAULT)


def test_a_batch_as_wide_as_the_context_is_not_widened_beyond_it():
    seqs = sequences(3)
    narrow = model(context=seqs.mask.shape[1])
    said(checkup.padding(narrow, seqs, PAD, 1.0), OK)
    said(checkup.padding(spoilt(narrow, leaky), seqs, PAD, 1.0), FAULT)     # seen in rows alone
    assert checkup.widened(seqs, PAD, 64).tokens.shape[1] == seqs.tokens.shape[1] + 8


def test_a_gradient_that_micro_batches_change():
    run = run_of()
    rollout = sampled(run)
    assert len(set(rollout.lengths.tolist())) > 1

    def each_by_its_own_tokens(logp, adv, mask, *, count):
        return reinforce.loss(logp, adv, mask, count=int(mask.sum()))

    said(checkup.micro_batches(run.policy, rollout, reinforce.loss, 1.0), OK, "of 1, 3 and 8 rows")
    said(checkup.micro_batches(run.policy, rollout, each_by_its_own_tokens, 1.0), FAULT, "whole step")
    assert not run.policy.grad.any()                        # nothing is left for a run to learn from
    said(checkup.micro_batches(run.policy, rollout[[0]], reinforce.loss, 1.0), OK)


# ---- reward models

def scorer(how=None, context=64):
    trunk = model(seed=3, context=context)
    found = RewardModel(spoilt(trunk, how) if how else trunk)
    with torch.no_grad():
        found.score.weight.copy_(torch.linspace(-1, 1, 16))
    return found


def test_a_reward_model_that_reads_the_last_real_token():
    run = run_of()
    said(checkup.reward_model(run, scorer(), sampled(run)), OK, "16 scores")


def test_a_reward_model_that_is_broken():
    run = run_of()
    rollout, even, void = sampled(run), scorer(), scorer()
    said(checkup.reward_model(run, scorer(leaky), rollout), FAULT, "more padding")
    width = rollout.mask.shape[1] + 1
    said(checkup.reward_model(run, scorer(leaky, context=width), rollout), FAULT)   # no room to widen
    alike = rollout[rollout.lengths == rollout.lengths.mode()[0]]                   # nothing to trim
    said(checkup.reward_model(run, scorer(leaky), alike), FAULT)
    with torch.no_grad():
        even.score.weight.zero_()
        void.score.weight.fill_(float("nan"))
    said(checkup.reward_model(run, even, rollout), FAULT, "all 16 answers have the score 0")
    said(checkup.reward_model(run, void, rollout), FAULT, "all 16 answers are not finite")


def test_a_score_that_is_read_one_token_too_early(monkeypatch):
    run = run_of()
    rollout = sampled(run)
    monkeypatch.setattr("minipost.run.final_score", lambda model, seqs: model(seqs.tokens)[
        torch.arange(len(seqs)), seqs.mask.int().cumsum(1).argmax(1)])
    said(checkup.reward_model(run, scorer(), rollout), FAULT, "last real token")


def test_the_pad_of_a_reward_model():
    said(checkup.reward_model_ids(stated()), OK)
    said(checkup.reward_model_ids(stated(pad=2)), WARNING, "config.json of the reward model",
         "before the EOS")


def test_a_reward_model_that_prefers_the_worse():
    said(checkup.reward_model_ranks([], "was chosen"), NONE)
    said(checkup.reward_model_ranks([1.0] * 9 + [-1.0] * 7, "was chosen"), OK, "9 of 16 pairs")
    said(checkup.reward_model_ranks([-1.0] * 14 + [1.0] * 2, "was chosen"), WARNING, "2 of 16 pairs")
    values = [0, 0, 1, 1, 0, 1, 0.5, 0.5, 0.5]
    assert data.gaps([5, 6, 7, 8, 10, 20, 0, 0, 0], values, 3) == [2, -2]


# ---- reward functions

PROBLEMS = [Problem(c, {"letter": c}) for c in "abcd"]
TEXTS = ["a", "ba", "c", "dd"]


def asked(reward, references=((PROBLEMS[0], "aaa"),)):
    return data.ask_often(reward, PROBLEMS, TEXTS, list(references))


def test_a_reward_function_that_holds_its_contract():
    values, error = asked(Echo().reward)
    said(data.reward_function(values, error), OK, "4 answers")
    assert values["empty"] == [0.0] * 4 and values["reference"] == [1.0]
    assert values["once"] == values["backwards"] == pytest.approx([1 / 3, 1 / 3, 1 / 3, 2 / 3])
    said(data.reward_function({}, ""), NONE)


def raises(completions, **columns):
    return [1 / len(text) for text in completions]


def is_nan(completions, **columns):
    return [float("nan")] * len(completions)


def is_none(completions, **columns):
    return None


def is_one(completions, **columns):
    return 1.0


def too_few(completions, **columns):
    return [0.0]


@pytest.mark.parametrize("reward, part", [(raises, "raised ZeroDivisionError"), (is_nan, "returned nan"),
                                          (is_none, "NoneType"), (is_one, "float"),
                                          (too_few, "1 values for 4 rows")])
def test_a_reward_function_that_would_end_a_run(reward, part):
    """`raises` does so only for an empty answer, which an untrained policy may well give."""
    values, error = asked(reward)
    assert values == {}
    said(data.reward_function(values, error), FAULT, reward.__name__, part)


def test_a_reward_function_that_fails_for_reference_answers_only():
    def reward(completions, **columns):
        return [float(text != "aaa" or 1 / 0) for text in completions]

    said(data.reward_function(*asked(reward)), FAULT, "ZeroDivisionError")


def test_a_reward_function_that_is_random():
    calls = []

    def reward(completions, **columns):
        calls.append(len(completions))
        return [len(calls) * float(text == "c") for text in completions]

    said(data.reward_function(*asked(reward)), WARNING, "differs on 1, by up to 1")


def test_a_reward_function_that_mixes_up_rows():
    def reward(prompts, completions, letter, **columns):
        return [float(text.count(letter[0])) for text in completions]

    said(data.reward_function(*asked(reward)), FAULT, "4 answers in the other order", "3 of them")


def test_rewards_that_differ_within_groups():
    said(data.reward_spread([0, 1, 0, 0], ["a", "b", "c", "d"], 2), OK, "1 of 2 groups")
    said(data.reward_spread([0, 1, 0, 0], ["a", "b", "c", "d"], 1), NONE)


@pytest.mark.parametrize("values, texts, parts", [
    ([0] * 8, list("abcdefgh"), ("all 4 groups of 2", "4 at 0", "fine-tune first")),
    ([1, 1, 1, 1, 1, 1, 0, 1], list("abcdefgh"), ("3 of 4 groups", "3 at 1", "ask harder problems")),
    ([1, 1, 0, 0, 1, 1, 0, 1], list("aabbccde"), ("2 at 1, 1 at 0", "3 of them say the same words",
                                                  "higher --temperature")),
])
def test_groups_that_tie(values, texts, parts):
    said(data.reward_spread(values, texts, 2), WARNING, *parts)


def test_reference_answers_that_earn_what_they_should():
    said(data.reference_rewards([1, 1], [0, 1, 0, 0], [0] * 4), OK, "2 earn 1.000", "0.250", "ones 0.000")
    said(data.reference_rewards([0.4, 0.1], [-0.5, 0.1], [0, 0]), OK)
    said(data.reference_rewards([0.4, -0.5], [-0.5, 0.1], [0, 0]), OK)      # graded: one may be poor
    said(data.reference_rewards([], [0, 1], [0, 0]), NONE)


@pytest.mark.parametrize("references, sampled, empty, status, part", [
    ([1, 1], [1, 1], [1, 1], FAULT, "gives 1 to every sampled, reference and empty answer"),
    ([0, 0, 1], [0, 1], [0, 0], FAULT, "2 of 3 reference answers get the least"),
    ([1, 0, 1, 1], [0, 1], [0, 0], WARNING, "1 of 4 reference answers get the least"),
    ([0.2, 0.3], [0.5, 0.6], [0, 0], WARNING, "less than sampled ones"),
])
def test_reference_answers_that_a_reward_function_misjudges(references, sampled, empty, status, part):
    said(data.reference_rewards(references, sampled, empty), status, part)


def rows(*columns):
    return [Problem(f"p{k}", c) for k, c in enumerate(columns)]


def test_rewards_that_a_file_states():
    good, bad = {"completion": "a", "label": True}, {"completion": "b", "label": False}
    said(data.stated_rewards(rows(good, bad)), OK, "2 rows state 2 different values")
    said(data.stated_rewards(rows(good, good)), WARNING, "all 2 rows state 1")
    said(data.stated_rewards(rows({"completion": "a"})), NONE)
    task = File.__new__(File)
    assert [data.reference(task, row, None) for row in rows(good, bad, {"chosen": "c", "rejected": "d"}, {})
            ] == ["a", None, "c", None]
    assert data.exact(rows({"completion": "a"})) and not data.exact(rows(good)) and not data.exact(rows({}))


# ---- answers and texts

def test_answers_that_are_cut():
    done = [True] * 9 + [False]
    said(data.cut_answers(done, [5, 8], 8), OK, "1 of 10")
    said(data.cut_answers([*done, False], [5, 8], 8), WARNING, "2 of 11", "within 8 tokens")
    said(data.cut_answers([False] * 4, [], 8), WARNING, "all 4 sampled answers are cut at --max-new-tokens 8",
         "raise --max-new-tokens")
    said(data.cut_answers(done, [5, 9, 12], 8), WARNING, "2 of 3 reference answers are longer", "--max-new-tokens 12")


def test_answers_that_the_task_cannot_read():
    said(data.parsed_answers(Echo(), ["a"] * 9 + [""], False), OK, "9 of 10")
    said(data.parsed_answers(Echo(), ["a"] * 8 + ["", ""], False), WARNING, "2 of 10", "echo can read")
    said(data.parsed_answers(Echo(), [""], True), NONE)


def test_control_tokens_spelt_out():
    said(data.control_texts(["a < b", "</b>"], ["<eos>", "<bos>"]), OK, "none of 2")
    said(data.control_texts(["x", "<bos>y", "z</s>\n"], ["<eos>", "<bos>"]), FAULT, "2 of 3", "'<bos>'")
    said(data.control_texts(["</s> in the middle"], ["<eos>"]), OK)


def test_tokens_that_join_at_the_end_of_a_prompt():
    pieces = Tokenizer.train(["the capital of the capital"] * 9, 290).encode
    assert len(pieces(" capital")) == 1
    said(data.boundary([("7+5=?", " 12"), ("the", " capital")], pieces), OK, "2 rows")
    said(data.boundary([("7+5=?", " 12"), ("the ", "capital")], pieces), WARNING, "1 of 2 answers",
         "'the capital'")
    said(data.boundary([], pieces), NONE)


def test_answers_that_the_tokenizer_changes():
    class Lossy(Letters):
        def decode(self, ids):
            return super().decode(ids).strip("a")

    said(data.round_trip(["abc", "b"], Letters()), OK)
    said(data.round_trip(["abc", "b"], Lossy()), WARNING, "1 of 2 answers", "'abc'")
    said(data.round_trip([], Letters()), NONE)


# ---- pairs and rows

def lower(text):
    return list(text.lower())


def test_pairs_that_say_something():
    pairs = [(f"p{k}", "good", "bad") for k in range(20)]
    said(data.equal_pairs(pairs, lower), OK, "20 pairs")
    said(data.contradictory_pairs(pairs), OK)
    mixed = [(p, b, a) if k % 2 else (p, a, b) for k, (p, a, b) in enumerate(pairs)]
    said(data.length_of_chosen(mixed, lower), OK, "longer in 10, shorter in 10")
    for check in (data.equal_pairs, data.length_of_chosen):
        said(check([], lower), NONE)
    said(data.contradictory_pairs([]), NONE)
    said(data.length_of_chosen(pairs[:19], lower), NONE)


def test_pairs_that_say_nothing_or_the_wrong_thing():
    pairs = [("p", "good", "bad"), ("q", "Fine", "fine"), ("r", "so so", "so  so")]
    said(data.equal_pairs(pairs, lower), FAULT, "1 of 3 pairs have the same tokens", "'q'")
    said(data.equal_pairs(pairs, list), WARNING, "1 of 3 pairs differ in spaces alone", "'r'")
    both = [*pairs, ("p", "bad", "good"), ("s", "bad", "good")]
    said(data.contradictory_pairs(both), WARNING, "2 of 5 pairs", "'p'")


@pytest.mark.parametrize("chosen, rejected, word", [("long", "x", "longer"), ("x", "long", "shorter")])
def test_pairs_that_length_alone_tells_apart(chosen, rejected, word):
    pairs = [("p", chosen, rejected)] * 19 + [("p", rejected, chosen)]
    said(data.length_of_chosen(pairs, list), WARNING, f"the {word} one in 19 of 20 pairs")
    said(data.length_of_chosen([*pairs, ("p", rejected, chosen), ("p", rejected, chosen)], list), OK)


def test_prompts_that_are_both_learnt_and_held_out():
    known = [Problem("Say two."), Problem("Say three.")]
    said(data.held_out_prompts(known, [Problem("Say four.")]), OK)
    said(data.held_out_prompts(known, [Problem("say  TWO."), Problem("Say four.")]), WARNING, "1 of 2",
         "'say  TWO.'")
    said(data.held_out_prompts(known * 9, [Problem("Say four.")], dropped=2), OK)
    said(data.held_out_prompts(known * 9, [Problem("Say four.")], dropped=3), WARNING, "3 of 21 rows")


def test_rows_that_stand_there_twice_or_were_left_out():
    once = rows(*[{"completion": "a"}] * 100)
    said(data.repeated_rows([*once, once[0]]), OK, "1 of 101")
    said(data.repeated_rows([*once, *once[:2]]), WARNING, "2 of 102")
    other = [Problem("p0", {"completion": "b"}), Problem("p1", {"completion": "c"})]
    said(data.repeated_rows([*once, *other]), OK, "0 of 102")
    said(data.skipped_rows([]), OK)
    said(data.skipped_rows(["skipped 2 of 9 rows of x; the first was x, line 3: no"]), WARNING, "2 of 9")


# ---- the command line

@pytest.fixture
def diagnose(capsys, tiny, rows):
    """diagnose(*flags) -> (exit code, {check: row}, the whole) of a run with --json on the tiny model."""
    def start(*flags):
        problems = [] if {"--task", "--data"} & set(flags) else ["--data", str(rows)]
        model = [] if "--model" in flags else ["--model", str(tiny)]
        capsys.readouterr()
        code = doctor.main([*model, *problems, "--max-new-tokens", "4", "--prompts", "3", "--json", *map(str, flags)])
        whole = json.loads(capsys.readouterr().out)
        assert all("\n" not in row["finding"] for row in whole["checks"])
        assert len({row["check"] for row in whole["checks"]}) == len(whole["checks"])
        return code, {row["check"]: row for row in whole["checks"]}, whole
    return start


def test_a_healthy_set_up_has_no_fault(diagnose):
    code, found, whole = diagnose()
    assert code == 0 and whole["faults"] == 0 and whole["task"] == "file"
    assert whole["warnings"] == sum(row["status"] == WARNING for row in found.values()) > 0
    assert found["sampler and trainer"]["status"] == found["padding"]["status"] == OK
    assert found["cut answers"]["status"] == WARNING       # an untrained model does not stop
    assert found["chosen and rejected"]["status"] == NONE


@pytest.mark.parametrize("task", TASKS)
def test_the_base_model_has_no_fault_on_any_task(diagnose, task):
    code, found, _ = diagnose("--model", ROOT / "checkpoints/base", "--task", task, "--max-new-tokens", 48,
                              "--prompts", 16)
    assert code == 0
    assert "of 1, 3 and 12 rows" in found["micro-batches"]["finding"]
    wrong = {name for name, row in found.items() if row["status"] == WARNING}
    # What the corpus never showed it cannot answer; nothing else is to be said.
    expected = {"facts": {"reward spread"}, "recall": {"reward spread", "parsed answers"}}
    assert wrong == expected.get(task, set())


def test_samples_in_bfloat16_differ_by_rounding_alone(diagnose):
    code, found, _ = diagnose("--model", ROOT / "checkpoints/base", "--task", "countdown", "--max-new-tokens", 48,
                              "--dtype", "bfloat16")
    assert code == 0 and found["sampler and trainer"]["status"] == OK


def test_a_reward_function_of_ones_own_that_fails(diagnose, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def reward(prompts, completions, answer, **columns):\n    return [0.0] * len(prompts)\n"
                    "def same(completions, **columns):\n    return [1.0] * len(completions)\n")
    code, found, _ = diagnose("--reward", f"{path}:reward")
    assert code == 1 and found["reward function"]["status"] == FAULT
    assert "raised TypeError" in found["reward function"]["finding"] and "reward spread" not in found
    code, found, _ = diagnose("--reward", f"{path}:same")
    assert code == 1 and found["reference answers"]["status"] == FAULT
    assert found["reward function"]["status"] == OK


def test_prompts_that_do_not_fit(diagnose, tmp_path):
    """Those that do are sampled; with none there is nothing to sample."""
    path, longer = tmp_path / "long.jsonl", tmp_path / "longer.jsonl"
    lines = [json.dumps({"prompt": f"{k} " + "x" * (80 if k < 30 else 5), "completion": "y" * (70 if k % 2
                         else 1)}) for k in range(60)]
    path.write_text("\n".join(lines))
    code, found, _ = diagnose("--data", path, "--prompts", 16)
    assert code == 1 and "prompts with a response of up to 4 tokens" in found["context"]["finding"]
    assert found["padding"]["status"] == OK
    path = tmp_path / "answers.jsonl"
    path.write_text("\n".join(lines[30:]))
    code, found, _ = diagnose("--data", path)
    assert code == 1 and "given answers with their prompts pass" in found["context"]["finding"]
    longer.write_text("\n".join(lines[:30]))
    code, found, _ = diagnose("--data", longer)
    assert code == 1 and found["samples"]["status"] == NONE and "padding" not in found


def test_pairs_of_a_file_and_a_reward_model(diagnose, tiny, tmp_path):
    path, scores = tmp_path / "pairs.jsonl", tmp_path / "scores"
    path.write_text("".join(json.dumps({"prompt": f"{k}?", "chosen": "yes", "rejected": "no"}) + "\n"
                            for k in range(40)))
    policy, vocabulary = checkpoint.load(tiny)
    judge = RewardModel(policy)
    with torch.no_grad():
        judge.score.weight.copy_(torch.linspace(-1, 1, 16))
    checkpoint.save(scores, judge, tiny)
    code, found, _ = diagnose("--data", path, "--reward-model", scores)
    assert code == 0 and found["reward model"]["status"] == found["reward model's PAD"]["status"] == OK
    assert "was chosen" in found["reward model's ranks"]["finding"]
    assert found["reward function"]["status"] == NONE
    assert found["length of chosen"]["status"] == WARNING
    code, found, _ = diagnose("--data", path, "--reward", write_length(tmp_path), "--reward-model", scores)
    assert code == 0 and "reference answers" in found
    code, found, _ = diagnose("--task", "arithmetic", "--terms", 2, "--reward-model", scores, "--reward",
                              write_length(tmp_path))
    assert "earns more" in found["reward model's ranks"]["finding"]


def write_length(folder):
    path = folder / "length.py"
    path.write_text("def length(completions, **columns):\n    return [len(c) / 9 for c in completions]\n")
    return f"{path}:length"


def test_held_out_rows_and_skipped_rows_of_a_file(diagnose, rows, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text(rows.read_text() + "no JSON\n")
    _, found, _ = diagnose("--data", bad, "--on-bad-row", "skip")
    assert "skipped 1 of 41 rows" in found["rows"]["finding"]
    held = tmp_path / "held.jsonl"
    held.write_text("".join(rows.read_text().splitlines(keepends=True)[:9]))
    _, found, _ = diagnose("--data", rows, "--eval-data", held)
    assert "9 of 40 rows of --data have a prompt of --eval-data" in found["held-out prompts"]["finding"]


def test_the_doctor_writes_nothing(diagnose, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in tiny.iterdir()}
    diagnose()
    assert os.listdir(tmp_path) == []
    assert {path.name: path.stat().st_mtime_ns for path in tiny.iterdir()} == before


@pytest.mark.parametrize("flags, part", [
    (["--model", "nowhere", "--task", "facts"], "no such model directory"),
    (["--model", "nowhere"], "one of --task and --data"),
    (["--task", "facts", "--data", "x"], "--task and --data exclude each other"),
    (["--task", "facts", "--on-bad-row", "skip"], "goes with --data"),
    (["--data", "nowhere"], "could not be read"),
    (["--task", "facts", "--reward", "nowhere.py:f"], "expected FILE.py:FUNCTION"),
])
def test_input_that_is_wrong_ends_in_one_sentence(capsys, flags, part):
    assert doctor.main(flags) == 1
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and err.count("\n") == 1 and part in err


@pytest.mark.parametrize("knob", ["group_size", "temperature", "prompts", "max_new_tokens",
                                  "micro_batch_size", "rows"])
def test_a_knob_out_of_bounds(capsys, knob):
    with pytest.raises(SystemExit) as stop:
        doctor.main(["--task", "facts", f"--{knob.replace('_', '-')}", "0"])
    assert stop.value.code == 2 and f"{knob} is 0" in capsys.readouterr().err


def test_help_explains_every_knob_of_the_doctor(capsys):
    explained(helped(capsys, doctor.main, "--task", "arithmetic"),
              names(doctor.Options) | names(TASKS["arithmetic"]))
    assert doctor.main([]) == 2 and "--task NAME --help" in capsys.readouterr().out


def test_the_screen_is_readable_at_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    found = [checkup.Finding("a check", FAULT, "nine of ten " * 9, "it [matters]", "use --max-new-tokens 9"),
             checkup.Finding("another", OK, "well"), checkup.Finding("third", NONE, "no pairs")]
    Console().findings(found, 1.24)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    whole = re.sub(r"\s+", " ", " ".join(lines))
    assert "FAULT a check: nine of ten" in whole and "so it [matters]; use --max-new-tokens 9." in whole
    assert whole.index("another") < whole.index("third") < whole.index("a check")
    assert "1 ok, 1 n/a, warnings: 0, faults: 1; 1.2 s" in whole


def test_the_examples_of_the_readme_run(capsys, tiny, tmp_path, monkeypatch):
    """Its commands, with paths that exist; the reward function stands there too."""
    text = (ROOT / "README.md").read_text()
    commands = re.findall(r"^python -m minipost\.doctor (.*?)(?:  .*)?$", text, re.MULTILINE)
    assert len(commands) >= 3
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(re.search(r"# mine.py\n(.*?)```", text, re.DOTALL)[1])
    Path("rows.jsonl").write_text("".join(json.dumps({"prompt": f"{k}+5=?", "answer": str(k + 5)}) + "\n"
                                          for k in range(40)))
    Path("pairs.jsonl").write_text("".join(json.dumps({"prompt": f"{k}?", "chosen": "yes", "rejected": "no"})
                                           + "\n" for k in range(40)))
    policy, _ = checkpoint.load(ROOT / "checkpoints/base")
    checkpoint.save("runs/reward-wording-0/model", RewardModel(policy), ROOT / "checkpoints/base")
    os.symlink(ROOT / "checkpoints", "checkpoints")
    for command in commands:
        code = doctor.main(command.replace("path/to/llama", str(tiny)).split())
        out, err = capsys.readouterr()
        assert not err and ('"faults": ' if "--json" in command else "faults: ") in out, command
        assert code == ("--reward-model" in command)        # a fresh one scores all answers alike
