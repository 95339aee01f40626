"""The exhibits: bugs that other libraries had, each as a change of a few characters to our own code."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Exhibit:
    """A historic bug.

    thread      where it was reported or read: repository#number, or a repository and its file
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
    caught_by: tuple = ()


EXHIBITS = (
    # ---- losses: what is divided by what
    Exhibit("mean per micro-batch", "T1", "S1", "minipost/methods/grpo.py",
            "clip=cfg.clip, beta=cfg.beta, count=count)",
            "clip=cfg.clip, beta=cfg.beta, count=int(batch.mask.sum()))"),
    Exhibit("mean per micro-batch of SFT", "T1", "S1", "minipost/methods/sft.py",
            "part.mask, count=count)", "part.mask, count=int(part.mask.sum()))"),
    Exhibit("one over length", "T2", "S", "minipost/methods/dr_grpo.py",
            "value = -masked_sum(gain, mask) / scale",
            "value = -(gain.where(mask, 0.0).sum(1) / mask.sum(1)).sum() / rows"),
    Exhibit("own reward in the baseline", "T", "S", "minipost/methods/rloo.py",
            " * (group / (group - 1))", ""),
    Exhibit("no guard on a tie", "T", "S", "minipost/methods/grpo.py",
            "return (gap / (deviation + 1e-4)).flatten()", "return (gap / deviation).flatten()"),
    Exhibit("groups torn apart", "T", "S", "minipost/rollout.py",
            "prompt = torch.arange(len(prompts), device=device).repeat_interleave(copies)",
            "prompt = torch.arange(len(prompts), device=device).repeat(copies)"),
    # ---- KL
    Exhibit("KL maximised", "T", "S", "minipost/methods/ppo.py",
            "(ops.at_last(score, mask) - beta * (logp - logp_ref))",
            "(ops.at_last(score, mask) + beta * (logp - logp_ref))"),
    Exhibit("KL ratio inverted", "T", "S", "minipost/ops.py",
            "return torch.expm1(-gap) + gap", "return torch.expm1(gap) - gap"),
    Exhibit("KL without p", "T", "S", "minipost/ops.py",
            "return (logp_all.exp() * (logp_all - logq_all)).sum(-1)",
            "return (logq_all.exp() * (logp_all - logq_all)).sum(-1)"),
    Exhibit("reference that learns", "T", "S", "minipost/run.py",
            'return self.keep("reference", lambda: copy.deepcopy(self.policy.module))',
            'return self.keep("reference", lambda: self.policy.module)'),
    Exhibit("controller turned round", "T", "S", "minipost/methods/ppo.py",
            "kl / cfg.kl_target - 1))", "1 - kl / cfg.kl_target))"),
    # ---- sampler and trainer
    Exhibit("sampled at another temperature", "T", "S", "minipost/rollout.py",
            "token, pick(logp_all, token).to(logp.dtype)",
            "token, pick(next_logp(model.head(hidden), 1.0), token).to(logp.dtype)"),
    Exhibit("top-k in the sampler alone", "T", "S", "minipost/rollout.py",
            "return torch.log_softmax(logits / (temperature or 1.0), -1)",
            "return torch.log_softmax(logits.where(logits >= logits.topk(5).values[:, -1:], -torch.inf)\n"
            "                             / (temperature or 1.0), -1)"),
    Exhibit("positions count the padding", "T", "S", "minipost/gpt.py",
            "here = cache.lengths + (cache.at - cache.width)",
            "here = torch.full_like(cache.lengths, cache.at)"),
    Exhibit("padding attended to", "T", "S", "minipost/gpt.py",
            "hidden = column < (self.width - self.lengths)[:, None]",
            "hidden = column < (0 * self.lengths)[:, None]"),
    Exhibit("future attended to", "T", "S", "minipost/gpt.py",
            "is_causal=True, enable_gqa=grouped", "is_causal=False, enable_gqa=grouped"),
    Exhibit("draws by place in the batch", "T", "S", "minipost/rollout.py",
            "np.random.SeedSequence([*seed, name, earlier * copies + k])",
            "np.random.SeedSequence([*seed, len(drawn)])"),
    # ---- PPO and its relatives
    Exhibit("optimistic clip", "T", "S", "minipost/ops.py",
            "return torch.minimum(ratio * adv,", "return torch.maximum(ratio * adv,"),
    Exhibit("optimistic value clip", "T", "S", "minipost/methods/ppo.py",
            "(value - ret).square().maximum((held - ret).square())",
            "(value - ret).square().minimum((held - ret).square())"),
    Exhibit("returns of whitened advantages", "T", "S", "minipost/methods/ppo.py",
            "        ret = adv + value_old\n        adv = ops.whiten(adv, mask)\n",
            "        adv = ops.whiten(adv, mask)\n        ret = adv + value_old\n"),
    Exhibit("padding whitened", "T", "S", "minipost/ops.py",
            "count, some = mask.sum(), x[mask]", "count, some = mask.numel(), x[mask]"),
    Exhibit("reward on the last column", "T", "S", "minipost/ops.py",
            "last = mask & (mask.flip(1).cumsum(1).flip(1) == 1)",
            "last = torch.arange(mask.shape[1]).expand(mask.shape) == mask.shape[1] - 1"),
    Exhibit("values of padding", "T", "S", "minipost/ops.py",
            "reward, value = reward.where(mask, 0.0), value.where(mask, 0.0)",
            "reward = reward.where(mask, 0.0)"),
    Exhibit("entropy punished", "T", "S", "minipost/methods/a2c.py",
            "masked_sum(adv * logp + entropy_weight * entropy, mask)",
            "masked_sum(adv * logp - entropy_weight * entropy, mask)"),
    Exhibit("constraint not checked", "T", "S", "minipost/methods/trpo.py",
            "if kl <= delta and gain > 0:", "if gain > 0:"),
    Exhibit("failed search kept", "T", "S", "minipost/methods/trpo.py",
            "return old, tries, 0.0, 0.0", "return weights, tries, gain, kl"),
    Exhibit("conjugate gradient past the end", "T", "S", "minipost/methods/trpo.py",
            "        if square <= tolerance * first:\n            break\n", ""),
    # ---- tokens and masks
    Exhibit("EOS out of the loss", "T", "S", "minipost/rollout.py",
            "mask = (ended.cumsum(1) - ended.long() == 0) & (column < sampled)",
            "mask = (ended.cumsum(1) == 0) & (column < sampled)"),
    Exhibit("EOS of demonstrations out of the loss", "T", "S", "minipost/rollout.py",
            "mask[row, len(p) - 1 : len(p) + len(r) - 1] = True",
            "mask[row, len(p) - 1 : len(p) + len(r) - 2] = True"),
    Exhibit("prompt learnt", "T", "S", "minipost/rollout.py",
            "mask[row, len(p) - 1 : len(p) + len(r) - 1] = True",
            "mask[row, : len(p) + len(r) - 1] = True"),
    Exhibit("no shift by one", "T", "S", "minipost/rollout.py",
            "return self.tokens[:, 1:]", "return self.tokens[:, :-1]"),
    Exhibit("BOS between prompt and answer", "T", "S", "minipost/checkpoint.py",
            "return self.tokenizer.encode(text) + [min(self.eos)]",
            "return self.prompt(text) + [min(self.eos)]"),
    # ---- reward models
    Exhibit("score read at a pad", "T", "S", "minipost/rollout.py",
            "return model(seqs.tokens).gather(1, last[:, None])[:, 0]",
            "return model(seqs.tokens)[:, -1]"),
    Exhibit("score read before EOS", "T", "S", "minipost/rollout.py",
            "torch.arange(1, seqs.mask.shape[1] + 1,", "torch.arange(seqs.mask.shape[1],"),
    Exhibit("steps judged before their end", "T", "S", "minipost/methods/prm.py",
            "return model(seqs.tokens)[:, 1:]", "return model(seqs.tokens)[:, :-1]"),
    # ---- preferences
    Exhibit("loser preferred", "T", "S", "minipost/preferences.py",
            "Pairs(rollout[first + (label < 0)], rollout[first + (label > 0)])",
            "Pairs(rollout[first + (label > 0)], rollout[first + (label < 0)])"),
    Exhibit("mean log-prob in DPO", "T", "S", "minipost/methods/dpo.py",
            "from minipost.pairwise import row_sums", "from minipost.pairwise import row_means as row_sums"),
    Exhibit("mean log-prob in IPO", "T", "S", "minipost/methods/ipo.py",
            "from minipost.pairwise import row_sums", "from minipost.pairwise import row_means as row_sums"),
    Exhibit("smoothing with the wrong sign", "T", "S", "minipost/methods/dpo.py",
            "(-flip if robust else flip) * wrong", "(flip if robust else -flip) * wrong"),
    Exhibit("reference of other rows", "T", "S", "minipost/pairwise.py",
            "rows = [self.place[id(p)] for p in problems]", "rows = list(range(len(problems)))"),
    Exhibit("pairs of equal answers", "T", "S", "minipost/preferences.py",
            "first, label = first[~same.to(label.device)], label[~same.to(label.device)]\n    ", ""),
    Exhibit("log of zero in ORPO", "T", "S", "minipost/methods/orpo.py",
            "return mean - small.where(near, large)", "return mean - torch.log1p(-torch.exp(mean))"),
    Exhibit("KTO's z0 below zero", "T", "S", "minipost/methods/kto.py",
            "z0 = max(0.0, float(row_sums(run.for_all(drift, wrong)[0], wrong.mask).mean()))",
            "z0 = float(row_sums(run.for_all(drift, wrong)[0], wrong.mask).mean())"),
    Exhibit("KTO's z0 of its own answers", "T", "S", "minipost/methods/kto.py",
            "turned = answers[1:] + answers[:1]", "turned = answers"),
    Exhibit("OREO without what follows", "T", "S", "minipost/methods/oreo.py",
            "(value_held + beta * (of_action(ratio, starts) + later) - target)",
            "(value_held + beta * of_action(ratio, starts) - target)"),
    Exhibit("distilled the other way", "T", "S", "minipost/methods/distill.py",
            "value = forward_kl(logq_all, logp_all).sum() / count",
            "value = forward_kl(logp_all, logq_all).sum() / count"),
    # ---- runs
    Exhibit("reward overwritten by advantage", "T", "S", "minipost/methods/grpo.py",
            "**describe(rollout, reward, cfg.group)", "**describe(rollout, adv, cfg.group)"),
    Exhibit("metrics of the last micro-batch", "T", "S", "minipost/run.py",
            "self.sums[name] += float(piece)", "self.sums[name] = float(piece)"),
    Exhibit("Adam forgets on resume", "T", "S", "minipost/run.py",
            'for mine, saved in ((self.master, "weights"), (self.m, "m"), (self.v, "v")):',
            'for mine, saved in ((self.master, "weights"),):'),
    Exhibit("data begin anew on resume", "T", "S", "minipost/run.py",
            'self.step, self.tokens = facts["step"], facts["tokens"]', 'self.tokens = facts["tokens"]'),
    Exhibit("decay of norms", "T", "S", "minipost/run.py",
            "self.master[: self.matrix_part].mul_(1 - lr * self.decay)",
            "self.master.mul_(1 - lr * self.decay)"),
    # ---- files
    Exhibit("rope_theta in one place", "T", "S", "minipost/checkpoint.py",
            "for theta in (new, old) if theta is not None", "for theta in (old,) if theta is not None"),
    Exhibit("weights that others cannot read", "T", "S", "minipost/checkpoint.py",
            "        os.chmod(temporary, 0o666 & ~umask())\n", ""),
    # ---- test time
    Exhibit("silence has a vote", "T", "S", "minipost/stats.py",
            "        if answer is not None:\n            total[answer] = total.get(answer, 0.0) + weight\n",
            "        total[answer] = total.get(answer, 0.0) + weight\n"),
)
