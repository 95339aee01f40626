"""Distillation: a small student learns from a larger teacher (survey sec. 3.3.5, 4.5).

At every token of an answer, q is the teacher's distribution over the vocabulary and p = softmax(z)
is the student's.  Over the N tokens of a gradient step

    L = (1/N) sum_t D(q_t, p_t)

    --mix 0      D = KL(q || p)                         word-level forward (Hinton et al. 2015)
    --mix 1      D = KL(p || q)                         reverse: seeks what the teacher is sure of
    --mix b      D = b KL(q || m) + (1-b) KL(p || m),   m = b q + (1-b) p
                                                        generalised Jensen-Shannon (Agarwal et al.
                                                        2024, arxiv.org/abs/2306.13649, eq. 3)

    dL/dz_t = (p - q) / N,   p (log p/q - KL(p||q)) / N,   (1-b) p (log p/m - KL(p||m)) / N

For 0 < b < 1, D does not tend to the formulas at the ends.  As b -> 0, D/b -> KL(q||p), so a small
b gives a small loss, not forward KL.

A share `on_policy` of the answers of each step comes from the student itself, the rest from the
teacher.  In GKD a coin says whether all answers of a step are the student's, or all are from a
fixed data set (algorithm 1).  On its own answers the student learns what to do after its own
mistakes.  No gradient goes through the sampling.  `--level sequence` treats the teacher's answers
as certain: q = 1 on each of their tokens.  This is fine-tuning on them (Kim & Rush 2016,
arxiv.org/abs/1606.07947).
"""

from dataclasses import dataclass
from math import log
from typing import Literal

import torch

from minipost import checkpoint
from minipost.errors import Descent, MinipostError, Schedule
from minipost.measure.meter import Meter
from minipost.measure.results import results
from minipost.ops import kl_exact, kl_exact_grad, shapes
from minipost.rollout import concat, distribution
from minipost.tokenizer import unlike

TASK = "arithmetic"
METRIC = "greedy"
LARGE_LR = 1e-5
SCORED = False
KNOBS = {"direct": True}
MODEL = "checkpoints/student"
PROOF = [
    dict(config=dict(batch_size=1, on_policy=0.0), rows=1, loss="forward_kl", factor=1.0,
         divisor="tokens"),
    dict(variant="--mix 1", config=dict(batch_size=1, on_policy=1.0, mix=1.0), rows=1,
         loss="reverse_kl", why="KL in each state, not of how often it is reached",
         divisor="tokens"),
]


@dataclass(frozen=True)
class Config(Descent):
    """A small model learns a larger one's distributions, on the answers of both."""

    steps: int = 300            # gradient steps
    teacher: str = "checkpoints/base"  # the teacher's model directory; same tokenizer
    level: Literal["word", "sequence"] = "word"  # the teacher's distributions, or just its answers
    mix: float = 0.0            # 0: forward KL; 1: reverse KL; between: a mixture (beta of GKD)
    on_policy: float = 0.5      # share of the answers that the student samples (lambda)
    batch_size: int = 128       # answers per gradient step
    temperature: float = 1.0    # sampling temperature of the answers
    lr: float = 1e-3            # peak learning rate (eta); it ends at zero
    schedule: Schedule = "cosine"  # of the learning rate after the warm-up
    warmup_steps: int = 10      # steps over which the learning rate climbs to its peak
    max_grad_norm: float = 1.0  # the gradient is clipped to this norm

    LIMITS = {"mix": ">= 0, <= 1", "on_policy": ">= 0, <= 1"}

    def __post_init__(self):
        super().__post_init__()
        if self.level == "sequence" and (self.on_policy or self.mix):
            raise MinipostError("level is sequence, which learns the teacher's answers alone; "
                                "expected on_policy 0 and mix 0")


def mixture(logp_all, logq_all, mix):
    """log m.  (N, V)"""
    return torch.logaddexp(logq_all + log(mix), logp_all + log(1 - mix))


