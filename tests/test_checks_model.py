"""The doctor's checks of a model, a sampler and a reward model: healthy, and with a planted
fault."""

import json
import shutil
from collections import namedtuple
from dataclasses import replace

import pytest
import torch
from fakes import BOS, EOS, PAD, Echo, Letters, said, sequences
from fakes import tiny as model
from safetensors.torch import load_file, save_file

from minipost import checkpoint
from minipost.checks import data
from minipost.checks import model as checkup
from minipost.checks.model import FAULT, NONE, OK, WARNING
from minipost.gpt import RewardModel
from minipost.methods import reinforce
from minipost.optim import Learner
from minipost.rollout import Sequences, logprobs, pack
from minipost.run import Run
from minipost.tokenizer import Vocabulary


def run_of(module=None):
    return Run(Learner(module or model()), Letters(), Echo(), Echo().reward, max_new_tokens=8)


def sampled(run, temperature=1.0):
    return run.sample(run.problems(4), 4, temperature=temperature)


def spoilt(module, how):
    """The module with final hidden states changed by how(hidden)."""
    whole = module.hidden
    module.hidden = lambda *arguments, **options: how(whole(*arguments, **options))
    module.hidden_at = lambda tokens, where, *rest, **options: module.hidden(tokens)[where]
    return module


def noisy(hidden):
    return hidden + 0.1 * torch.randn_like(hidden)


def leaky(hidden):
    """Every position sees all others, padding too."""
    return hidden + hidden.mean(1, keepdim=True)


Ids = namedtuple("Ids", "before eos pad end ending", defaults=([1], frozenset([2]), 0, 2, ""))


def stated(bos=1, eos=2, pad=0):
    kinds = {"bos": {bos}, "eos": {eos}, "pad": {pad} - {None}}
    return dict.fromkeys(("config.json", "generation_config.json", "tokenizer_config.json"), kinds)


def test_pad_with_an_id_of_its_own():
    said(checkup.control_ids(Ids(), stated()), OK, "BOS 1, EOS 2, PAD 0")
    said(checkup.control_ids(Ids(before=[]), stated(pad=None)), OK, "no BOS", "no PAD named")
    said(checkup.control_ids(Ids(before=[2]), stated(bos=2)), OK, "one id for both")


@pytest.mark.parametrize("kind", ["eos", "bos"])
def test_pad_that_is_another_control_token(kind):
    found = stated()
    found["generation_config.json"] = {"bos": {1}, "eos": {2, 4},
                                       "pad": {{"eos": 4, "bos": 1}[kind]}}
    said(checkup.control_ids(Ids(), found), WARNING,
         f"generation_config.json gives PAD and {kind.upper()}")


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
    said(checkup.eos_in_files(Ids(eos=frozenset([2, 9])), stated(eos=9)), WARNING, "end in id 2",
         "be 9")


def edited(source, target, **change):
    """A copy of a model directory with other keys in tokenizer_config.json."""
    shutil.copytree(source, target)
    path = target / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    return target


def test_what_other_tools_put_before_a_prompt(tiny, tmp_path):
    words = checkpoint.load(tiny)[1]
    said(checkup.before_prompts(tiny, words), OK, "id 1, as the template in tokenizer.json says")
    for k, change in enumerate(({"add_bos_token": False}, {"add_eos_token": True})):
        key, = change
        said(checkup.before_prompts(edited(tiny, tmp_path / str(k), **change), words), WARNING,
             f"says {key} {json.dumps(change[key])}", "other ids than training")
    said(checkup.before_prompts(edited(tiny, tmp_path / "c", tokenizer_class="GPT2Tokenizer"),
                                words), WARNING, "names the class GPT2Tokenizer",
         "PreTrainedTokenizerFast")
    bare = Vocabulary(words.tokenizer, [], [2], 0)
    said(checkup.before_prompts(tiny, bare), WARNING, "puts nothing before a prompt")


def test_ids_tokens_and_digests_of_a_model(tiny, tmp_path):
    net, words = checkpoint.load(tiny)
    said(checkup.unused_ids(net), OK, "every id")
    net.unused = torch.arange(280) > 277
    said(checkup.unused_ids(net), OK, "2 of 280, from 278 on")
    said(checkup.shown_tokens(words), NONE)
    words.tokenizer.control[7] = "<think>"
    said(checkup.shown_tokens(words), OK, "1 beside BOS, EOS and PAD, such as '<think>'")
    said(checkup.weights_as_written(tiny), OK)
    copy = edited(tiny, tmp_path / "copy")
    path = copy / "model.safetensors"
    save_file(load_file(path), path, metadata={"format": "pt", "by": "another"})
    said(checkup.weights_as_written(copy), WARNING, "another model.safetensors", "digests.json")
    (copy / "digests.json").unlink()
    said(checkup.weights_as_written(copy), NONE)


def test_prompts_without_a_token():
    said(checkup.empty_prompts([3, 1]), OK, "none of 2")
    said(checkup.empty_prompts([3, 0]), FAULT, "1 of 2 prompts", "BOS")


