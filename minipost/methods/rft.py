"""RFT: rejection-sampling fine-tuning, expert iteration and STaR (survey sec. 3.3.2).

The policy answers each problem several times.  Answers that a reward finds right are kept, each
text once, and learnt like demonstrations (Yuan et al. 2023, arxiv.org/abs/2308.01825).  With
weights w_i of the kept answers of a gradient step

    L = -sum_i w_i sum_t logp_t / W,    W = sum_i w_i |y_i|

    dL/dlogp_t = -w_i / W on the tokens of answer i

`--weigh answer` sets w = 1.  `--weigh prompt` sets w = 1 / (kept answers to the prompt), so hard
prompts count as much as easy ones.  If each text counted as often as it is sampled, `answer` would
follow REINFORCE's gradient with a reward of 0 or 1 and no baseline, and `prompt` the gradient of
the log of each prompt's chance of success (expectation maximisation).  Each text counts once, so
that common texts do not crowd out the others.

--iterations 3            expert iteration: the policy gives new answers at the start of each third
                          and goes on from there (Anthony et al. 2017, arxiv.org/abs/1705.08439)
--iterations 3 --restart  STaR: it learns each third from the first weights again (Zelikman et al.
                          2022, arxiv.org/abs/2203.14465, algorithm 1)
--hint                    STaR's rationalisation: prompts without a right answer are asked again
                          with the answer in the prompt, and learnt without it (sec. 3.3)

With --data the answers to choose from are rows of `completion` and `reward`.  The metric is then
how likely the policy finds the right ones among the held-out rows.
"""

import copy
from dataclasses import dataclass
from typing import Literal

from minipost.datasets.tools import refuse
from minipost.datasets.trajectories import Trajectories, given_answers, reward_of, stated
from minipost.errors import Descent, MinipostError, Schedule
from minipost.measure.meter import Meter
from minipost.measure.results import Result, results
from minipost.ops import masked_sum, shapes
from minipost.rollout import logprobs, pack
from minipost.tasks.base import Problem

TASK = "arithmetic"
KNOBS = {"hurried": True}
DEMO = {"model": "checkpoints/thinker", "ask": 33}
METRIC = "greedy"
LARGE_LR = 1e-5
READS = ("completion", "label", "reward")
PROOF = [dict(config=dict(prompts=1, group_size=2, batch_size=2, least=0.5), rows=2,
              loss="minus_success", why="each text once; with none right there is no step",
              divisor="kept")]


@dataclass(frozen=True)
class Config(Descent):
    """Fine-tuning on those of the policy's own answers that a reward finds right."""

    steps: int = 100            # gradient steps
    prompts: int = 512          # problems answered before learning, unless --data has answers
    group_size: int = 8         # answers per problem
    iterations: int = 1         # parts of the run, each with new answers by the policy
    restart: bool = False       # learn in each part from the first weights (STaR)
    hint: bool = False          # where no answer is right, ask again with the answer in the prompt
    least: float = 1.0          # least reward of an answer that is kept
    weigh: Literal["answer", "prompt"] = "answer"  # what has equal weight
    batch_size: int = 64        # answers per gradient step (B)
    temperature: float = 1.0    # sampling temperature of the answers
    lr: float = 2e-4            # peak learning rate of every iteration (eta); it ends near zero
    schedule: Schedule = "cosine"  # of the learning rate after the warm-up
    warmup_steps: int = 10      # steps over which it climbs to its peak, at most half an iteration
    max_grad_norm: float = 1.0  # the gradient is clipped to this norm

    LIMITS = {"least": ""}

    def slow_start(self):
        return ""  # at most half of an iteration is one


def rows(run, cfg):
    """The right answers that the data gives, each once, or all that are sampled; in a step."""
    right = {(row.prompt, row.columns["completion"]) for row in given_answers(run)
             if reward_of(row) >= cfg.least}
    return len(right) or cfg.prompts * cfg.group_size * cfg.iterations, cfg.batch_size


def fixed(cfg):
    """Why a run cannot be made longer, if it cannot."""
    return "its iterations divide the steps" if cfg.iterations > 1 else ""


@shapes(logp="B T", mask="B T", weight="B")
def loss(logp, mask, weight, *, count):
    """logp, mask (b, T), weight (b,); count = W  ->  scalar loss, metrics that add up"""
    value = -masked_sum(weight[:, None] * logp, mask) / count
    return value, {"loss": value.detach()}


def loss_grad(logp, mask, weight, *, count):
    """The derivative of `loss`: {"logp": (b, T)}."""
    return {"logp": -weight[:, None] * mask / count}


