"""SFT: supervised fine-tuning, maximum likelihood on given answers (survey sec. 2 and 4).

    L = -(1/N) sum over answer tokens of log pi(y_t | x, y_<t)          N answer tokens in the step

    dL/dlogp_t = -1/N on answer tokens, 0 elsewhere;   with p = softmax(z),  dL/dz_t = (p - e_y)/N

The mean is over the tokens of the whole gradient step, so an answer counts by its length, and
micro-batches or ranks change nothing.  EOS is an answer token, else the model never learns to stop.
The prompt's tokens are not.

What is not in the data any more is forgotten (survey sec. 7).  `--replay` names a task, or a file
of rows, from which each step learns too (rehearsal, as in Scialom et al. 2022,
arxiv.org/abs/2205.12393).  A step has B answers as ever, and so many more that s of all are
replayed: B s / (1 - s), in the mean over the steps.  Each is drawn anew, by seed and step.
"""

from dataclasses import dataclass
from pathlib import Path

from minipost.chat import Messages
from minipost.datasets.fitting import fitted
from minipost.datasets.rows import File
from minipost.errors import Descent, MinipostError, Schedule
from minipost.measure.meter import Meter
from minipost.opening import as_asked
from minipost.ops import masked_sum, shapes
from minipost.rollout import logprobs, stacked
from minipost.tasks import TASKS, load

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
    replay: str = ""            # a task, or a file of rows, that is not to be forgotten
    replay_share: float = 0.1   # share of a step's answers that are replayed (s)

    LIMITS = {"replay_share": ">= 0, < 1"}

    def __post_init__(self):
        super().__post_init__()
        if self.replay_share != Config.replay_share and not self.replay:
            raise MinipostError("--replay-share goes with --replay, a task or a file of rows; "
                                "without it nothing is replayed")


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
    old = replay_of(run, cfg) if hasattr(cfg, "replay") else None  # other methods ask too
    for task in filter(None, (run.task, old)):
        for problem in task.training() if task.training else ():
            task.demonstrate(problem, rng)


def demonstrations(run, n):
    """The step's problems, each with the answer that the task writes: n pairs."""
    rng = run.rng("demonstrations")
    return [(p, run.task.demonstrate(p, rng)) for p in run.problems(n)]


def replay_of(run, cfg):
    """The Task that is replayed, asked in the form of the run's own; None where none is.

    MinipostError where there is none of this name, or where the forms cannot be the same.
    """
    if not cfg.replay:
        return None
    if cfg.replay not in TASKS and not Path(cfg.replay).exists():
        raise MinipostError(f"--replay {cfg.replay}: there is no such file, nor such a task; tasks "
                            f"are {', '.join(TASKS)}")
    chat, = (isinstance(p.prompt, Messages) for p in run.problems(1))
    try:
        task = load(cfg.replay)() if cfg.replay in TASKS else File(cfg.replay)
        if isinstance(task, File) and task.few:
            task = task.undivided()
        if not chat and any(isinstance(p.prompt, Messages) for p in task.heldout(1)):
            raise MinipostError(f"its prompts are messages, and those of {run.task.name} are "
                                "strings; add --chat")
        return fitted(as_asked(task, run.vocabulary, chat), run.policy.module, run.vocabulary,
                      run.max_new_tokens, READS, task.heldout(16), run.control_tokens)
    except MinipostError as error:
        raise MinipostError(f"--replay {cfg.replay}: {error}") from None


def replayed(run, cfg, task, first=0):
    """The step's replayed problems of this task, each with its answer."""
    each, step, rng = cfg.replay_share / (1 - cfg.replay_share), run.step - first, run.rng("replay")
    n = round(each * cfg.batch_size * (step + 1)) - round(each * cfg.batch_size * step)
    return [(p, task.demonstrate(p, rng)) for p in task.sample(n, rng)]


def train(run, cfg, rows=None, first=0):
    """problems -> demonstrations -> log-probs -> loss -> update.  Yields metrics per step.

    rows: (problem, answer) pairs to learn, in epochs, instead of the task's demonstrations.
    first: the step of the run at which this begins, where other stages come before.
    """
    policy, old = run.policy, replay_of(run, cfg)
    while True:
        batch = run.encode(*zip(*(run.deal(rows, cfg.batch_size, first) if rows else
                                  demonstrations(run, cfg.batch_size))))
        if old and (again := replayed(run, cfg, old, first)):
            with run.on(old):
                batch = stacked([batch, run.encode(*zip(*again))])
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


def cold_start(run, cfg, n=0, first=0):
    """The first stage of a pipeline: cfg.steps of SFT on n demonstrations, the same in each epoch.

    With n = 0 they are new ones in every step.  first: the step of the run at which it begins.
    Yields metrics per step, and ends.
    """
    with run.at(first):
        rows = demonstrations(run, n) if n else None
    stage = train(run, cfg, rows, first)
    while run.step < first + cfg.steps:
        yield next(stage)
