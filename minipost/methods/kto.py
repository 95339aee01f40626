"""KTO: Kahneman-Tversky Optimization (Ethayarajh et al. 2024, arxiv.org/abs/2402.01306).

KTO needs no pairs: each answer is called good or bad by itself.  A person judges an answer against
what could be expected, and feels a loss more than a gain.  With h = sum_t log pi/ref of an answer
and z0 an estimate of KL(pi || ref) that has no gradient

    v = sigmoid(beta (h - z0)) if good, sigmoid(beta (z0 - h)) if bad
    L = (1/B) sum w (1 - v),    w = good_weight or bad_weight                        (eq. 8)

    dL/dlogp_t = -w beta v (1 - v) / B if good, +w beta v (1 - v) / B if bad

z0 is max(0, mean of h) over mismatched rows: row i's prompt with row i+1's answer (sec. 4.1).  Of a
file's pairs, which are taken apart, the good answers come first.  All answers of a step share one
z0.  So the loss is defined even for a batch of one kind of answers, but
its direction needs both kinds.

Where we differ from the paper: without labels or pairs in --data, answers are sampled from the
starting policy, and those with more than the step's mean reward are good, those with less are bad.
Those that have it, as all do where rewards are equal, have no part.  --data may have rows
with a `label`, or pairs, which are taken apart into a good and a bad answer.
"""

from dataclasses import dataclass

import torch

from minipost.datasets.preferences import turned
from minipost.errors import Descent
from minipost.measure import scorers
from minipost.measure.meter import Meter
from minipost.measure.results import Result
from minipost.ops import row_sums, shapes
from minipost.rollout import logprobs, pack

TASK = "wording"
METRIC = "win rate"
SCORED = False
READS = ("chosen", "rejected", "completion", "label")
TIE = 1e-9                  # rewards as near as this to their mean are rounding
LARGE = {"beta": 0.1}       # as its paper has it; the default below suits the nano model
PROOF = [dict(config=dict(batch_size=2, beta=0.3), rows=2, loss="kto_loss",
              why="its z0 is a mean over answers of ref, cut at 0; KL(pi || ref) is one over those "
                  "of pi")]


@dataclass(frozen=True)
class Config(Descent):
    """Preference optimisation on answers that are good or bad by themselves."""

    steps: int = 120            # gradient steps
    batch_size: int = 128       # answers per step (B)
    temperature: float = 1.0    # sampling temperature of the answers
    beta: float = 0.5           # how fast worth saturates (beta)
    good_weight: float = 1.0    # weight of good answers (lambda_D)
    bad_weight: float = 1.0     # weight of bad answers (lambda_U)
    lr: float = 5e-5            # learning rate (eta)
    max_grad_norm: float = 1.0  # the gradient is clipped to this norm

    LIMITS = {"batch_size": ">= 2", "beta": "> 0"}


def worth(logp, logp_ref, mask, good, z0, beta):
    """v of each answer.  (b,)"""
    lead = beta * (row_sums(logp - logp_ref, mask) - z0)
    return torch.sigmoid(torch.where(good, lead, -lead))


@shapes(logp="B T", logp_ref="B T", mask="B T", good="B")
def loss(logp, logp_ref, mask, good, *, z0, beta, good_weight, bad_weight, count):
    """Log-probs and mask (b, T), good (b,) bool; count = B  ->  scalar loss, metrics that add up"""
    weight = torch.where(good, good_weight, bad_weight).to(logp)
    value = (weight * (1 - worth(logp, logp_ref, mask, good, z0, beta))).sum() / count
    return value, {"loss": value.detach()}


def loss_grad(logp, logp_ref, mask, good, *, z0, beta, good_weight, bad_weight, count):
    """The derivative of `loss`: {"logp": (b, T)}."""
    weight = torch.where(good, -good_weight, bad_weight).to(logp)
    v = worth(logp, logp_ref, mask, good, z0, beta)
    return {"logp": (weight * beta * v * (1 - v) / count)[:, None] * mask}