def forward_kl(logq_all, logp_all):
    """KL(q || p), where q may be a certainty.  (N, V) twice -> (N,)"""
    q = logq_all.exp()
    return (q * (logq_all - logp_all)).where(q > 0, 0.0).sum(-1)


@shapes(logits="N V", logq_all="N V")
def loss(logits, logq_all, *, mix, count):
    """Both (N, V), logq_all log-probs; count = N  ->  scalar loss, metrics that add up"""
    logp_all = logits.log_softmax(-1)
    if mix == 0:
        value = forward_kl(logq_all, logp_all).sum() / count
    elif mix == 1:
        value = kl_exact(logp_all, logq_all).sum() / count
    else:
        log_m = mixture(logp_all, logq_all, mix)
        value = (mix * forward_kl(logq_all, log_m)
                 + (1 - mix) * kl_exact(logp_all, log_m)).sum() / count
    return value, {"loss": value.detach()}


def loss_grad(logits, logq_all, *, mix, count):
    """The derivative of `loss`: {"logits": (N, V)}."""
    logp_all = logits.log_softmax(-1)
    if mix == 0:
        return {"logits": (logp_all.exp() - logq_all.exp()) / count}
    if mix == 1:
        return {"logits": kl_exact_grad(logp_all, logq_all) / count}
    log_m = mixture(logp_all, logq_all, mix)
    return {"logits": (1 - mix) * kl_exact_grad(logp_all, log_m) / count}


def load_teacher(run, directory):
    """The frozen teacher.  MinipostError where its vocabulary is not the student's."""
    teacher, vocabulary = checkpoint.load(directory, run.policy.module.device)
    sizes = [model.config.vocab_size for model in (teacher, run.policy.module)]
    said = unlike(vocabulary, run.vocabulary)
    if said or sizes[0] != sizes[1]:
        raise MinipostError(f"{directory}: its vocabulary ({sizes[0]} ids) is not the student's "
                            f"({sizes[1]} ids){said and ': ' + said}; distributions can be "
                            "compared over the same only")
    return teacher.requires_grad_(False)


def measure(run, splits, cfg):
    """The student's results and, beside them, the teacher's."""
    found, teacher = results(run, splits), load_teacher(run, cfg.teacher)
    for split, theirs in results(run, splits, teacher).items():
        found[split] |= {f"teacher {metric}": result for metric, result in theirs.items()}
    return found


def certain(seqs, like):
    """log q of a teacher that is sure of every token of these answers.  (N, V)"""
    ids = seqs.targets[seqs.mask]
    return torch.nn.functional.one_hot(ids, like.shape[-1]).to(like).log()


def answers(run, cfg, teacher):
    """This step's answers, one to each of `batch_size` problems: the student's come first."""
    problems = run.problems(cfg.batch_size)
    own = round(cfg.on_policy * cfg.batch_size)
    sides = [(problems[:own], None, "student"), (problems[own:], teacher, "teacher")]
    return concat([run.sample(some, 1, temperature=cfg.temperature, module=module, purpose=purpose)
                   for some, module, purpose in sides if some], run.vocabulary.pad)


def train(run, cfg, teacher=None):
    """answers -> both distributions -> loss -> update.  Yields metrics per step.

    `teacher`: a module to use instead of the one that cfg names.
    """
    policy, teacher = run.policy, teacher or load_teacher(run, cfg.teacher)
    while True:
        batch = answers(run, cfg, teacher)
        count, meter = int(batch.mask.sum()), Meter("loss")
        for i in run.micro_batches(range(len(batch)), batch, whole=True):
            part = batch[i]
            logp_all = distribution(policy.module, part)                    # (N, V)
            with torch.no_grad():
                logq_all = certain(part, logp_all) if cfg.level == "sequence" else \
                    distribution(teacher, part)
            value, stats = loss(logp_all, logq_all, mix=cfg.mix, count=count)
            value.backward()
            meter.add(**stats)
        rate = cfg.rate(cfg.lr, run.step)
        norm = policy.step(rate, cfg.max_grad_norm, cfg.weight_decay)
        yield {**meter.means(), "grad_norm": norm, "learning_rate": rate}