def keep(run, cfg, data):
    """The right answers, each text once: Sequences of M rows, their weights (M,), prompts solved.

    MinipostError where there is none.
    """
    found = {}                                              # prompt: {answer}
    collect(found, data.problems, data.seqs, data.reward, cfg.least)
    if cfg.hint:
        rationalise(run, cfg, data, found)
    rows = [(prompt, *answer) for prompt, answers in found.items() for answer in answers]
    if not rows:
        raise MinipostError(f"none of {len(data.reward)} answers has a reward of at least "
                            f"{cfg.least:g} (the best has {float(data.reward.max()):g}); there is "
                            "nothing to learn from")
    seqs = pack([run.prompt_ids(prompt) for prompt, *_ in rows], [list(ids) for _, ids, _ in rows],
                run.vocabulary.pad, [learnt for *_, learnt in rows]).to(data.reward.device)
    each = [1 / len(found[p]) if cfg.weigh == "prompt" else 1.0 for p, *_ in rows]
    return seqs, data.reward.new_tensor(each), len(found)


def collect(found, problems, seqs, reward, least):
    """Add the answers of at least this reward to `found`, under their problems' prompts.

    An answer is its ids, and whether each of these is learnt.
    """
    right = reward >= reward.new_tensor(least)              # both rounded alike
    for problem, ids, learnt, good in zip(problems, seqs.written(), seqs.learnt(), right.tolist()):
        if good:
            found.setdefault(problem.prompt, {})[tuple(ids), tuple(learnt)] = True


def rationalise(run, cfg, data, found):
    """Ask the problems without a right answer again, with the answer in the prompt."""
    failed = list({p.prompt: p for p in data.problems if p.prompt not in found}.values())
    if failed:
        told = [Problem(run.task.hint(p), p.columns) for p in failed]
        rollout, reward = data.answers(told, "hints")
        collect(found, [failed[i] for i in rollout.prompt.tolist()], rollout, reward,
                cfg.least)


def measure(run, splits, cfg):
    """The policy's results; on a file's rewards, its mean log-prob per token of right answers."""
    if not all(stated(problems[0]) for problems in splits.values()):
        return results(run, splits)
    found = {}
    for split, problems in splits.items():
        right = [p for p in problems if reward_of(p) >= cfg.least]
        if not right:
            raise MinipostError(f"{split}: no row has a reward of at least {cfg.least:g}, so there "
                                "is nothing to measure")
        texts = [p.columns["completion"] for p in right]
        seqs = run.encode(right, texts)
        logp = run.logprobs(run.policy.module, seqs)
        values = (logp.sum(1) / seqs.lengths).tolist()
        rows = [k for k, p in enumerate(problems) if reward_of(p) >= cfg.least]
        found[split] = {"log-prob of right answers": Result.of(values, texts, rows)}
    return found


def check(run, cfg):
    """MinipostError where a file's answers cannot be learnt from, or the task has no hints."""
    refuse(run, "rft")
    Trajectories(run, cfg)
    if cfg.hint and run.task.hint is None:
        raise MinipostError(f"the task {run.task.name} tells no hints; leave out --hint")


def train(run, cfg):
    """answers -> the right ones -> log-probs -> loss -> update.  Yields metrics per step."""
    policy = run.policy
    first = run.frozen("reference", lambda: copy.deepcopy(policy.module)) if cfg.restart else None
    data = Trajectories(run, cfg)
    while True:
        if data.refresh():
            kept, weight, solved = keep(run, cfg, data)
            if cfg.restart and run.step == data.since:
                policy.become(first)
        rows = data.deal(range(len(kept)), cfg.batch_size)
        batch, w = kept[rows], weight[rows]
        data.count(batch)
        count = float((w * batch.lengths).sum())
        meter = Meter("loss")
        for i in run.micro_batches(range(len(batch)), batch):
            part, weights = batch.take(i, w)
            value, stats = loss(logprobs(policy.module, part), part.mask, weights, count=count)
            value.backward()
            meter.add(**stats)
        rate = cfg.rate(cfg.lr, run.step - data.since, data.length,
                        min(cfg.warmup_steps, data.length // 2))
        norm = policy.step(rate, cfg.max_grad_norm, cfg.weight_decay)
        yield {**meter.means(), "kept": len(kept), "reward": float(data.reward.mean()),
               "solved": solved / len({p.prompt for p in data.problems}), "grad_norm": norm,
               "learning_rate": rate}
