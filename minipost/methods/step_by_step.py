"""Distilling step by step (Hsieh et al. 2023, arxiv.org/abs/2305.02301; survey sec. 4.5).

A teacher thinks over a problem: it writes a rationale, and at its end an answer, the label.  The
student learns both, as two tasks that the cue of the prompt tells apart ("Answer:", "Think:").  At
test time it is asked for the label alone, so it pays for no rationale:

    L = -(1/N) sum over label tokens of logp_t - (lam / M) sum over rationale tokens of logp_t

    dL/dlogp_t = -1/N on label tokens, -lam/M on rationale tokens, 0 elsewhere

N and M are the tokens of each kind in the gradient step.  `--lam 0` is fine-tuning on the teacher's
labels.  The teacher thinks over `examples` problems once, and they are learnt in epochs.  Its
answers need not be right, and one that states nothing is left out.

Where we differ from the paper: a rationale ends with its answer, as the task's worked answers do.
The cue is the task's own.  The paper's own code weighs by alpha and 1 - alpha, half each by
default.
"""

from dataclasses import dataclass, replace

import torch

from minipost import checkpoint
from minipost.errors import Descent, MinipostError, Schedule
from minipost.measure.meter import Meter
from minipost.ops import masked_sum, shapes
from minipost.rollout import logprobs
from minipost.tokenizer import unlike

TASK = "arithmetic"
KNOBS = {"direct": True, "terms": 3}
MODEL = "checkpoints/student"
METRIC = "greedy"
LARGE_LR = 1e-5
SCORED = False
PROOF = "adds up two steps of sft, on labels and on rationales"


@dataclass(frozen=True)
class Config(Descent):
    """A student learns a teacher's answers and, under another cue, how it came to them."""

    steps: int = 300            # gradient steps
    teacher: str = "checkpoints/base"  # the teacher's model directory; same tokenizer
    examples: int = 1024        # problems that the teacher thinks over
    lam: float = 1.0            # weight of the rationales (lambda); 0: labels alone
    temperature: float = 0.0    # of the teacher; 0: greedy
    batch_size: int = 64        # problems per gradient step
    lr: float = 1e-3            # peak learning rate (eta); it ends at zero
    schedule: Schedule = "cosine"  # of the learning rate after the warm-up
    warmup_steps: int = 10      # steps over which the learning rate climbs to its peak
    max_grad_norm: float = 1.0  # the gradient is clipped to this norm

    LIMITS = {"temperature": ">= 0"}


@shapes(logp="B T", told="B", mask="B T")
def loss(logp, told, mask, *, lam, labels, rationales):
    """logp, mask (B, T); told (B,): which rows are rationales; labels = N, rationales = M

    ->  scalar loss, metrics that add up
    """
    label = -masked_sum(logp, mask & ~told[:, None]) / labels
    rationale = -masked_sum(logp, mask & told[:, None]) / rationales
    return label + lam * rationale, {"loss": (label + lam * rationale).detach(),
                                     "loss/label": label.detach(),
                                     "loss/rationale": rationale.detach()}


def loss_grad(logp, told, mask, *, lam, labels, rationales):
    """The derivative of `loss`: {"logp": (B, T)}."""
    each = told.to(logp) * (lam / rationales) + (~told).to(logp) / labels   # (B,)
    return {"logp": -each[:, None] * mask}


def worked(task):
    """The task in the mode in which it is worked out; MinipostError where it has no two modes."""
    if not task.direct or task.like is None:
        raise MinipostError(f"the task {task.name} is not one that is answered at once and can be "
                            "worked out; use --task arithmetic --direct")
    return replace(task, direct=False)


def check(run, cfg):
    """MinipostError where the task has no two modes."""
    worked(run.task)


def load_teacher(run, directory):
    """The frozen teacher.  MinipostError where its vocabulary is not the student's."""
    teacher, vocabulary = checkpoint.load(directory, run.policy.module.device)
    if said := unlike(vocabulary, run.vocabulary):
        raise MinipostError(f"{directory}: its vocabulary is not the student's: {said}; take a "
                            "teacher with the same tokenizer")
    return teacher.requires_grad_(False)


def taught(run, cfg, teacher):
    """What the teacher says: [(problem, label, worked problem, rationale)].

    MinipostError where it never states an answer.
    """
    thinking = worked(run.task)
    with run.once(0):
        problems = run.problems(cfg.examples)
        asked = [thinking.like(problem) for problem in problems]
        rollout = run.sample(asked, 1, temperature=cfg.temperature, module=teacher,
                             purpose="teacher")
    found = [(problem, f" {thinking.parse(text)}", other, text)
             for problem, other, text in zip(problems, asked, run.texts(rollout))
             if thinking.parse(text) is not None]
    if not found:
        raise MinipostError(f"none of the teacher's {len(asked)} answers states anything; there is "
                            "nothing to learn from")
    return found


def train(run, cfg, teacher=None):
    """teacher's rationales -> labels and rationales -> loss -> update.  Yields metrics per step.

    teacher: a module to use instead of the one that cfg names.
    """
    policy, rows = run.policy, taught(run, cfg, teacher or load_teacher(run, cfg.teacher))
    while True:
        problems, labels, asked, rationales = zip(*run.deal(rows, cfg.batch_size))
        batch = run.encode([*problems, *asked], [*labels, *rationales])
        told = torch.arange(len(batch), device=batch.mask.device) >= len(labels)    # (B,)
        n, m = (int(batch.mask[some].sum()) for some in (~told, told))
        run.tokens += n + (m if cfg.lam else 0)
        meter = Meter("loss", "loss/label", "loss/rationale")
        for i in run.micro_batches(range(len(batch) if cfg.lam else len(labels)), batch):
            part, side = batch.take(i, told)
            value, stats = loss(logprobs(policy.module, part), side, part.mask, lam=cfg.lam,
                                labels=n, rationales=m)
            value.backward()
            meter.add(**stats)
        rate = cfg.rate(cfg.lr, run.step)
        norm = policy.step(rate, cfg.max_grad_norm, cfg.weight_decay)
        yield {**meter.means(), "examples": len(rows), "grad_norm": norm, "learning_rate": rate}
