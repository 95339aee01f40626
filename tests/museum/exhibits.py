"""The exhibits: bugs that other libraries had, each in one function of our own.

Threads are repository#number.  Most were mended where they were found; some were argued about, and
a few were questions.  They are told here for what can go wrong, not for who did it.

A bug is a function that stands in the place of ours.  It is given ours and then the arguments, all
of them, by position where that is possible.  So of our names it knows the function's own, those of
arguments that go by keyword alone, and what it reads of an object; no variable of ours.  minipost
is imported within a bug where it is needed: the tests that see the bug import theirs anew.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import torch
from torch.nn.functional import pad


@dataclass(frozen=True)
class Exhibit:
    """A historic bug.

    thread      where it was reported
    story       what went wrong there, and what people saw
    where       the function of ours that has it here, "module:qualname"; a control has several
    bug         bug(ours, *arguments) -> what the function does with the bug
    caught_by   tests of the suite that fail on it, "test_file.py::name"
    """

    name: str
    thread: str
    story: str
    where: str
    bug: Callable
    caught_by: tuple = ()


EXHIBITS = []


def exhibit(name, thread, story, where, *caught_by):
    """Put the bug that follows into the museum."""
    def hung(bug):
        EXHIBITS.append(Exhibit(name, thread, story, where, bug, caught_by))
        return bug
    return hung


# ---- losses: what is divided by what

@exhibit(
    "mean per micro-batch", "allenai/open-instruct#1161",
    "GRPO's loss was divided by the tokens of the micro-batch, so a token's weight depended on "
    "how a batch was cut.",
    "minipost.methods.grpo:loss",
    "test_methods.py::test_a_methods_own_step_does_not_depend_on_how_it_is_cut[grpo]")
def _(ours, *tensors, count, **options):
    *_, mask = tensors
    return ours(*tensors, count=mask.sum(), **options)


@exhibit(
    "mean per micro-batch of SFT", "ml-explore/mlx-lm#1413",
    "Gradients of per-micro-batch means were averaged, which favours short answers when lengths "
    "differ.",
    "minipost.methods.sft:loss",
    "test_methods.py::test_a_methods_own_step_does_not_depend_on_how_it_is_cut[sft]")
def _(ours, logp, mask, *, count):
    return ours(logp, mask, count=mask.sum())


@exhibit(
    "one over length", "huggingface/trl#3138",
    "A long wrong answer was punished less per token than a short one; somebody's runs ended in "
    "long gibberish.",
    "minipost.methods.dr_grpo:loss",
    "test_proof.py::test_the_mean_step_is_what_it_is_proved_to_be[dr-grpo]",
    "test_gradients.py::test_three_ways[dr_grpo]")
def _(ours, logp, logp_old, adv, mask, *, longest, **options):
    return ours(logp, logp_old, adv * longest / mask.sum(1), mask, longest=longest, **options)


@exhibit(
    "own reward in the baseline", "thinking-machines-lab/tinker-cookbook#135",
    "The group's mean holds the answer itself, so the gradient shrinks by (G-1)/G and the right "
    "learning rate depends on G.",
    "minipost.ops:leave_one_out",
    "test_proof.py::test_the_mean_step_is_what_it_is_proved_to_be[rloo]",
    "test_rloo.py::test_rloo_is_unbiased_and_a_group_mean_shrinks_the_gradient",
    "test_rloo.py::test_leaving_one_out_by_a_loop")
def _(ours, reward, size):
    group = reward.view(-1, size)
    return (group - group.mean(1, keepdim=True)).flatten()


@exhibit(
    "no guard on a tie", "NVIDIA-NeMo/RL#1518",
    "Advantages were divided by a deviation of next to nothing and reached a million.",
    "minipost.ops:group_normalised",
    "test_ops.py::test_a_tied_group_has_advantage_exactly_zero",
    "test_ops.py::test_group_advantages")
def _(ours, reward, size):
    from minipost.ops import group_centred
    gap = group_centred(reward, size)
    return (gap / (gap.square().sum(1, keepdim=True) / (size - 1)).sqrt()).flatten()


@exhibit(
    "residue of a tie", "NVIDIA-NeMo/RL#4158",
    "Equal rewards less their mean left a rounding residue, which normalising blew up to -2075.",
    "minipost.ops:group_centred",
    "test_ops.py::test_group_centred_is_exactly_zero_for_ties",
    "test_rloo.py::test_siblings_that_tie_have_advantage_exactly_zero")
def _(ours, reward, size):
    group = reward.view(-1, size)
    return group - group.mean(1, keepdim=True)


@exhibit(
    "divided once more by the passes", "modelscope/ms-swift#10117",
    "The loss was a share of the whole step's mean already and was divided by the number of "
    "passes again: of four, a quarter of the gradient.",
    "minipost.run:Run.micro_batches",
    "test_methods.py::test_a_methods_own_step_does_not_depend_on_how_it_is_cut[dapo]")
def _(ours, run, *rows, **how):
    passes = ours(run, *rows, **how)
    yield from passes
    run.policy.grad /= len(passes)


@exhibit(
    "not a number times zero", "NovaSky-AI/SkyRL#1635",
    "Padding was masked by multiplying with zero; a NaN in a place that nobody looks at made the "
    "whole loss NaN.",
    "minipost.ops:masked_sum",
    "test_ops.py::test_masked_sum_ignores_whatever_stands_off_the_mask",
    "test_gradients.py::test_what_stands_off_the_mask_has_no_part[sft]")
def _(ours, x, mask):
    return (x * mask).sum()


@exhibit(
    "one group for all prompts", "XU-YIJIE/grpo-flat#2",
    "Mean and deviation were taken over the answers to all prompts together, so every answer to "
    "an easy prompt looked good.",
    "minipost.ops:group_normalised",
    "test_ops.py::test_group_advantages")
def _(ours, reward, size):
    return ours(reward, len(reward))


# ---- ratios: of what, and what a bound does

@exhibit(
    "answer counted once a token", "huggingface/trl#3823",
    "GSPO's gain of an answer was spread over its tokens and added up again: a long answer counted "
    "by its length, where the paper counts answers.",
    "minipost.methods.gspo:loss",
    "test_gspo.py::test_an_answer_whose_tokens_are_said_twice_counts_as_before",
    "test_gspo.py::test_tokens_of_an_answer_share_its_weight_and_its_fate",
    "test_gradients.py::test_three_ways[gspo]",
    "test_several_passes.py::test_two_steps_are_the_formula_written_anew[gspo]")
def _(ours, logp, logp_old, adv, mask, **options):
    return ours(logp, logp_old, adv * mask.sum(1), mask, **options)


@exhibit(
    "ratio not divided by length", "MakazhanAlpamys/Soup#723",
    "What was called GSPO had not the |y|-th root of an answer's ratio.  Here it has the ratio "
    "itself: a product of as many ratios as tokens, which leaves any bound as answers grow.",
    "minipost.methods.gspo:means",
    "test_gspo.py::test_an_answer_whose_tokens_are_said_twice_counts_as_before",
    "test_gspo.py::test_the_token_form_has_the_same_gradient",
    "test_several_passes.py::test_two_steps_are_the_formula_written_anew[gspo]")
def _(ours, logp, logp_old, mask):
    from minipost.ops import row_sums
    return row_sums(logp, mask), row_sums(logp_old, mask)


@exhibit(
    "weight without its log-prob", "allenai/open-instruct#1269",
    "CISPO's loss was the clipped ratio times A, as PPO's: a token beyond the bound had no "
    "gradient, which is what CISPO is there to avoid.",
    "minipost.methods.cispo:loss",
    "test_cispo.py::test_a_token_beyond_the_bounds_keeps_the_weight_of_the_bound",
    "test_cispo.py::test_without_a_lower_bound_it_is_grpo_with_truncated_ratios",
    "test_several_passes.py::test_two_steps_are_the_formula_written_anew[cispo]")
def _(ours, logp, logp_old, adv, mask, *, clip_low, clip_high, count):
    from minipost.ops import masked_sum
    ratio = (logp - logp_old).exp().clamp(1 - clip_low, 1 + clip_high)
    more = ours(logp, logp_old, adv, mask, clip_low=clip_low, clip_high=clip_high, count=count)[1]
    return -masked_sum(ratio * adv[:, None], mask) / count, more


@exhibit(
    "clip on the lower side", "thinking-machines-lab/tinker-cookbook#763",
    "PPO's two-sided bounds were handed to CISPO: tokens that the policy had left were pushed on "
    "with 0.8 of their weight, and sampler and trainer drifted apart.",
    "minipost.methods.cispo:bounds",
    "test_cispo.py::test_without_a_lower_bound_what_the_policy_has_left_hardly_counts",
    "test_cispo.py::test_without_a_lower_bound_it_is_grpo_with_truncated_ratios",
    "test_cispo.py::test_the_share_of_clipped_tokens_is_of_both_sides")
def _(ours, clip_low, clip_high):
    return ours(min(clip_low, 0.2), clip_high)


@exhibit(
    "gate without its advantage", "unslothai/unsloth-zoo#869",
    "A rewrite of SAPO's branch kept the soft ratio and dropped minus A behind it: wrong answers "
    "were moved as right ones, and all of them down.",
    "minipost.methods.sapo:loss",
    "test_sapo.py::test_at_ratio_one_it_is_the_policy_gradient_at_any_temperature",
    "test_gradients.py::test_three_ways[sapo]",
    "test_several_passes.py::test_two_steps_are_the_formula_written_anew[sapo]")
def _(ours, logp, logp_old, adv, mask, **options):
    from minipost.methods.sapo import gate
    from minipost.ops import row_means
    tau, x = gate(logp, logp_old, adv, options["tau_pos"], options["tau_neg"])[1:]
    more = ours(logp, logp_old, adv, mask, **options)[1]
    return row_means(4 / tau * x.sigmoid(), mask).sum() / options["count"], more


@exhibit(
    "gate without its scale", "modelscope/ms-swift#6766",
    "SAPO's gate was the sigmoid alone, without 4/tau: on fresh answers a quarter of the policy "
    "gradient times tau, so the temperature changed the step.",
    "minipost.methods.sapo:loss",
    "test_sapo.py::test_at_ratio_one_it_is_the_policy_gradient_at_any_temperature",
    "test_gradients.py::test_three_ways[sapo]",
    "test_several_passes.py::test_two_steps_are_the_formula_written_anew[sapo]")
def _(ours, logp, logp_old, adv, mask, *, tau_pos, tau_neg, count):
    tau = torch.full_like(adv, tau_neg).where(adv <= 0, tau_pos)
    return ours(logp, logp_old, adv * tau / 4, mask, tau_pos=tau_pos, tau_neg=tau_neg, count=count)


# ---- tools

@exhibit(
    "observation tokens trained on", "verl-project/verl#4412",
    "The mask of the labels went by the length of the response, so what a tool had written in it "
    "was learnt like what the policy had chosen.",
    "minipost.datasets.tools:Answer.add",
    "test_tools.py::test_the_mask_leaves_out_what_the_tool_wrote_and_nothing_else",
    "test_tools.py::test_a_call_is_answered_and_the_answer_goes_on",
    "test_tools.py::test_a_demonstration_is_masked_as_a_rollout_of_the_same_text_is")
def _(ours, answer, ids, logp, chosen):
    return ours(answer, ids, logp, True)


@exhibit(
    "advantages end at an observation", "verl-project/verl#2337",
    "GAE began anew at every token off the mask, so no call in front of an observation was paid "
    "for what came of it; others let each token of a tool discount the reward.",
    "minipost.ops:gae",
    "test_tools.py::test_advantages_pass_an_observation_as_if_it_were_not_there",
    "test_tools.py::test_returns_pass_an_observation_as_if_it_were_not_there")
def _(ours, reward, value, mask, gamma, lam):
    value = value.where(mask, 0.0)
    adv, next_adv, next_value = torch.zeros_like(value), 0.0, 0.0
    for t in reversed(range(value.shape[1])):
        delta = reward[:, t] + gamma * next_value - value[:, t]
        next_adv, next_value = (delta + gamma * lam * next_adv).where(mask[:, t], 0.0), value[:, t]
        adv[:, t] = next_adv
    return adv


@exhibit(
    "text encoded anew after a call", "huggingface/trl#5144",
    "After a tool's answer the whole text was encoded once more, which gave other ids than were "
    "sampled; mask and log-probs no longer fitted them.",
    "minipost.datasets.tools:with_tool",
    "test_tools.py::test_ids_that_were_sampled_stay_as_they_are")
def _(ours, complete, vocabulary, task, problems, prompts, group_size, room, stop):
    def anew(asked, group_size, turn, room):
        if turn:
            asked = [prompts[0][:1] + vocabulary.response(vocabulary.decode(ids[1:]))[:-1]
                     for ids in asked]
        return complete(asked, group_size, turn, room)

    return ours(anew, vocabulary, task, problems, prompts, group_size, room, stop)


# ---- answers that are begun

@exhibit(
    "a given beginning is learnt", "modelscope/ms-swift#10106",
    "A prefix of the response was prompt for the sampler and answer for training, so tokens that "
    "the policy never chose were learnt; where they were unlikely, they decided the ratio.",
    "minipost.run:Run.rollout",
    "test_satori.py::test_the_mask_begins_behind_the_restart",
    "test_satori.py::test_a_beginning_gets_no_gradient_of_its_own")
def _(ours, run, problems, group_size, *, temperature, purpose, corrected):
    rollout = ours(run, problems, group_size, temperature=temperature, purpose=purpose,
                   corrected=corrected)
    mask = rollout.mask.clone()
    for row, k in enumerate(rollout.prompt.tolist()):
        if begun := getattr(problems[k], "begun", ""):
            first = mask[row].tolist().index(True)
            mask[row, first - len(run.vocabulary.response(begun)) + 1 : first] = True
    return replace(rollout, mask=mask)


# ---- KL

@exhibit(
    "KL maximised", "mll-lab-nu/RAGEN#58",
    "The KL term had the sign of a gain, so a run was paid for leaving its reference.",
    "minipost.methods.ppo:token_rewards",
    "test_ppo.py::test_token_rewards",
    "test_proof.py::test_at_the_optimum_a_step_is_zero_where_it_is_proved_to_be[ppo]",
    "test_proof.py::test_the_mean_step_leads_to_the_optimum[ppo]")
def _(ours, score, logp, logp_ref, mask, beta):
    return ours(score, logp, logp_ref, mask, -beta)


@exhibit(
    "KL ratio inverted", "walkinglabs/hands-on-modern-rl#27",
    "A textbook's k3 took log pi/ref for log ref/pi; on samples of pi that estimates no KL.",
    "minipost.ops:kl_k3",
    "test_ops.py::test_k3_is_unbiased_and_its_gradient_is_the_other_kl")
def _(ours, logp, logp_ref):
    return ours(logp_ref, logp)


@exhibit(
    "KL of padding", "natolambert/rlhf-book#216",
    "Padding paid for KL too, and through the returns real tokens paid for the padding behind "
    "them.",
    "minipost.methods.ppo:token_rewards",
    "test_ppo.py::test_token_rewards")
def _(ours, score, logp, logp_ref, mask, beta):
    return ours(score, logp, logp_ref, mask, beta).where(mask, -beta * (logp - logp_ref))


@exhibit(
    "controller fed another KL", "CarperAI/trlx#361",
    "The adaptive controller was given a KL that was not the one it was to steer, and never met "
    "its target.",
    "minipost.methods.ppo:optimise",
    "test_ppo.py::test_the_price_of_kl_is_the_beta_of_its_step")
def _(ours, run, cfg, first):
    adapted, before = ours.__globals__["adapted"], run.tokens

    def by_the_kl_of_a_token(beta, kl_per_answer, answers, cfg):
        nonlocal before
        tokens, before = run.tokens - before, run.tokens
        return adapted(beta, kl_per_answer * answers / tokens, answers, cfg)

    with patch.dict(ours.__globals__, adapted=by_the_kl_of_a_token):
        yield from ours(run, cfg, first)


@exhibit(
    "k1 as a loss", "OpenRLHF/OpenRLHF#1309",
    "The plain log-ratio estimates KL, but its gradient is zero on average: as a loss it holds "
    "nothing.",
    "minipost.ops:kl_k3",
    "test_grpo.py::test_grpo_pays_beta_for_the_kl_that_it_names[k3]")
def _(ours, logp, logp_ref):
    return logp - logp_ref


# ---- sampler and trainer

@exhibit(
    "sampled at another temperature", "huggingface/trl#3029",
    "Log-probs left the sampling temperature out, so those of the trainer were of another "
    "distribution than the sampler's.",
    "minipost.rollout:readings",
    "test_rollout.py::test_recorded_logp_equals_recomputed",
    "test_grpo.py::test_the_ratio_is_one_before_the_first_update")
def _(ours, model, seqs, temperature, *options, **how):
    return ours(model, seqs, 1.0, *options, **how)


@exhibit(
    "top-k in the sampler alone", "huggingface/trl#6789",
    "The sampler's log-probs were renormalised over the tokens that it kept, the trainer's over "
    "all; the ratio held the difference.",
    "minipost.rollout:next_logp",
    "test_rollout.py::test_recorded_logp_equals_recomputed",
    "test_rollout.py::test_samples_follow_the_models_distribution")
def _(ours, logits, temperature):
    kept = logits >= logits.topk(5).values[:, -1:]
    return ours(logits.where(kept, -torch.inf), temperature)


@exhibit(
    "positions count the padding", "OpenRLHF/OpenRLHF#217",
    "Padding on the left moved the positions, so the same tokens had other log-probs in another "
    "batch.",
    "minipost.engine.tree:Tree.__init__",
    "test_rollout.py::test_recorded_logp_equals_recomputed",
    "test_tree.py::test_every_sample_stands_at_the_logits_of_its_own_tokens")
def _(ours, tree, *args, **options):
    ours(tree, *args, **options)
    tree.lengths = torch.full_like(tree.lengths, int(tree.lengths.max()))  # positions go on from it


@exhibit(
    "padding attended to", "ml-explore/mlx-lm#1906",
    "The mask of the padding was lost on its way, and every step attended to pads as to words.",
    "minipost.engine.tree:Tree.__init__",
    "test_rollout.py::test_recorded_logp_equals_recomputed",
    "test_tree.py::test_every_sample_stands_at_the_logits_of_its_own_tokens")
def _(ours, tree, *args, **options):
    ours(tree, *args, **options)
    tree.bias = None
    if tree.shared is not None:
        tree.shared.bias = None


@exhibit(
    "draws by place in the batch", "vllm-project/vllm#51226",
    "A request with a seed drew other tokens in every run, by what else was in its batch.",
    "minipost.rollout:uniforms",
    "test_rollout.py::test_what_is_drawn_does_not_depend_on_batch_order_or_neighbours")
def _(ours, prompts, *rest):
    return ours([[place] for place in range(len(prompts))], *rest)


@exhibit(
    "a softmax in half precision", "jingyaogong/minimind#814",
    "Sampling took its softmax in float32, training in bfloat16; the ratio was off by a hundredth "
    "before any update.",
    "minipost.rollout:distribution",
    "test_rollout.py::test_log_probs_of_a_bfloat16_model_are_taken_in_float32")
def _(ours, model, seqs, temperature, *options):
    return torch.log_softmax(model(seqs.inputs)[seqs.mask] / temperature, -1)


@exhibit(
    "one seed for the whole group", "vllm-project/vllm#11898",
    "With a seed set, all samples of a prompt drew the same numbers: a group of identical "
    "answers.",
    "minipost.rollout:uniforms",
    "test_rollout.py::test_seed_step_prompt_and_sample_each_change_the_draw",
    "test_rollout.py::test_samples_follow_the_models_distribution")
def _(ours, prompts, copies, *rest):
    return ours(prompts, 1, *rest).repeat_interleave(copies, 0)


@exhibit(
    "key heads tiled instead of repeated", "ekzhang/jax-js#180",
    "With grouped queries each query head was given another one's keys; nothing has a wrong "
    "shape, only every output is wrong.",
    "minipost.engine.functions:attention",
    "test_gpt.py::test_explicit_attention_equals_the_fused_one")
def _(ours, q, k, v, bias, explicit, *prefix):
    share = q.shape[1] // k.shape[1] if explicit else 1
    return ours(q, k.repeat(1, share, 1, 1), v.repeat(1, share, 1, 1), bias, explicit, *prefix)


@exhibit(
    "one EOS of several", "huggingface/trl#7039",
    "Models that declare several EOS ids end their turns with another one than the tokenizer "
    "names: what was sampled after it stayed in the loss.",
    "minipost.rollout:generate",
    "test_run.py::test_what_else_ends_a_response")
def _(ours, *args, eos, **options):
    return ours(*args, eos={min(eos)}, **options)


# ---- policy gradients

@exhibit(
    "optimistic clip", "jvmncs/safe-grid-agents#28",
    "A minus sign was drawn through the minimum, which made a maximum of it: the clip held "
    "nothing back.",
    "minipost.ops:clipped_surrogate",
    "test_ops.py::test_clipped_surrogate_and_its_gradient",
    "test_gradients.py::test_three_ways[ppo]",
    "test_ppo.py::test_the_policy_part_is_pessimistic_importance_sampling")
def _(ours, logp, logp_old, adv, *clip):
    return -ours(logp, logp_old, -adv, *clip)


@exhibit(
    "old values of the new critic", "tensorflow/agents#352",
    "What values were held near was computed by the critic that was being trained, so their clip "
    "never acted.",
    "minipost.methods.ppo:optimise",
    "test_ppo.py::test_values_are_held_near_those_of_the_rollout_whatever_was_learnt_since")
def _(ours, run, cfg, first):
    loss = ours.__globals__["loss"]

    def with_values_of_now(logp, value, logp_old, value_old, *rest, **options):
        return loss(logp, value, logp_old, value.detach(), *rest, **options)

    with patch.dict(ours.__globals__, loss=with_values_of_now):
        yield from ours(run, cfg, first)


@exhibit(
    "returns of whitened advantages", "NovaSky-AI/SkyRL#773",
    "What was handed on as returns had been normalised with the advantages.",
    "minipost.ops:gae",
    "test_ppo.py::test_a_step_learns_from_what_the_docstring_says")
def _(ours, reward, value, mask, *factors):
    from minipost.ops import whiten
    return whiten(ours(reward, value, mask, *factors), mask)  # returns are this and the values


@exhibit(
    "padding whitened", "NovaSky-AI/SkyRL#1305",
    "The mean of advantages was taken over padding as well, so how much of it there was shifted "
    "all of them.",
    "minipost.ops:whiten",
    "test_ops.py::test_whitening")
def _(ours, x, mask):
    return ours(x.where(mask, 0.0), torch.ones_like(mask)).where(mask, 0.0)


@exhibit(
    "reward on the last column", "huggingface/trl#3750",
    "The score was put on padding behind EOS and not on the EOS.",
    "minipost.ops:at_last",
    "test_ops.py::test_the_last_chosen_token",
    "test_ppo.py::test_token_rewards")
def _(ours, x, mask):
    return ours(x, torch.ones_like(mask))


@exhibit(
    "values of what nobody chose", "radixark/miles#1827",
    "Advantages were carried on through tokens that are not trained on, and the reward decayed on "
    "its way.",
    "minipost.ops:gae",
    "test_ops.py::test_gae_is_linear_and_blind_to_padding",
    "test_ops.py::test_gae_equals_its_sum_and_is_zero_off_the_mask")
def _(ours, reward, value, mask, gamma, lam):
    behind = pad(value.where(~mask, 0.0)[:, 1:], (0, 1))  # V of the next token, where it is padding
    return ours(reward + gamma * behind, value, mask, gamma, lam)


@exhibit(
    "entropy punished", "nebuly-ai/optimate#250",
    "The bonus on entropy had the sign of a price.",
    "minipost.methods.a2c:loss",
    "test_gradients.py::test_three_ways[a2c]",
    "test_a2c.py::test_a2c_piece_by_piece")
def _(ours, logp, entropy, *rest, **options):
    return ours(logp, -entropy, *rest, **options)


@exhibit(
    "policy loss that teaches the critic", "astariul/encode-attend-navigate-pytorch#3",
    "Advantages kept their gradient, so the critic learnt to please the policy's loss.",
    "minipost.methods.a2c:loss",
    "test_gradients.py::test_three_ways[a2c]")
def _(ours, logp, entropy, value, adv, *rest, **options):
    return ours(logp, entropy, value, adv + value.detach() - value, *rest, **options)


@exhibit(
    "one noise for all matrices", "VsonicV/es-at-scale#46",
    "The seed of a policy was set anew for every parameter, so matrices of one shape were moved "
    "alike and the cloud of policies was flat.",
    "minipost.methods.es:noise",
    "test_es.py::test_noise_is_normal_its_own_for_each_weight_and_the_same_again")
def _(ours, name, params):
    return torch.cat([ours(name, [p]) for p in params])


@exhibit(
    "one over the group left out", "tajwarfahim/maxrl#1",
    "MaxRL's advantage was not divided by the number of answers, and somebody asked: where it is "
    "summed over answers, as in the paper's algorithm, the step grows with the group.",
    "minipost.methods.maxrl:over_mean",
    "test_proof.py::test_the_mean_step_is_what_it_is_proved_to_be[maxrl]",
    "test_maxrl.py::test_the_mean_step_is_the_series_of_pass_at_k_up_to_one_less_than_the_group",
    "test_maxrl.py::test_advantages_of_a_group")
def _(ours, right, group_size):
    return ours(right, group_size) * group_size


@exhibit(
    "constraint not checked", "joschu/modular_rl#29",
    "TRPO's line search looked at the gain alone, so a step could be as large as it liked.",
    "minipost.methods.trpo:line_search",
    "test_trpo.py::test_the_line_search_takes_the_first_that_qualifies_and_else_the_old",
    "test_trpo.py::test_a_step_that_is_too_long_is_shortened_or_not_taken")
def _(ours, evaluate, old, step, delta, *rest):
    return ours(evaluate, old, step, math.inf, *rest)


@exhibit(
    "failed search kept", "thu-ml/tianshou#1287",
    "When no step of the line search qualified, the last one that had been tried stayed in the "
    "weights.",
    "minipost.methods.trpo:line_search",
    "test_trpo.py::test_the_line_search_takes_the_first_that_qualifies_and_else_the_old",
    "test_trpo.py::test_a_search_that_finds_nothing_restores_the_weights_bit_for_bit")
def _(ours, evaluate, *rest):
    last = []

    def watched(weights):
        last[:] = weights, *evaluate(weights)
        return last[1:]

    _, tries, *_ = ours(watched, *rest)
    weights, gain, kl = last
    return weights, tries, gain, kl


@exhibit(
    "rewards taken for returns", "natolambert/rlhf-book#216",
    "The advantage was the token's own reward less its value: nothing of a score at the end "
    "reached the tokens before.",
    "minipost.ops:gae",
    "test_ops.py::test_gae_at_both_ends_of_lambda",
    "test_ops.py::test_the_true_value_leaves_an_expected_advantage_of_zero")
def _(ours, reward, value, mask, gamma, lam):
    return (reward - value).where(mask, 0.0)


# ---- tokens and masks

@exhibit(
    "EOS out of the loss", "NVIDIA-NeMo/Megatron-Bridge#4660",
    "Padding was masked by its id, which was EOS's too, so no EOS was learnt and the model never "
    "stopped.",
    "minipost.rollout:generate",
    "test_rollout.py::test_recorded_logp_equals_recomputed")
def _(ours, *args, eos, **options):
    rollout = ours(*args, eos=eos, **options)
    mask = rollout.mask & ~torch.isin(rollout.targets, torch.tensor(list(eos)))
    return replace(rollout, mask=mask, logp=rollout.logp.where(mask, 0.0),
                   finished=torch.zeros_like(rollout.finished))  # which is read off the EOS


@exhibit(
    "EOS of demonstrations out of the loss", "huggingface/trl#1623",
    "The same of supervised fine-tuning: models talked on until they were cut off.",
    "minipost.rollout:pack",
    "test_rollout.py::test_pack_marks_the_response_and_its_eos_only")
def _(ours, *args):
    seqs = ours(*args)
    return replace(seqs, mask=seqs.mask & pad(seqs.mask[:, 1:], (0, 1)))  # less each last one


@exhibit(
    "prompt learnt", "huggingface/trl#3484",
    "The mask of completions was dropped on the way to a faster kernel, and prompts were silently "
    "trained on.",
    "minipost.rollout:pack",
    "test_rollout.py::test_pack_marks_the_response_and_its_eos_only")
def _(ours, *args):
    seqs = ours(*args)
    return replace(seqs, mask=seqs.mask.flip(1).cumsum(1).flip(1) > 0)  # all up to each last one


@exhibit(
    "no shift by one", "lucidrains/PaLM-rlhf-pytorch#31",
    "Log-probs of answers were gathered from positions beside those that predict them.",
    "minipost.rollout:Sequences.targets",
    "test_rollout.py::test_logprobs_are_about_the_token_they_predict",
    "test_rollout.py::test_recorded_logp_equals_recomputed")
def _(ours, seqs):
    return seqs.inputs


@exhibit(
    "BOS between prompt and answer", "axolotl-ai-cloud/axolotl#1616",
    "The tokenizer put BOS before chosen and rejected answers, which stand behind a prompt that "
    "has its own.",
    "minipost.tokenizer:Vocabulary.response",
    "test_checkpoint.py::test_a_prompt_begins_with_bos_and_an_answer_ends_with_eos_and_nowhere_else")
def _(ours, vocabulary, text, control=False):
    return [*vocabulary.before, *ours(vocabulary, text, control)]


# ---- reward models

@exhibit(
    "score read at a pad", "EleutherAI/gpt-neox#1285",
    "The score was read at the last token of the row, which is padding for all answers but the "
    "longest.",
    "minipost.rollout:final_score",
    "test_reward_models.py::test_the_score_is_read_at_the_last_real_token")
def _(ours, model, seqs):
    return model(seqs.tokens)[:, -1]


@exhibit(
    "tokens without a label are right", "huggingface/trl#2127",
    "The mark of a token without a label (-100) was cast to True, so nearly all tokens taught the "
    "process reward model to call them right, and its accuracy began high.",
    "minipost.methods.math_shepherd:step_ends",
    "test_math_shepherd.py::"
    "test_an_answer_goes_on_from_the_token_that_ends_a_step_and_is_judged_whole")
def _(ours, run, rollout):
    return rollout.mask & (ours(run, rollout) | (rollout.mask.cumsum(1) < 2))


@exhibit(
    "clicks times the chance to be seen", "facebookresearch/StarSpace#252",
    "Asked what to do about the bias of positions, the answer was to weigh an example by the "
    "chance that its place is looked at; that doubles the bias, which dividing by it removes.",
    "minipost.methods.clicks:weigh",
    *(f"test_clicks.py::test_the_mean_weight_is_the_answers_own_wherever_it_stands[{eta}-shown{k}]"
      for eta in (1.0, 2.0) for k in range(3)),
    "test_proof.py::test_the_mean_step_is_what_it_is_proved_to_be[clicks]")
def _(ours, clicked, place, cfg):
    from minipost.methods.clicks import propensity
    return clicked * propensity(place, cfg.eta)


@exhibit(
    "normalised on the policy of the day", "vwxyzjn/lm-human-preference-details#8",
    "After the reward model had learnt, its score was normalised on answers of the network that it "
    "was made of and not of the fixed reference, so what a nat of KL costs moved with it.",
    "minipost.run:Run.score_by",
    "test_iterated_rlhf.py::test_in_every_round_the_references_answers_have_score_0_and_deviation_1")
def _(ours, run, model, module=None):
    return ours(run, model)


@exhibit(
    "judge asked in one order", "harness/harness-evals#10",
    "The answer of a run always stood first before the judge, and judges favour the first place.",
    "minipost.methods.direct_rlaif:mean_lead",
    "test_direct_rlaif.py::test_a_judge_that_sees_places_alone_gives_every_answer_nothing")
def _(ours, lead, group_size):
    return lead.sum(2).flatten() / (group_size - 1)


@exhibit(
    "one rule that does not apply spoils all", "modelscope/ms-swift#8123",
    "Rewards that are normalised apart took the plain mean of the group, so one None made all "
    "advantages NaN; training went on and learnt nothing.",
    "minipost.methods.gdpo:apart",
    "test_gdpo.py::test_a_rule_that_ties_or_does_not_apply_says_nothing")
def _(ours, found, weights, group_size):
    parts = [w * found[name].view(-1, group_size) for name, w in weights.items()]
    return sum((x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-4)
               for x in parts).flatten()


@exhibit(
    "score read before EOS", "huggingface/transformers#35352",
    "The first token with the id of padding was taken for its beginning; where that is EOS too, "
    "the score is read before it.",
    "minipost.rollout:final_score",
    "test_reward_models.py::test_the_score_is_read_at_the_last_real_token",
    "test_prm.py::test_step_scores_end_with_the_final_score")
def _(ours, model, seqs):
    one_early = pad(seqs.mask[:, 1:], (0, 1))
    return ours(model, replace(seqs, mask=one_early))


@exhibit(
    "steps judged one token off", "opendilab/LightRFT#53",
    "Rewards of steps landed one token beside the ends of the steps, in every trajectory that was "
    "looked at.",
    "minipost.rollout:step_scores",
    "test_prm.py::test_step_scores_end_with_the_final_score")
def _(ours, model, seqs):
    return model(seqs.tokens)[:, :-1]


# ---- preferences

@exhibit(
    "preference loss without its minus", "linkedin/Liger-Kernel#481",
    "The preference term had the wrong sign, so the loss was negative and fell as the loser won.",
    "minipost.methods.dpo:loss",
    "test_gradients.py::test_three_ways[dpo]",
    "test_preference_losses.py::test_at_the_reference")
def _(ours, *args, **options):
    value, stats = ours(*args, **options)
    return -value, {**stats, "loss": -stats["loss"]}


@exhibit(
    "mean log-prob in DPO", "huggingface/trl#789",
    "People who took means over tokens instead of sums, at a beta made for sums, got models that "
    "said nothing sensible.",
    "minipost.methods.dpo:row_sums",
    "test_dpo.py::test_dpo_is_bradley_terry_on_log_ratios",
    "test_proof.py::test_the_mean_step_is_what_it_is_proved_to_be[dpo]")
def _(ours, x, mask):
    return ours(x, mask) / mask.sum(1)


@exhibit(
    "mean log-prob in IPO", "huggingface/trl#1265",
    "IPO's sums were changed into means, so the same tau asks for another gap than the paper's.",
    "minipost.methods.ipo:row_sums",
    "test_proof.py::test_the_mean_step_is_what_it_is_proved_to_be[ipo]")
def _(ours, x, mask):
    return ours(x, mask) / mask.sum(1)


@exhibit(
    "pairs of equal answers", "natolambert/rlhf-book#503",
    "Cutting answers made 352 of 5000 pairs equal on both sides: a loss of log 2 for ever, and no "
    "gradient.",
    "minipost.datasets.preferences:ranked_pairs",
    "test_preferences.py::test_ranked_pairs")
def _(ours, rollout, label):
    from minipost.rollout import Pairs
    first = torch.arange(0, len(rollout), 2)[label != 0]
    label = label[label != 0]
    return Pairs(rollout[first + (label < 0)], rollout[first + (label > 0)])


@exhibit(
    "log of zero in ORPO", "huggingface/trl#4763",
    "log(1 - exp l) cancels where an answer is nearly certain; one NaN and all weights are gone.",
    "minipost.methods.orpo:log_odds",
    "test_orpo.py::test_odds_of_near_certain_and_hopeless_answers")
def _(ours, mean):
    return mean - torch.log(1 - torch.exp(mean))


@exhibit(
    "KTO's z0 of its own answers", "huggingface/trl#1911",
    "Answers were put to other prompts by turning the batch round, which leaves the middle one "
    "with its own.",
    "minipost.methods.kto:mismatched",
    "test_kto.py::test_mismatched_answers_belong_to_the_next_prompt")
def _(ours, seqs, *rest):
    return seqs


@exhibit(
    "OREO without what follows", "the survey, sec. 3.2.7 (errata.md)",
    "The policy's residual was printed without the log-ratios of later actions; the optimum does "
    "not satisfy that.",
    "minipost.methods.oreo:residuals",
    "test_oreo.py::test_the_residual_is_zero_at_the_soft_optimum_on_every_trajectory",
    "test_proof.py::test_at_the_optimum_a_step_is_zero_where_it_is_proved_to_be[oreo, by token, "
    "alpha 0]")
def _(ours, logp, value, logp_held, value_held, logp_ref, *rest):
    _, for_value = ours(logp, value, logp_held, value_held, logp_ref, *rest)
    for_policy, _ = ours(logp, value, logp_ref, value_held, logp_ref, *rest)  # held log-ratios of 0
    return for_policy, for_value


@exhibit(
    "mixture turned round", "huggingface/trl#3043",
    "The mixture of generalised distillation weighed the student by what is the teacher's share, "
    "and the test agreed.",
    "minipost.methods.distill:mixture",
    "test_gradients.py::test_three_ways[distill]",
    "test_distill.py::test_distillation_is_zero_at_the_teacher_and_positive_elsewhere")
def _(ours, logp_all, logq_all, mix):
    return ours(logp_all, logq_all, 1 - mix)


@exhibit(
    "distilled the other way", "paiml/aprender#2153",
    "Forward KL was asked for and reverse KL computed.",
    "minipost.methods.distill:forward_kl",
    "test_gradients.py::test_three_ways[distill]",
    "test_proof.py::test_the_mean_step_is_what_it_is_proved_to_be[distill]",
    "test_distill.py::test_distillation_is_zero_at_the_teacher_and_positive_elsewhere")
def _(ours, logq_all, logp_all):
    return ours(logp_all, logq_all)


@exhibit(
    "reference of another pair", "Liquid4All/liquid-finetune#42",
    "The reference's log-probs were cached by row number; with the data dealt to ranks, rows were "
    "given another's.",
    "minipost.datasets.preferences:take_pairs",
    "test_preferences.py::test_a_files_reference_is_computed_once_and_is_that_of_each_pair")
def _(ours, pairs, rows, logps):
    taken, _ = ours(pairs, rows, logps)
    sides = taken.chosen, taken.rejected
    return taken, [x[: len(rows), : side.mask.shape[1]] for x, side in zip(logps, sides)]


@exhibit(
    "z0 of the last batch", "PKU-Alignment/align-anything#216",
    "A loop over batches overwrote KTO's z0 instead of adding to it.",
    "minipost.run:Run.for_all",
    "test_methods.py::test_a_methods_own_step_does_not_depend_on_how_it_is_cut[kto]")
def _(ours, run, f, seqs, *rest):
    last = run.micro_batches(range(len(seqs)), seqs)[-1]
    share = torch.zeros(len(seqs), 1, device=seqs.mask.device)
    share[last] = len(seqs) / len(last)  # in a mean over all rows
    return [found * share for found in ours(run, f, seqs, *rest)]


# ---- runs and files

@exhibit(
    "reward overwritten by advantage", "radixark/miles#737",
    "The metric named rewards was recorded after they had been normalised: a curve that cannot "
    "rise.",
    "minipost.methods.grpo:describe",
    "test_methods.py::test_the_reward_that_a_step_logs_is_what_its_answers_earned[grpo]")
def _(ours, rollout, reward, size):
    from minipost.ops import group_normalised
    return ours(rollout, group_normalised(reward, size), size)


@exhibit(
    "metrics of the last micro-batch", "karpathy/nanochat#52",
    "The loss that was logged was that of the last micro-batch alone.",
    "minipost.measure.meter:Meter.add",
    "test_meter.py::test_the_meter_adds_pieces_and_averages_updates",
    "test_methods.py::test_a_methods_own_step_does_not_depend_on_how_it_is_cut[grpo]")
def _(ours, meter, **pieces):
    meter.sums |= {name: float(piece) for name, piece in pieces.items()}


@exhibit(
    "random numbers begin anew on resume", "modelscope/ms-swift#9935",
    "A resumed run seeded its generators again after it had restored them, and drew what it had "
    "drawn before.",
    "minipost.run:Run.restore",
    "test_resume.py::test_stopped_after_every_step[sft]",
    "test_resume.py::test_a_run_resumed_after_any_step_ends_with_the_same_bits")
def _(ours, run, *saved):
    ours(run, *saved)
    run.step = 0


@exhibit(
    "rope_theta in one place", "Open-Athena/MarinFold#184",
    "A config.json of transformers 5 was read by code for 4, which took 10,000 for the rotary "
    "base without a word.",
    "minipost.families:theta",
    "test_checkpoint.py::test_the_rotary_base_stands_where_either_reader_looks_for_it")
def _(ours, row, raw, parameters, path):
    return ours(row, raw, {}, path)


@exhibit(
    "weights that others cannot read", "safetensors/safetensors#782",
    "Files that are written beside their place and then moved kept the mode of temporary files.",
    "minipost.files:publish",
    "test_checkpoint.py::test_files_have_the_usual_mode")
def _(ours, path, write, aside):
    ours(path, write, aside)
    os.chmod(path, 0o600)


@exhibit(
    "old weights gone before the new are whole", "CanReader/FastNN#13",
    "A crash while a checkpoint was saved took the previous one with it.",
    "minipost.files:publish",
    "test_checkpoint.py::test_a_failed_write_changes_nothing")
def _(ours, path, write, aside):
    Path(path).unlink(missing_ok=True)
    ours(path, write, aside)


@exhibit(
    "the same order in every epoch", "huggingface/trl#2337",
    "The data were not shuffled anew, so each epoch showed the same batches again.",
    "minipost.run:Run.deal",
    "test_run.py::test_a_finite_list_is_gone_through_in_epochs")
def _(ours, run, rows, n, since):
    with run.at(since):
        epoch = ours(run, rows, len(rows), since)
    start = (run.step - since) * n
    return [epoch[place % len(rows)] for place in range(start, start + n)]


@exhibit(
    "Adam forgets on resume", "awslabs/keys_values#101",
    "A checkpoint held the weights alone, and the optimiser began afresh after every stop.",
    "minipost.optim:Learner.restore",
    "test_resume.py::test_stopped_after_every_step[sft]",
    "test_resume.py::test_a_run_resumed_after_any_step_ends_with_the_same_bits[a2c]")
def _(ours, learner, tensors, numbers):
    weights = {"weights": tensors["weights"]}
    ours(learner, {name: torch.zeros_like(x) for name, x in tensors.items()} | weights, numbers)


# ---- rewards of steps, and rounds

@exhibit(
    "steps that nobody pays", "mll-lab-nu/RAGEN#128",
    "The environments gave a reward for every step, and GRPO's advantage was made of the last one "
    "alone.",
    "minipost.methods.process_grpo:advantages",
    "test_process_grpo.py::test_a_token_is_credited_with_the_steps_that_end_at_it_or_later",
    "test_process_grpo.py::test_steps_change_the_gradient",
    "test_several_passes.py::test_two_steps_are_the_formula_written_anew[process-grpo]")
def _(ours, reward, ends, mask, size):
    last = mask & (mask.flip(1).cumsum(1).flip(1) == 1)
    return ours(reward, ends & last, mask, size)


@exhibit(
    "a step's reward one token late", "opendilab/LightRFT#53",
    "The reward of a step fell on the token behind its end, in all of 16 answers that were looked "
    "at; training went on all the same.",
    "minipost.methods.prm:step_columns",
    "test_prm.py::test_steps_of_a_toy_are_labelled_by_hand")
def _(ours, run, rollout):
    return [[column + 1 for column in columns] for columns in ours(run, rollout)]


@exhibit(
    "a reference that stays", "lsdefine/simple_GRPO#32",
    "The paper renews the reference in every round; a user found no place in the code where that "
    "happens, and there was none.",
    "minipost.run:Run.forget",
    "test_iterative_grpo.py::test_a_round_renews_the_reference_and_the_score")
def _(ours, run, key):
    pass


@exhibit(
    "the mask forgets the prefix", "zai-org/ChatGLM3#359",
    "The mask of attention had the length of the text alone, so with a prefix in front tokens saw "
    "the wrong keys.",
    "minipost.engine.functions:behind",
    "test_prefix.py::test_the_equation_and_its_derivative_by_hand",
    "test_prefix.py::test_packed_rows_see_it")
def _(ours, prefix, k, v, bias):
    k, v, bias = ours(prefix, k, v, bias)
    return k, v, bias.roll(-len(prefix), -1)


@exhibit(
    "a last block that is not whole", "bitsandbytes-foundation/bitsandbytes#1884",
    "Where 64 did not divide a matrix, what happened to stand behind it counted in the scale of "
    "its last block.",
    "minipost.engine.coded:encode",
    "test_coded.py::test_a_number_gets_the_nearest_level[4]")
def _(ours, x, bits, block):
    codes, scales = ours(pad(x.flatten(), (0, -x.numel() % block), value=9.0), bits, block)
    return codes, scales


# ---- answering at test time

@exhibit(
    "an article has no vote", "stanfordnlp/dspy#10066",
    "Answers were normalised before they voted, which takes articles away; so of multiple choices "
    "the answer A had no vote, and B won by one to three.",
    "minipost.measure.stats:vote",
    "test_stats.py::test_a_vote_counts_what_is_stated_in_any_order")
def _(ours, answers, weights):
    return ours([None if answer in ("a", "an", "the") else answer for answer in answers], weights)


@exhibit(
    "a vote for each spelling", "facebookresearch/deepconf#15",
    "Votes were counted by the text of the answer, so 0.5 and 1/2 stood against each other.",
    "minipost.tasks.base:Task.ballot",
    "test_tasks_answers.py::test_a_right_answer_is_right_in_every_spelling")
def _(ours, self, text):
    return None if ours(self, text) is None else text


@exhibit(
    "best of k drawn again and again", "verl-project/verl#7240",
    "The best of k was estimated with replacement, so with k of k samples one right answer of four "
    "counted 0.68 instead of 1.",
    "minipost.measure.stats:pass_at_k",
    "test_stats.py::test_pass_at_k_is_unbiased_and_rises_with_k")
def _(ours, n, c, k):
    return 1 - (1 - c / n) ** k


@exhibit(
    "only the leaf learns", "bcollazo/deckgym-core#275",
    "A simulation's value was added to the leaf and to nothing above it, so the move at the root "
    "knew nothing of what was found below.",
    "minipost.test_time.mcts:select",
    "test_mcts.py::test_visits_add_up_and_values_stay_within_the_worths",
    "test_searches_anew.py::test_the_tree_is_the_one_that_the_rule_grows")
def _(ours, node, c):
    return ours(node, c)[-1:]


@exhibit(
    "a mean over the parent's visits", "zxqfl/mcts#2",
    "The value of a child was divided by the visits of its parent, so it fell with every visit to "
    "a sibling.",
    "minipost.test_time.uct:select",
    "test_searches_anew.py::test_roll_outs_grow_the_tree_that_the_rule_grows")
def _(ours, root, c):
    way = [root]
    while way[-1].children:
        n = way[-1].visits
        way.append(max(way[-1].children, key=lambda child: child.total / n + c * math.sqrt(
            2 * math.log(n) / child.visits) if child.visits else math.inf))
    return way


@exhibit(
    "a visit that nobody made", "gc-os-ai/pyaptamer#483",
    "A new node began with one visit, so the first value that it got counted half.",
    "minipost.test_time.uct:Node.__init__",
    "test_uct.py::test_visits_add_up_and_the_answer_is_the_best_that_was_written")
def _(ours, self, *values):
    ours(self, *values)
    self.visits += 1


@exhibit(
    "a budget that begins too late", "simplescaling/s1#120",
    "What the first thought took was subtracted from the budget only behind the question whether "
    "any was left, so a thought went on for one round beyond it.",
    "minipost.test_time.budget_forcing:search",
    "test_budget_forcing.py::test_the_budget_is_kept_and_then_the_answer_is_asked_for_at_once",
    "test_searches_anew.py::test_a_thought_is_as_long_as_it_is_forced_to_be")
def _(ours, prompts, step, sample, *, budget, **options):
    return ours(prompts, step, sample, budget=budget + 1, **options)


@exhibit(
    "a thought that is cut and not answered", "simplescaling/s1#127",
    "A user saw thoughts end at the budget, and behind them no answer.",
    "minipost.test_time.budget_forcing:search",
    "test_budget_forcing.py::test_the_budget_is_kept_and_then_the_answer_is_asked_for_at_once")
def _(ours, prompts, step, sample, *, end, **options):
    def silent(texts, n):
        return [[""] * n for _ in texts]

    return [(text.removesuffix(end), lines, put)
            for text, lines, put in ours(prompts, step, silent, end=end, **options)]


@exhibit(
    "what reaches the depth is lost", "maitrix-org/llm-reasoners#31",
    "A beam that had made its last allowed step was not among the answers to choose from.",
    "minipost.test_time.beam:beam",
    "test_beam.py::test_finished_answers_wait_for_better_ones_and_win_over_unfinished")
def _(ours, prompts, sample, worth, *, mark, **options):
    found = ours(prompts, sample, worth, mark=mark, **options)
    return ["" if text.endswith(mark) else text for text in found]


# ---- what the gallery itself is tested with

CONTROLS = (
    Exhibit("no bug", "", "Ours, in every place of the museum at once.",
            " ".join(dict.fromkeys(exhibit.where for exhibit in EXHIBITS)),
            lambda ours, *args, **options: ours(*args, **options)),
    Exhibit("does not run", "", "Ours, without its arguments.", "minipost.ops:kl_k3",
            lambda ours, *args: ours()),
    Exhibit("nowhere", "", "Of a name that we do not have.", "minipost.ops:no_such_name",
            lambda ours: ours),
)
