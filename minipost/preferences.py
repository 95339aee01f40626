"""Preference data and how good a scorer is: shared by everything that learns or uses a reward model.

Pairs come from a file (rows with `chosen` and `rejected`) or are sampled: answers of the policy to
each prompt, which a labeller compares two by two.  A labeller is a function

    label(run, problems, rollout) -> (P,)    > 0 where a prompt's first answer is better, < 0 where
                                             its second is, 0 for a tie, which makes no pair

What a scorer is worth is measured on held-out prompts, against the exact reward and without noise.
"""

import copy
import itertools
import random
from dataclasses import asdict, replace
from math import isfinite

import torch

from minipost.errors import MinipostError
from minipost.gpt import RewardModel
from minipost.ops import masked_sum
from minipost.rollout import Pairs, logprobs, pack
from minipost.run import Meter
from minipost.stats import bootstrap, interval

BEST_OF = 8  # answers per held-out prompt of which a scorer picks one


def by_reward(run, problems, rollout):
    """The labeller that asks the run's reward function; `noise` of the task turns labels round."""
    first, second = run.grade(problems, rollout).view(-1, 2).unbind(1)
    rng, noise = run.rng("noise"), getattr(run.task, "noise", 0.0)
    turned = torch.tensor([-1.0 if rng.random() < noise else 1.0 for _ in problems])
    return (first - second) * turned.to(first)


def step_pairs(run, n):
    """This step's n problems and, where they are rows of pairs, those pairs, counted; else None."""
    problems = run.problems(n)
    if "chosen" not in problems[0].columns:
        return problems, None
    pairs = file_pairs(run, problems)
    run.tokens += int(pairs.chosen.mask.sum() + pairs.rejected.mask.sum())
    return problems, pairs


def draw_pairs(run, n, label, temperature, policy=None):
    """Up to n pairs of this step: from the task's file, or sampled from a policy and labelled.

    The policy is the run's unless another module is given.
    """
    problems, pairs = step_pairs(run, n)
    if pairs is not None:
        return pairs
    rollout = run.sample(problems, 2, temperature=temperature, module=policy,
                         purpose="pairs")
    return ranked_pairs(rollout, label(run, problems, rollout))


def draw_comparisons(run, prompts, answers, label, temperature):
    """This step's answers, `answers` (K) to each prompt, and which is better than which.

    -> K Sequences of P rows each, wins (P, K, K): true where a row's i-th is better than its j-th.
    From a file they are its pairs (K = 2), else samples of the policy, every two of which the
    labeller compares in one call; two answers of the same words are a tie whatever it says.
    """
    problems, pairs = step_pairs(run, prompts)
    if pairs is not None:
        places, wins = [pairs.chosen, pairs.rejected], torch.zeros(len(pairs), 2, 2, dtype=bool)
        wins[:, 0, 1] = True
        return places, wins.to(pairs.chosen.mask.device)
    rollout = run.sample(problems, answers, temperature=temperature, purpose="pairs")
    sides = list(itertools.combinations(range(answers), 2))                 # C of them
    rows = torch.tensor([[p * answers + k for k in side] for p in range(len(problems))
                         for side in sides]).flatten().to(rollout.prompt.device)
    asked = [problem for problem in problems for _ in sides]
    matches = replace(rollout[rows], prompt=torch.arange(len(asked)).repeat_interleave(2)
                      .to(rows.device))
    words = matches.responses()
    same = torch.tensor([a == b for a, b in zip(words[::2], words[1::2])])
    lead = label(run, asked, matches).where(~same.to(rollout.mask.device), 0.0)
    lead = lead.view(len(problems), len(sides))
    wins = torch.zeros(len(problems), answers, answers, dtype=torch.bool, device=lead.device)
    for c, (i, j) in enumerate(sides):
        wins[:, i, j], wins[:, j, i] = lead[:, c] > 0, lead[:, c] < 0
    return [rollout[k::answers] for k in range(answers)], wins


def ranked_pairs(rollout, label):
    """Pairs of rows 2i and 2i+1 of a rollout, in the order that label (P,) says; ties are left out.

    Two answers of the same words are a tie whatever the label says.
    """
    same = torch.tensor([a == b for a, b in zip(*[iter(rollout.responses())] * 2)])
    first = torch.arange(0, len(rollout), 2, device=label.device)
    first, label = first[~same.to(label.device)], label[~same.to(label.device)]
    first, label = first[label != 0], label[label != 0]
    return Pairs(rollout[first + (label < 0)], rollout[first + (label > 0)])


def file_pairs(run, problems):
    """Pairs of rows with the columns `chosen` and `rejected`.

    MinipostError where an answer does not fit the model's context.
    """
    prompts = [problem.prompt for problem in problems]
    return Pairs(*(file_answers(run, prompts, [p.columns[side] for p in problems])
                   for side in ("chosen", "rejected")))