def test_context_that_holds_prompts_and_answers():
    said(checkup.context([10, 16], [40, 64], 48, 64), OK, "16 of 64")
    said(checkup.context([10, 17], [], 48, 64), FAULT, "1 of 2 prompts", "--max-new-tokens 47")
    said(checkup.context([10, 70], [], 99, 64), FAULT, "use a lower --max-new-tokens than 64")
    said(checkup.context([10, 80], [], 48, 64), FAULT, "leave out prompts of more than 16 tokens")
    said(checkup.context([10], [64, 65, 70], 48, 64), FAULT, "2 of 3 given answers",
         "the longest with 70")


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
    said(checkup.eos_in_loss(Sequences(tokens, mask), rollout, eos), FAULT,
         "1 of 5 answers to learn from")
    done = rollout.finished.nonzero()[0]
    worse = replace(rollout, mask=rollout.mask.clone())
    worse.mask[done, rollout.mask[done].int().cumsum(1).argmax(1)] = False
    said(checkup.eos_in_loss(None, worse, eos), FAULT,
         f"1 of {int(rollout.finished.sum())} finished")


def test_where_a_tool_has_a_say_the_last_part_alone_ends_in_eos():
    rows = [[5, 6, 7, 8, EOS], [5, 6, 7, 8, 9]]
    learnt = [[True, False, False, True, True]] * 2
    answers = pack([[BOS]] * 2, rows, PAD, learnt)
    assert checkup.ends_in_eos(answers, {EOS}).tolist() == [False, False]
    assert checkup.ends_in_eos(answers, {EOS}, each=False).tolist() == [True, False]
    inside = pack([[BOS]], [[EOS, 6, 7, 8, EOS]], PAD, learnt[:1])
    assert checkup.ends_in_eos(inside, {EOS}).tolist() == [True]
    assert checkup.ends_in_eos(inside, {EOS}, each=False).tolist() == [False]


def twice(run, rollout, temperature):
    old = checkup.trainers(run, rollout, temperature)
    return checkup.ratio_at_start(run, rollout, temperature, old)


def compared(run, rollout, temperature):
    return checkup.sampler_and_trainer(run, rollout, checkup.trainers(run, rollout, temperature))


def test_a_trainer_that_agrees_with_itself_and_with_the_sampler():
    run = run_of()
    run.micro_batch_size = 3
    for temperature in (1.0, 0.6):
        rollout = sampled(run, temperature)
        said(twice(run, rollout, temperature), OK,
             f"{int(rollout.mask.sum())} tokens")
        said(compared(run, rollout, temperature), OK)


def test_a_forward_pass_that_is_random():
    torch.manual_seed(0)
    run = run_of(spoilt(model(), noisy))
    rollout = sampled(run)
    said(twice(run, rollout, 1.0), FAULT, "off 1 by", "dropout")
    said(compared(run, rollout, 1.0), FAULT)


def test_samples_of_another_temperature_or_of_other_weights():
    run = run_of()
    rollout = sampled(run, temperature=0.5)
    said(compared(run, rollout, 1.0), FAULT, "start outside a clip",
         "same temperature")
    rollout = sampled(run_of(model(seed=5)))
    said(compared(run, rollout, 1.0), FAULT)
    broken = replace(rollout, logp=rollout.logp * float("nan"))
    said(compared(run, broken, 1.0), FAULT)


def test_rounding_that_eats_into_the_clip():
    """In bfloat16 a ratio may be off, but not those of more than one token in a hundred."""
    run = run_of(model().bfloat16())
    rollout = sampled(run)
    with torch.no_grad():
        logp = logprobs(run.policy.module, rollout)
    said(compared(run, replace(rollout, logp=logp), 1.0), OK)
    off = replace(rollout, logp=logp - 0.3 * rollout.mask)
    said(compared(run, off, 1.0), WARNING, "100.0% of", "--dtype float32")


def test_log_probs_that_padding_changes():
    rollout = sampled(run_of())
    said(checkup.padding(model(), rollout, PAD, 1.0), OK, "8 answers")
    said(checkup.padding(spoilt(model(), leaky), rollout, PAD, 1.0), FAULT, "8 answers",
         "in its batch")
    # no padding unless the check adds it
    alike = rollout[rollout.lengths == rollout.lengths[0]][:2]
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
    said(checkup.micro_batches(run.policy, rollout, each_by_its_own_tokens, 1.0), FAULT,
         "whole step")
    # nothing is left for a run to learn from
    assert not run.policy.grad.any()
    said(checkup.micro_batches(run.policy, rollout[[0]], reinforce.loss, 1.0), OK)


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
    # no room to widen
    said(checkup.reward_model(run, scorer(leaky, context=width), rollout), FAULT)
    # nothing to trim
    alike = rollout[rollout.lengths == rollout.lengths.mode()[0]]
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
    said(checkup.reward_model_ranks([-1.0] * 14 + [1.0] * 2, "was chosen"), WARNING,
         "2 of 16 pairs")
    values = [0, 0, 1, 1, 0, 1, 0.5, 0.5, 0.5]
    assert data.gaps([5, 6, 7, 8, 10, 20, 0, 0, 0], values, 3) == [2, -2]
