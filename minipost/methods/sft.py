"""SFT: supervised fine-tuning, maximum likelihood on given answers (survey sec. 2 and 4).

    L = -(1/N) sum over answer tokens of log pi(y_t | x, y_<t)          N answer tokens in the step

    dL/dlogp_t = -1/N on answer tokens, 0 elsewhere;   with p = softmax(z),  dL/dz_t = (p - e_y)/N

The mean is over the tokens of the whole gradient step, so an answer counts by its length, and
micro-batches or ranks change nothing.  EOS is an answer token, else the model never learns to stop.
The prompt's tokens are not.
"""

from dataclasses import dataclass

from minipost.errors import Descent, Schedule
from minipost.measure.meter import Meter
from minipost.ops import masked_sum, shapes
from minipost.rollout import logprobs

TASK = "facts"
METRIC = "greedy"
LARGE_LR = 1e-5
SCORED = False
READS = ("completion",)
PROOF = [dict(config=dict(batch_size=1), rows=1, loss="maximum_likelihood", factor=1.0,
              divisor="tokens")]


@dataclass(frozen=True)
class Config(Descent):
    """Supervised fine-tuning on demonstrations of a task, or on --data with completions."""

    steps: int = 800            # gradient steps
    batch_size: int = 64        # answers per gradient step (B)
    lr: float = 1e-3            # peak learning rate (eta)
    schedule: Schedule = "cosine"  # of the learning rate after the warm-up
    warmup_steps: int = 20      # steps over which the learning rate climbs to its peak
    max_grad_norm: float = 1.0  # the gradient is clipped to this norm


@shapes(logp="B T", mask="B T")
def loss(logp, mask, *, count):
    """logp, mask (B, T); count = N  ->  scalar loss, scalar metrics that add up over a step"""
    value = -masked_sum(logp, mask) / count
    return value, {"loss": value.detach()}


def loss_grad(logp, mask, *, count):
    """The derivative of `loss`: {"logp": (B, T)}."""
    return {"logp": -mask.to(logp) / count}


def check(run, cfg):
    """MinipostError where a problem has no answer to learn."""
    rng = run.rng("demonstrations")
    for problem in run.task.training() if run.task.training else ():
        run.task.demonstrate(problem, rng)


def demonstrations(run, n):
    """The step's problems, each with the answer that the task writes: n pairs."""
    rng = run.rng("demonstrations")
    return [(p, run.task.demonstrate(p, rng)) for p in run.problems(n)]


def train(run, cfg, rows=None, first=0):
    """problems -> demonstrations -> log-probs -> loss -> update.  Yields metrics per step.

    rows: (problem, answer) pairs to learn, in epochs, instead of the task's demonstrations.
    first: the step of the run at which this begins, where other stages come before.
    """
    policy = run.policy
    while True:
        batch = run.encode(*zip(*(run.deal(rows, cfg.batch_size, first) if rows else
                                  demonstrations(run, cfg.batch_size))))
        count = int(batch.mask.sum())
        run.tokens += count
        meter = Meter("loss")
        for i in run.micro_batches(range(len(batch)), batch):
            part = batch[i]
            value, stats = loss(logprobs(policy.module, part), part.mask, count=count)
            value.backward()
            meter.add(**stats)
        rate = cfg.rate(cfg.lr, run.step - first)
        norm = policy.step(rate, cfg.max_grad_norm, cfg.weight_decay)
        yield {**meter.means(), "grad_norm": norm, "learning_rate": rate}