def measure(run, splits, cfg):
    """Win rate against the starting policy; on a file's pairs, the implied reward's ranking.

    On a file's labels: how often the log-ratio has the sign of the label.
    """
    if not all(labelled(problems[0]) for problems in splits.values()):
        return scorers.report_policy(run, splits, cfg.beta)
    policy, reference, found = run.policy.module, run.reference(), {}
    for split, problems in splits.items():
        texts = [p.columns["completion"] for p in problems]
        seqs = run.encode(problems, texts)
        drift = run.logprobs(policy, seqs) - run.logprobs(reference, seqs)
        right = [0.5 if h == 0 else float((h > 0) == p.columns["label"])
                 for h, p in zip(row_sums(drift, seqs.mask).tolist(), problems)]
        found[split] = {"label accuracy": Result.of(right, texts)}
    return found


def labelled(problem):
    """Whether a row of a file calls its completion good or bad."""
    return {"completion", "label"} <= set(problem.columns)


def rows(run, cfg):
    """The rows of the data, and how many a step takes: a pair is two answers."""
    known = run.task.training() if run.task.training else ()
    pairs = known and "chosen" in known[0].columns
    return len(known), max(1, cfg.batch_size // 2) if pairs else cfg.batch_size


def draw(run, cfg, reference):
    """This step's answers and which of them are good: Sequences of B rows, (B,) bool."""
    first = run.problems(1)[0]
    if "chosen" in first.columns:
        problems = run.problems(max(1, cfg.batch_size // 2))
        rows = [(p, p.columns[side], side == "chosen")      # so that the next row is another prompt
                for side in ("chosen", "rejected") for p in problems]
    elif labelled(first):
        rows = [(p, p.columns["completion"], p.columns["label"])
                for p in run.problems(cfg.batch_size)]
    else:
        problems = run.problems(cfg.batch_size)
        rollout = run.sample(problems, 1, temperature=cfg.temperature, module=reference)
        lead = run.grade(problems, rollout).double()
        lead = lead - lead.mean()
        lead = lead * turned(run, len(problems)).to(lead)
        apart = lead.abs() > TIE * lead.abs().amax().clamp(min=1)
        return rollout[apart], lead[apart] > 0
    problems, answers, good = zip(*rows)
    seqs = run.encode(problems, answers)
    run.tokens += int(seqs.mask.sum())
    return seqs, torch.tensor(good, device=seqs.mask.device)


def mismatched(seqs, pad, limit):
    """Each row's prompt with the next row's answer, cut where it would pass the context."""
    starts = (seqs.mask.int().argmax(1) + 1).tolist()
    prompts = [row[:start] for row, start in zip(seqs.tokens.tolist(), starts)]
    ids, learnt = ([row[: max(1, limit - len(prompt))] for prompt, row in zip(
        prompts, each[1:] + each[:1])] for each in (seqs.written(), seqs.learnt()))
    return pack(prompts, ids, pad, learnt).to(seqs.mask.device)


def train(run, cfg):
    """answers -> log-probs, z0 from mismatched ones -> loss -> update.  Yields metrics per step."""
    policy, reference = run.policy, run.reference()
    while True:
        rate = cfg.rate(cfg.lr, run.step)
        seqs, good = draw(run, cfg, reference)
        count, meter, z0 = len(seqs), Meter("loss", "drift/good", "drift/bad"), 0.0
        if count:
            wrong = mismatched(seqs, run.vocabulary.pad, run.longest)
            drift = run.logprobs(policy.module, wrong) - run.logprobs(reference, wrong)
            z0 = max(0.0, float(row_sums(drift, wrong.mask).mean()))
        for i in run.micro_batches(range(count), seqs):
            batch = seqs[i]
            with torch.no_grad():
                logp_ref = logprobs(reference, batch)
            logp = logprobs(policy.module, batch)
            value, stats = loss(logp, logp_ref, batch.mask, good[i], z0=z0, beta=cfg.beta,
                                good_weight=cfg.good_weight, bad_weight=cfg.bad_weight, count=count)
            value.backward()
            h = row_sums(logp.detach() - logp_ref, batch.mask)
            meter.add(**stats, **{"drift/good": h[good[i]].sum() / max(1, int(good.sum())),
                                  "drift/bad": h[~good[i]].sum() / max(1, int((~good).sum()))})
        norm = policy.step(rate, cfg.max_grad_norm, cfg.weight_decay) if count else 0.0
        known = {"good": float(good.double().mean())} if count else {}
        yield {**meter.means(), "z0": z0, **known, "answers": count, "grad_norm": norm,
               "learning_rate": rate}