def file_answers(run, prompts, answers):
    """Texts as Sequences; MinipostError where a prompt with its answer passes the context."""
    vocabulary, policy = run.vocabulary, run.policy.module
    seqs = pack([vocabulary.prompt(text) for text in prompts],
                [vocabulary.response(text) for text in answers], vocabulary.pad)
    limit, longest = policy.config.max_position_embeddings, seqs.tokens.shape[1]
    if longest > limit:
        raise MinipostError(f"a prompt with one of its answers has {longest} tokens; the model's "
                            f"context holds {limit}")
    return seqs.to(policy.device)


def scorer(run):
    """The learner of the run's reward model; it starts as the policy with a score for its head."""
    return run.learner("reward model", lambda: RewardModel(copy.deepcopy(run.policy.module)))


# ---- learning from pairs without a reward model: what DPO and its relatives share

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

        return report(run, splits, implied)
    found = run.results(splits)
    for split, problems in splits.items():
        rewards, texts = win_rate(run, problems)
        found[split]["win rate"] = {"score": asdict(interval(rewards)), "rewards": rewards,
                                    "texts": texts}
    return found


# ---- how good a scorer is

def report(run, splits, score):
    """Held-out pair accuracy, calibration and best-of-n of a scorer, in the form of Session.measure.

    score(sequences) -> (B,).  Per prompt the pair is the first two of its answers that differ in
    reward; the policy that answers is the run's.  `calibration error` is the mean gap between
    sigmoid(score difference) and how often the first is better, over ten equal bins.
    """
    found = {}
    for split, problems in splits.items():
        if "chosen" in problems[0].columns:
            pairs = file_pairs(run, problems)
            gap = score(pairs.chosen) - score(pairs.rejected)
            found[split] = on_pairs(gap.tolist(), list(range(len(problems))))
            continue
        rollout = run.look(problems, BEST_OF, 1.0)
        gold, guess = run.grade(problems, rollout), score(rollout)
        gold, guess = gold.view(-1, BEST_OF), guess.view(-1, BEST_OF)
        rows, gaps = [], []
        for row, values in enumerate(gold.tolist()):
            other = next((k for k, value in enumerate(values) if value != values[0]), None)
            if other is not None:
                sign = 1 if values[0] > values[other] else -1
                rows.append(row)
                gaps.append(sign * float(guess[row, 0] - guess[row, other]))
        if not rows:
            raise MinipostError(f"{split}: all answers to each prompt have the same reward, so no "
                                "pair of them can be ranked")
        picked = gold.gather(1, guess.argmax(1, keepdim=True))[:, 0].tolist()
        found[split] = {**on_pairs(gaps, rows), f"best of {BEST_OF}": result(picked, rollout, run),
                        "one sample": result(gold[:, 0].tolist(), rollout, run),
                        f"exact best of {BEST_OF}": result(gold.amax(1).tolist(), rollout, run)}
    return found


def on_pairs(gaps, rows):
    """Accuracy and calibration of score differences that should all be positive."""
    if any(not isfinite(gap) for gap in gaps):
        raise MinipostError("the difference of two scores is not finite; the model that gives them "
                            "is broken")
    right = [float(gap > 0) + 0.5 * (gap == 0) for gap in gaps]
    texts = [f"better answer ahead by {round(gap, 2) + 0.0:.2f}" for gap in gaps]
    # Which of a pair stands first is arbitrary, and calibration needs both outcomes.
    coins = [random.Random(row).random() < 0.5 for row in rows]
    chance = torch.tensor(gaps, dtype=torch.float64).mul(
        torch.tensor([1.0 if coin else -1.0 for coin in coins], dtype=torch.float64)).sigmoid()
    error = bootstrap(lambda picked: calibration_error(*zip(*picked)),
                      list(zip(chance.tolist(), map(float, coins))))
    return {
        "pair accuracy": {"score": asdict(interval(right)), "rewards": right, "texts": texts,
                          "rows": rows},
        "calibration error": {"score": asdict(error), "rewards": right, "texts": texts,
                              "rows": rows},
    }


def calibration_error(chance, outcome, bins=10):
    """Expected calibration error: sum over bins of share * |mean outcome - mean chance|."""
    groups = {}
    for p, y in zip(chance, outcome, strict=True):
        groups.setdefault(min(bins - 1, int(p * bins)), []).append(y - p)
    return sum(abs(sum(gap)) for gap in groups.values()) / len(chance)


def result(values, rollout, run):
    return {"score": asdict(interval(values)), "rewards": values,
            "texts": run.texts(rollout)[:: BEST_OF]}
