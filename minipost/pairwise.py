"""Learning from pairs without a reward model: what DPO and its relatives share."""

from dataclasses import asdict

from minipost import scorers
from minipost.ops import masked_sum
from minipost.preferences import draw_pairs, file_pairs, step_pairs
from minipost.rollout import logprobs
from minipost.run import Meter
from minipost.stats import interval


def row_sums(x, mask):
    """Sum over each row's chosen tokens.  (B, T) -> (B,)"""
    return x.where(mask, 0.0).sum(1)


def row_means(x, mask):
    """Mean over each row's chosen tokens.  (B, T) -> (B,)"""
    return row_sums(x, mask) / mask.sum(1)


def margins(lead, count):
    """Metrics of implied reward differences (b,) that add up over a step."""
    return {"rewards/margins": lead.detach().sum() / count,
            "rewards/accuracies": ((lead > 0) + 0.5 * (lead == 0)).sum() / count}


class Reference:
    """Pairs together with the starting policy's log-probs of them; a file's are computed once."""

    def __init__(self, run, cfg):
        self.run, self.cfg, self.model = run, cfg, run.reference()
        rows = run.task.training() if hasattr(run.task, "training") else []
        self.place = {id(row): k for k, row in enumerate(rows) if "chosen" in row.columns}
        if self.place:
            pairs = file_pairs(run, rows)
            self.known = self.logps(pairs)
            self.kept = self.likely(pairs, self.known)

    def logps(self, pairs):
        """[chosen (P, T), rejected (P, T')], zero off the masks."""
        return [self.run.for_all(lambda batch: [logprobs(self.model, batch)], side)[0]
                for side in (pairs.chosen, pairs.rejected)]

    def likely(self, pairs, logps):
        """True for the share of the pairs whose chosen answer has the least perplexity.  (P,)"""
        value = (-row_means(logps[0], pairs.chosen.mask)).exp()
        return value <= value.quantile(self.cfg.likeliest) if len(pairs) else value > 0

    def draw(self, label):
        """This step's pairs and their log-probs, without those that the filter drops."""
        run, cfg = self.run, self.cfg
        if self.place:
            problems, pairs = step_pairs(run, cfg.pairs)
            rows = [self.place[id(p)] for p in problems]
            logps = [whole[rows, : side.mask.shape[1]]
                     for whole, side in zip(self.known, (pairs.chosen, pairs.rejected))]
            kept = self.kept[rows]
        else:
            pairs = draw_pairs(run, cfg.pairs, label, cfg.temperature, self.model)
            logps = self.logps(pairs)
            kept = self.likely(pairs, logps)
        rows = kept.nonzero()[:, 0]
        pairs = pairs[rows]
        return pairs, [x[rows, : side.mask.shape[1]]
                       for x, side in zip(logps, (pairs.chosen, pairs.rejected))]


def learn_pairs(run, cfg, loss, label, scale=None):
    """pairs -> log-probs -> loss -> update.  Yields metrics per step.

    loss(chosen, rejected, [chosen_ref, rejected_ref,] chosen_mask, rejected_mask, count=B), where the
    reference is passed if `scale`, what a nat of log-ratio is worth, is given.
    """
    policy, reference = run.policy, Reference(run, cfg)
    while True:
        pairs, logps = reference.draw(label)
        count, meter = len(pairs), Meter("loss", "rewards/margins", "rewards/accuracies",
                                         "logps/chosen", "logps/rejected", "drift/chosen",
                                         "drift/rejected")
        lengths = pairs.chosen.lengths + pairs.rejected.lengths
        for i in run.micro_batches(range(count), lengths):
            sides = pairs[i].chosen, pairs[i].rejected
            logp = [logprobs(policy.module, side) for side in sides]
            ref = [x[i, : side.mask.shape[1]] for x, side in zip(logps, sides)]
            value, stats = loss(*logp, *(ref if scale else ()), *(side.mask for side in sides),
                                count=count)
            value.backward()
            meter.add(**stats)
            for name, now, then, side in zip(("chosen", "rejected"), logp, ref, sides):
                now = now.detach()
                meter.add(**{f"logps/{name}": masked_sum(now, side.mask) / count,
                             f"drift/{name}": masked_sum(now - then, side.mask) / count})
        norm = policy.step(cfg.lr, cfg.max_grad_norm) if count else 0.0
        yield {**meter.means(), "pairs": count, "grad_norm": norm, "learning_rate": cfg.lr}


def remark(lines):
    """A sentence on what became of the chosen answers, from a run's metrics."""
    last = [line for line in lines[-5:] if line.get("drift/chosen") is not None]
    if not last:
        return ""
    chosen, rejected = (sum(line[f"drift/{side}"] for line in last) / len(last)
                        for side in ("chosen", "rejected"))
    if chosen >= 0:
        return ""
    return (f"The chosen answers became less likely than under the starting policy, by {-chosen:.1f} "
            "nats each: the loss asks only that they gain on the rejected ones, which moved by "
            f"{rejected:+.1f}.")


def win_rate(run, problems):
    """How often an answer of the policy has more reward than one of the reference; a tie is half."""
    theirs = run.evaluate(problems, 1.0, module=run.reference(), purpose="reference")[0]
    ours, texts = run.evaluate(problems, 1.0)
    return [float(a > b) + 0.5 * (a == b) for a, b in zip(ours, theirs)], texts


def report_policy(run, splits, scale):
    """What a policy that learns from pairs is worth, in the form of Session.measure.

    On a file's pairs how the implied reward ranks them: `scale` times the log-ratio, or the mean
    log-prob where scale is None.  Elsewhere the win rate against the starting policy, and rewards.
    """
    if all("chosen" in problems[0].columns for problems in splits.values()):
        policy, reference = run.policy.module, run.reference()

        def implied(seqs):
            logp, = run.for_all(lambda batch: [logprobs(policy, batch)], seqs)
            if scale is None:
                return row_means(logp, seqs.mask)
            before, = run.for_all(lambda batch: [logprobs(reference, batch)], seqs)
            return scale * row_sums(logp - before, seqs.mask)

        return scorers.report(run, splits, implied)
    found = run.results(splits)
    for split, problems in splits.items():
        rewards, texts = win_rate(run, problems)
        found[split]["win rate"] = {"score": asdict(interval(rewards)), "rewards": rewards,
                                    "texts": texts}
    return found
