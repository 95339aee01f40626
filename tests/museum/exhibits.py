"""The exhibits: bugs that other libraries had, each as a small change to our own code.

Threads are repository#number.  Most were mended where they were found; some were argued about, and a few
were questions.  They are told here for what can go wrong, not for who did it.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Exhibit:
    """A historic bug.

    thread      where it was reported
    story       what went wrong there, and what people saw
    file        ours; `ours` stands in it once, and `theirs` in its place is the bug
    caught_by   tests of the suite that fail on it, "test_file.py::name"
    """

    name: str
    thread: str
    story: str
    file: str
    ours: str
    theirs: str
    caught_by: tuple


EXHIBITS = (
    # ---- losses: what is divided by what
    Exhibit(
        "mean per micro-batch", "allenai/open-instruct#1161",
        "GRPO's loss was divided by the tokens of the micro-batch, so a token's weight depended "
        "on how a batch was cut.",
        "minipost/methods/grpo.py",
        "clip=cfg.clip, beta=cfg.beta, count=count)",
        "clip=cfg.clip, beta=cfg.beta, count=int(batch.mask.sum()))",
        ("test_methods.py::test_a_methods_own_step_does_not_depend_on_how_it_is_cut[grpo]",)),
    Exhibit(
        "mean per micro-batch of SFT", "ml-explore/mlx-lm#1413",
        "Gradients of per-micro-batch means were averaged, which favours short answers when "
        "lengths differ.",
        "minipost/methods/sft.py",
        "part.mask, count=count)",
        "part.mask, count=int(part.mask.sum()))",
        ("test_methods.py::test_a_methods_own_step_does_not_depend_on_how_it_is_cut[sft]",)),
    Exhibit(
        "one over length", "huggingface/trl#3138",
        "A long wrong answer was punished less per token than a short one; somebody's runs ended "
        "in long gibberish.",
        "minipost/methods/dr_grpo.py",
        "value = -masked_sum(gain, mask) / scale",
        "value = -(gain.where(mask, 0.0).sum(1) / mask.sum(1)).sum() / rows",
        ("test_proof.py::test_the_mean_step_is_what_it_is_proved_to_be[dr-grpo]",
         "test_gradients.py::test_three_ways[dr_grpo]")),
    Exhibit(
        "own reward in the baseline", "thinking-machines-lab/tinker-cookbook#135",
        "The group's mean holds the answer itself, so the gradient shrinks by (G-1)/G and the "
        "right learning rate depends on G.",
        "minipost/methods/rloo.py",
        " * (group / (group - 1))",
        "",
        ("test_proof.py::test_the_mean_step_is_what_it_is_proved_to_be[rloo]",
         "test_policy_gradient.py::test_rloo_is_unbiased_and_a_group_mean_shrinks_the_gradient",
         "test_policy_gradient.py::test_leaving_one_out_by_a_loop")),
    Exhibit(
        "no guard on a tie", "NVIDIA-NeMo/RL#1518",
        "Advantages were divided by a deviation of next to nothing and reached a million.",
        "minipost/methods/grpo.py",
        "return (gap / (deviation + 1e-4)).flatten()",
        "return (gap / deviation).flatten()",
        ("test_methods.py::test_a_tied_group_has_advantage_exactly_zero",
         "test_methods.py::test_group_advantages")),
    Exhibit(
        "residue of a tie", "NVIDIA-NeMo/RL#4158",
        "Equal rewards less their mean left a rounding residue, which normalising blew up to -2075.",
        "minipost/ops.py",
        "return gap.where((r != r[:, :1]).any(1, keepdim=True), 0.0)",
        "return gap",
        ("test_ops.py::test_group_centred_is_exactly_zero_for_ties",
         "test_policy_gradient.py::test_siblings_that_tie_have_advantage_exactly_zero")),
    Exhibit(
        "divided once more by the passes", "modelscope/ms-swift#10117",
        "The loss was a share of the whole step's mean already and was divided by the number of "
        "passes again: of four, a quarter of the gradient.",
        "minipost/methods/dapo.py",
        "value.backward()",
        "(value / -(-len(rows) // run.micro)).backward()",
        ("test_methods.py::test_a_methods_own_step_does_not_depend_on_how_it_is_cut[dapo]",)),
    Exhibit(
        "not a number times zero", "NovaSky-AI/SkyRL#1635",
        "Padding was masked by multiplying with zero; a NaN in a place that nobody looks at made "
        "the whole loss NaN.",
        "minipost/ops.py",
        "return x.where(mask, 0.0).sum()",
        "return (x * mask).sum()",
        ("test_ops.py::test_masked_sum_ignores_whatever_stands_off_the_mask",
         "test_gradients.py::test_what_stands_off_the_mask_has_no_part[sft]")),
    Exhibit(
        "one group for all prompts", "XU-YIJIE/grpo-flat#2",
        "Mean and deviation were taken over the answers to all prompts together, so every answer "
        "to an easy prompt looked good.",
        "minipost/methods/grpo.py",
        "gap = ops.group_centred(reward, group)",
        "gap = ops.group_centred(reward, len(reward)).view(-1, group)",
        ("test_methods.py::test_group_advantages",)),
    # ---- KL
    Exhibit(
        "KL maximised", "mll-lab-nu/RAGEN#58",
        "The KL term had the sign of a gain, so a run was paid for leaving its reference.",
        "minipost/methods/ppo.py",
        "(ops.at_last(score, mask) - beta * (logp - logp_ref))",
        "(ops.at_last(score, mask) + beta * (logp - logp_ref))",
        ("test_ppo.py::test_token_rewards",
         "test_proof.py::test_at_the_optimum_a_step_is_zero_where_it_is_proved_to_be[ppo]",
         "test_proof.py::test_the_mean_step_leads_to_the_optimum[ppo]")),
    Exhibit(
        "KL ratio inverted", "walkinglabs/hands-on-modern-rl#27",
        "A textbook's k3 took log pi/ref for log ref/pi; on samples of pi that estimates no KL.",
        "minipost/ops.py",
        "return torch.expm1(-gap) + gap",
        "return torch.expm1(gap) - gap",
        ("test_ops.py::test_k3_is_unbiased_and_its_gradient_is_the_other_kl",)),
    Exhibit(
        "KL of padding", "natolambert/rlhf-book#216",
        "Padding paid for KL too, and through the returns real tokens paid for the padding behind"
        " them.",
        "minipost/methods/ppo.py",
        "- beta * (logp - logp_ref)).where(mask, 0.0)",
        "- beta * (logp - logp_ref))",
        ("test_ppo.py::test_token_rewards",)),
    Exhibit(
        "controller fed another KL", "CarperAI/trlx#361",
        "The adaptive controller was given a KL that was not the one it was to steer, and never "
        "met its target.",
        "minipost/methods/ppo.py",
        "adapted(beta, per_answer, len(rollout), cfg)",
        'adapted(beta, metrics["kl"], len(rollout), cfg)',
        ("test_ppo.py::test_the_price_of_kl_is_the_beta_of_its_step",)),
    Exhibit(
        "k1 as a loss", "OpenRLHF/OpenRLHF#1309",
        "The plain log-ratio estimates KL, but its gradient is zero on average: as a loss it "
        "holds nothing.",
        "minipost/methods/grpo.py",
        "return ops.kl_k3(logp, logp_ref)",
        "return logp - logp_ref",
        ("test_methods.py::test_grpo_pays_beta_for_the_kl_that_it_names[k3]",)),
    # ---- sampler and trainer
    Exhibit(
        "sampled at another temperature", "huggingface/trl#3029",
        "Log-probs left the sampling temperature out, so those of the trainer were of another "
        "distribution than the sampler's.",
        "minipost/rollout.py",
        "token, pick(logp_all, token).to(logp.dtype)",
        "token, pick(next_logp(model.head(hidden), 1.0), token).to(logp.dtype)",
        ("test_rollout.py::test_recorded_logp_equals_recomputed",
         "test_run.py::test_the_ratio_is_one_before_the_first_update")),
    Exhibit(
        "top-k in the sampler alone", "huggingface/trl#6789",
        "The sampler's log-probs were renormalised over the tokens that it kept, the trainer's "
        "over all; the ratio held the difference.",
        "minipost/rollout.py",
        "return torch.log_softmax(logits / (temperature or 1.0), -1)",
        "return torch.log_softmax(logits.where(logits >= logits.topk(5).values[:, -1:], -torch.inf)\n"
        "                             / (temperature or 1.0), -1)",
        ("test_rollout.py::test_recorded_logp_equals_recomputed",
         "test_rollout.py::test_samples_follow_the_models_distribution")),
    Exhibit(
        "positions count the padding", "OpenRLHF/OpenRLHF#217",
        "Padding on the left moved the positions, so the same tokens had other log-probs in "
        "another batch.",
        "minipost/gpt.py",
        "here = cache.lengths + (cache.at - cache.width)",
        "here = torch.full_like(cache.lengths, cache.at)",
        ("test_rollout.py::test_recorded_logp_equals_recomputed",
         "test_gpt.py::test_cached_decoding_equals_the_full_forward")),
    Exhibit(
        "padding attended to", "ml-explore/mlx-lm#1906",
        "The mask of the padding was lost on its way, and every step attended to pads as to words.",
        "minipost/gpt.py",
        "hidden = column < (self.width - self.lengths)[:, None]",
        "hidden = column < (0 * self.lengths)[:, None]",
        ("test_rollout.py::test_recorded_logp_equals_recomputed",
         "test_gpt.py::test_cached_decoding_equals_the_full_forward")),
    Exhibit(
        "draws by place in the batch", "vllm-project/vllm#51226",
        "A request with a seed drew other tokens in every run, by what else was in its batch.",
        "minipost/rollout.py",
        "np.random.SeedSequence([*seed, name, earlier * copies + k])",
        "np.random.SeedSequence([*seed, len(drawn)])",
        ("test_rollout.py::test_what_is_drawn_does_not_depend_on_batch_order_or_neighbours",)),
    Exhibit(
        "a softmax in half precision", "jingyaogong/minimind#814",
        "Sampling took its softmax in float32, training in bfloat16; the ratio was off by a "
        "hundredth before any update.",
        "minipost/rollout.py",
        "[seqs.mask])\n"
        "    if logits.dtype not in (torch.float32, torch.float64):\n"
        "        logits = logits.float()",
        "[seqs.mask])",
        ("test_rollout.py::test_log_probs_of_a_bfloat16_model_are_taken_in_float32",)),
    Exhibit(
        "one seed for the whole group", "vllm-project/vllm#11898",
        "With a seed set, all samples of a prompt drew the same numbers: a group of identical answers.",
        "minipost/rollout.py",
        "np.random.SeedSequence([*seed, name, earlier * copies + k])",
        "np.random.SeedSequence([*seed, name])",
        ("test_rollout.py::test_seed_step_prompt_and_sample_each_change_the_draw",
         "test_rollout.py::test_samples_follow_the_models_distribution")),
    Exhibit(
        "key heads tiled instead of repeated", "ekzhang/jax-js#180",
        "With grouped queries each query head was given another one's keys; nothing has a wrong "
        "shape, only every output is wrong.",
        "minipost/gpt.py",
        "k, v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)",
        "k, v = k.repeat(1, share, 1, 1), v.repeat(1, share, 1, 1)",
        ("test_gpt.py::test_explicit_attention_equals_the_fused_one",)),
    Exhibit(
        "one EOS of several", "huggingface/trl#7039",
        "Models that declare several EOS ids end their turns with another one than the tokenizer "
        "names: what was sampled after it stayed in the loss.",
        "minipost/rollout.py",
        "stop = torch.tensor(sorted(eos), device=device)",
        "stop = torch.tensor(sorted(eos)[:1], device=device)",
        ("test_offline.py::test_what_else_ends_a_response",)),
    # ---- policy gradients
    Exhibit(
        "optimistic clip", "jvmncs/safe-grid-agents#28",
        "A minus sign was drawn through the minimum, which made a maximum of it: the clip held "
        "nothing back.",
        "minipost/ops.py",
        "return torch.minimum(ratio * adv,",
        "return torch.maximum(ratio * adv,",
        ("test_ops.py::test_clipped_surrogate_and_its_gradient",
         "test_gradients.py::test_three_ways[ppo]",
         "test_ppo.py::test_the_policy_part_is_pessimistic_importance_sampling")),
    Exhibit(
        "old values of the new critic", "tensorflow/agents#352",
        "What values were held near was computed by the critic that was being trained, so their "
        "clip never acted.",
        "minipost/methods/ppo.py",
        "logp, critic.module(batch.inputs), batch.logp, value_old[i, :width],",
        "logp, critic.module(batch.inputs), batch.logp, critic.module(batch.inputs).detach(),",
        ("test_ppo.py::test_values_are_held_near_those_of_the_rollout_whatever_was_learnt_since",)),
    Exhibit(
        "returns of whitened advantages", "NovaSky-AI/SkyRL#773",
        "What was handed on as returns had been normalised with the advantages.",
        "minipost/methods/ppo.py",
        "        ret = adv + value_old\n        adv = ops.whiten(adv, mask)\n",
        "        adv = ops.whiten(adv, mask)\n        ret = adv + value_old\n",
        ("test_ppo.py::test_a_step_learns_from_what_the_docstring_says",)),
    Exhibit(
        "padding whitened", "NovaSky-AI/SkyRL#1305",
        "The mean of advantages was taken over padding as well, so how much of it there was "
        "shifted all of them.",
        "minipost/ops.py",
        "count, some = mask.sum(), x[mask]",
        "count, some = mask.numel(), x[mask]",
        ("test_policy_gradient.py::test_whitening",)),
    Exhibit(
        "reward on the last column", "huggingface/trl#3750",
        "The score was put on padding behind EOS and not on the EOS.",
        "minipost/ops.py",
        "last = mask & (mask.flip(1).cumsum(1).flip(1) == 1)",
        "last = torch.arange(mask.shape[1]).expand(mask.shape) == mask.shape[1] - 1",
        ("test_policy_gradient.py::test_the_last_chosen_token",
         "test_ppo.py::test_token_rewards")),
    Exhibit(
        "values of what nobody chose", "radixark/miles#1827",
        "Advantages were carried on through tokens that are not trained on, and the reward "
        "decayed on its way.",
        "minipost/ops.py",
        "reward, value = reward.where(mask, 0.0), value.where(mask, 0.0)",
        "reward = reward.where(mask, 0.0)",
        ("test_policy_gradient.py::test_gae_is_linear_and_blind_to_padding",
         "test_policy_gradient.py::test_gae_equals_its_sum_and_is_zero_off_the_mask")),
    Exhibit(
        "entropy punished", "nebuly-ai/optimate#250",
        "The bonus on entropy had the sign of a price.",
        "minipost/methods/a2c.py",
        "masked_sum(adv * logp + entropy_weight * entropy, mask)",
        "masked_sum(adv * logp - entropy_weight * entropy, mask)",
        ("test_gradients.py::test_three_ways[a2c]",
         "test_policy_gradient.py::test_a2c_piece_by_piece")),
    Exhibit(
        "policy loss that teaches the critic", "astariul/encode-attend-navigate-pytorch#3",
        "Advantages kept their gradient, so the critic learnt to please the policy's loss.",
        "minipost/methods/a2c.py",
        "masked_sum(adv * logp + entropy_weight * entropy, mask)",
        "masked_sum((adv + value.detach() - value) * logp + entropy_weight * entropy, mask)",
        ("test_gradients.py::test_three_ways[a2c]",)),
    Exhibit(
        "constraint not checked", "joschu/modular_rl#29",
        "TRPO's line search looked at the gain alone, so a step could be as large as it liked.",
        "minipost/methods/trpo.py",
        "if kl <= delta and gain > 0:",
        "if gain > 0:",
        ("test_trpo.py::test_the_line_search_takes_the_first_that_qualifies_and_else_the_old",
         "test_trpo.py::test_a_step_that_is_too_long_is_shortened_or_not_taken")),
    Exhibit(
        "failed search kept", "thu-ml/tianshou#1287",
        "When no step of the line search qualified, the last one that had been tried stayed in "
        "the weights.",
        "minipost/methods/trpo.py",
        "return old, tries, 0.0, 0.0",
        "return weights, tries, gain, kl",
        ("test_trpo.py::test_the_line_search_takes_the_first_that_qualifies_and_else_the_old",
         "test_trpo.py::test_a_search_that_finds_nothing_restores_the_weights_bit_for_bit")),
    Exhibit(
        "rewards taken for returns", "natolambert/rlhf-book#216",
        "The advantage was the token's own reward less its value: nothing of a score at the end "
        "reached the tokens before.",
        "minipost/ops.py",
        "(delta + gamma * lam * next_adv)",
        "(reward[:, t] - value[:, t])",
        ("test_policy_gradient.py::test_gae_at_both_ends_of_lambda",
         "test_policy_gradient.py::test_the_true_value_leaves_an_expected_advantage_of_zero")),
    # ---- tokens and masks
    Exhibit(
        "EOS out of the loss", "NVIDIA-NeMo/Megatron-Bridge#4660",
        "Padding was masked by its id, which was EOS's too, so no EOS was learnt and the model "
        "never stopped.",
        "minipost/rollout.py",
        "mask = (ended.cumsum(1) - ended.long() == 0) & (column < sampled)",
        "mask = (ended.cumsum(1) == 0) & (column < sampled)",
        ("test_rollout.py::test_recorded_logp_equals_recomputed",)),
    Exhibit(
        "EOS of demonstrations out of the loss", "huggingface/trl#1623",
        "The same of supervised fine-tuning: models talked on until they were cut off.",
        "minipost/rollout.py",
        "mask[row, len(p) - 1 : len(p) + len(r) - 1] = True",
        "mask[row, len(p) - 1 : len(p) + len(r) - 2] = True",
        ("test_rollout.py::test_pack_marks_the_response_and_its_eos_only",)),
    Exhibit(
        "prompt learnt", "huggingface/trl#3484",
        "The mask of completions was dropped on the way to a faster kernel, and prompts were "
        "silently trained on.",
        "minipost/rollout.py",
        "mask[row, len(p) - 1 : len(p) + len(r) - 1] = True",
        "mask[row, : len(p) + len(r) - 1] = True",
        ("test_rollout.py::test_pack_marks_the_response_and_its_eos_only",)),
    Exhibit(
        "no shift by one", "lucidrains/PaLM-rlhf-pytorch#31",
        "Log-probs of answers were gathered from positions beside those that predict them.",
        "minipost/rollout.py",
        "return self.tokens[:, 1:]",
        "return self.tokens[:, :-1]",
        ("test_rollout.py::test_logprobs_are_about_the_token_they_predict",
         "test_rollout.py::test_recorded_logp_equals_recomputed")),
    Exhibit(
        "BOS between prompt and answer", "axolotl-ai-cloud/axolotl#1616",
        "The tokenizer put BOS before chosen and rejected answers, which stand behind a prompt "
        "that has its own.",
        "minipost/checkpoint.py",
        "return self.tokenizer.encode(text) + [min(self.eos)]",
        "return self.prompt(text) + [min(self.eos)]",
        ("test_checkpoint.py::test_a_prompt_begins_with_bos_and_an_answer_ends_with_eos_and_nowhere_else",)),
    # ---- reward models
    Exhibit(
        "score read at a pad", "EleutherAI/gpt-neox#1285",
        "The score was read at the last token of the row, which is padding for all answers but "
        "the longest.",
        "minipost/rollout.py",
        "return model(seqs.tokens).gather(1, last[:, None])[:, 0]",
        "return model(seqs.tokens)[:, -1]",
        ("test_reward.py::test_the_score_is_read_at_the_last_real_token",
         "test_methods.py::test_a_methods_own_step_does_not_depend_on_how_it_is_cut[reward]")),
    Exhibit(
        "score read before EOS", "huggingface/transformers#35352",
        "The first token with the id of padding was taken for its beginning; where that is EOS "
        "too, the score is read before it.",
        "minipost/rollout.py",
        "torch.arange(1, seqs.mask.shape[1] + 1,",
        "torch.arange(seqs.mask.shape[1],",
        ("test_reward.py::test_the_score_is_read_at_the_last_real_token",
         "test_reward.py::test_step_scores_end_with_the_final_score")),
    Exhibit(
        "steps judged one token off", "opendilab/LightRFT#53",
        "Rewards of steps landed one token beside the ends of the steps, in every trajectory that"
        " was looked at.",
        "minipost/methods/prm.py",
        "return model(seqs.tokens)[:, 1:]",
        "return model(seqs.tokens)[:, :-1]",
        ("test_reward.py::test_step_scores_end_with_the_final_score",)),
    # ---- preferences
    Exhibit(
        "preference loss without its minus", "linkedin/Liger-Kernel#481",
        "The preference term had the wrong sign, so the loss was negative and fell as the loser won.",
        "minipost/methods/dpo.py",
        "(-torch.nn.functional.logsigmoid(sign * u).sum() / count",
        "(torch.nn.functional.logsigmoid(sign * u).sum() / count",
        ("test_gradients.py::test_three_ways[dpo]",
         "test_pairs.py::test_at_the_reference")),
    Exhibit(
        "mean log-prob in DPO", "huggingface/trl#789",
        "People who took means over tokens instead of sums, at a beta made for sums, got models "
        "that said nothing sensible.",
        "minipost/methods/dpo.py",
        "from minipost.pairwise import row_sums",
        "from minipost.pairwise import row_means as row_sums",
        ("test_pairs.py::test_dpo_is_bradley_terry_on_log_ratios",
         "test_proof.py::test_the_mean_step_is_what_it_is_proved_to_be[dpo]")),
    Exhibit(
        "mean log-prob in IPO", "huggingface/trl#1265",
        "IPO's sums were changed into means, so the same tau asks for another gap than the paper's.",
        "minipost/methods/ipo.py",
        "from minipost.pairwise import row_sums",
        "from minipost.pairwise import row_means as row_sums",
        ("test_proof.py::test_the_mean_step_is_what_it_is_proved_to_be[ipo]",)),
    Exhibit(
        "pairs of equal answers", "natolambert/rlhf-book#503",
        "Cutting answers made 352 of 5000 pairs equal on both sides: a loss of log 2 for ever, "
        "and no gradient.",
        "minipost/datasets/preferences.py",
        "first, label = first[~same.to(label.device)], label[~same.to(label.device)]\n    ",
        "",
        ("test_reward.py::test_ranked_pairs",)),
    Exhibit(
        "log of zero in ORPO", "huggingface/trl#4763",
        "log(1 - exp l) cancels where an answer is nearly certain; one NaN and all weights are gone.",
        "minipost/methods/orpo.py",
        "return mean - small.where(near, large)",
        "return mean - torch.log1p(-torch.exp(mean))",
        ("test_pairs.py::test_odds_of_near_certain_and_hopeless_answers",)),
    Exhibit(
        "KTO's z0 of its own answers", "huggingface/trl#1911",
        "Answers were put to other prompts by turning the batch round, which leaves the middle "
        "one with its own.",
        "minipost/methods/kto.py",
        "turned = answers[1:] + answers[:1]",
        "turned = answers",
        ("test_pairs.py::test_mismatched_answers_belong_to_the_next_prompt",)),
    Exhibit(
        "OREO without what follows", "the survey, sec. 3.2.7 (errata.md)",
        "The policy's residual was printed without the log-ratios of later actions; the optimum "
        "does not satisfy that.",
        "minipost/methods/oreo.py",
        "(value_held + beta * (of_action(ratio, starts) + later) - target)",
        "(value_held + beta * of_action(ratio, starts) - target)",
        ("test_oreo.py::test_the_residual_is_zero_at_the_soft_optimum_on_every_trajectory",
         "test_proof.py::test_at_the_optimum_a_step_is_zero_where_it_is_proved_to_be[oreo, by "
         "token, alpha 0]")),
    Exhibit(
        "mixture turned round", "huggingface/trl#3043",
        "The mixture of generalised distillation weighed the student by what is the teacher's "
        "share, and the test agreed.",
        "minipost/methods/distill.py",
        "torch.logaddexp(logq_all + log(mix), logp_all + log(1 - mix))",
        "torch.logaddexp(logq_all + log(1 - mix), logp_all + log(mix))",
        ("test_gradients.py::test_three_ways[distill]",
         "test_offline.py::test_distillation_is_zero_at_the_teacher_and_positive_elsewhere")),
    Exhibit(
        "distilled the other way", "paiml/aprender#2153",
        "Forward KL was asked for and reverse KL computed.",
        "minipost/methods/distill.py",
        "value = forward_kl(logq_all, logp_all).sum() / count",
        "value = forward_kl(logp_all, logq_all).sum() / count",
        ("test_gradients.py::test_three_ways[distill]",
         "test_proof.py::test_the_mean_step_is_what_it_is_proved_to_be[distill]",
         "test_offline.py::test_distillation_is_zero_at_the_teacher_and_positive_elsewhere")),
    Exhibit(
        "reference of another pair", "Liquid4All/liquid-finetune#42",
        "The reference's log-probs were cached by row number; with the data dealt to ranks, rows "
        "were given another's.",
        "minipost/pairwise.py",
        "rows = [self.place[id(p)] for p in problems]",
        "rows = list(range(len(problems)))",
        ("test_pairs.py::test_a_files_reference_is_computed_once_and_is_that_of_each_pair",)),
    Exhibit(
        "z0 of the last batch", "PKU-Alignment/align-anything#216",
        "A loop over batches overwrote KTO's z0 instead of adding to it.",
        "minipost/methods/kto.py",
        "float(row_sums(run.for_all(drift, wrong)[0], wrong.mask).mean())",
        "float(row_sums(run.for_all(drift, wrong)[0], wrong.mask)[-run.micro :].mean())",
        ("test_methods.py::test_a_methods_own_step_does_not_depend_on_how_it_is_cut[kto]",)),
    # ---- runs and files
    Exhibit(
        "reward overwritten by advantage", "radixark/miles#737",
        "The metric named rewards was recorded after they had been normalised: a curve that "
        "cannot rise.",
        "minipost/methods/grpo.py",
        "**describe(rollout, reward, cfg.group)",
        "**describe(rollout, adv, cfg.group)",
        ("test_methods.py::test_the_reward_that_a_step_logs_is_what_its_answers_earned[grpo]",)),
    Exhibit(
        "metrics of the last micro-batch", "karpathy/nanochat#52",
        "The loss that was logged was that of the last micro-batch alone.",
        "minipost/run.py",
        "self.sums[name] += float(piece)",
        "self.sums[name] = float(piece)",
        ("test_run.py::test_the_meter_adds_pieces_and_averages_updates",
         "test_methods.py::test_a_methods_own_step_does_not_depend_on_how_it_is_cut[grpo]")),
    Exhibit(
        "random numbers begin anew on resume", "modelscope/ms-swift#9935",
        "A resumed run seeded its generators again after it had restored them, and drew what it "
        "had drawn before.",
        "minipost/run.py",
        'self.step, self.tokens = facts["step"], facts["tokens"]',
        'self.tokens = facts["tokens"]',
        ("test_resume.py::test_stopped_after_every_step[sft]",
         "test_ppo.py::test_a_run_resumed_after_any_step_ends_with_the_same_bits")),
    Exhibit(
        "rope_theta in one place", "Open-Athena/MarinFold#184",
        "A config.json of transformers 5 was read by code for 4, which took 10,000 for the rotary"
        " base without a word.",
        "minipost/checkpoint.py",
        "for theta in (new, old) if theta is not None",
        "for theta in (old,) if theta is not None",
        ("test_checkpoint.py::test_the_rotary_base_stands_where_either_reader_looks_for_it",)),
    Exhibit(
        "weights that others cannot read", "safetensors/safetensors#782",
        "Files that are written beside their place and then moved kept the mode of temporary files.",
        "minipost/checkpoint.py",
        "        os.chmod(temporary, 0o666 & ~umask())\n",
        "",
        ("test_checkpoint.py::test_files_have_the_usual_mode",)),
    Exhibit(
        "old weights gone before the new are whole", "CanReader/FastNN#13",
        "A crash while a checkpoint was saved took the previous one with it.",
        "minipost/checkpoint.py",
        "        write(temporary)\n",
        "        path.unlink(missing_ok=True)\n        write(temporary)\n",
        ("test_checkpoint.py::test_a_failed_write_changes_nothing",)),
    Exhibit(
        "the same order in every epoch", "huggingface/trl#2337",
        "The data were not shuffled anew, so each epoch showed the same batches again.",
        "minipost/run.py",
        'random.Random(f"{self.seed}/epoch {epoch}").shuffle(order)',
        'random.Random(f"{self.seed}/epoch").shuffle(order)',
        ("test_run.py::test_a_finite_list_is_gone_through_in_epochs",)),
    Exhibit(
        "Adam forgets on resume", "awslabs/keys_values#101",
        "A checkpoint held the weights alone, and the optimiser began afresh after every stop.",
        "minipost/run.py",
        'for mine, saved in ((self.master, "weights"), (self.m, "m"), (self.v, "v")):',
        'for mine, saved in ((self.master, "weights"),):',
        ("test_resume.py::test_stopped_after_every_step[sft]",
         "test_ppo.py::test_a_run_resumed_after_any_step_ends_with_the_same_bits")),
)
