"""A run: the policy being trained and all that a method may ask for while it trains.

    Learner   a module, its gradient and its AdamW state, each as one flat vector
    Run       policy, task, reward, random streams, sampling and scoring over all ranks
    Meter     metrics of one step, summed over micro-batches and ranks

Everything random is derived from (seed, step, purpose), so a run's state is its registered modules
and the number of steps done, and a resumed run repeats the uninterrupted one bit for bit.
"""

import copy
import math
import random
import zlib
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import torch

from minipost import parallel
from minipost.errors import MinipostError
from minipost.rollout import Rollout, concat, final_score, generate, logprobs, repeats
from minipost.stats import interval

ANSWERS = {"greedy": 0.0, "sampled": 1.0}  # how held-out problems are answered: temperatures
ROWS = 1024  # sequences that a rank samples at once, at most; their caches take the memory
SKIPS_ALLOWED = 5  # steps in a row that may be dropped for a gradient that is not finite


class Learner:
    """A module with AdamW (Loshchilov & Hutter 2019, arxiv.org/abs/1711.05101).

        m <- b1 m + (1-b1) g      v <- b2 v + (1-b2) g^2      t <- t + 1
        w <- w - lr ( m / (1-b1^t) / (sqrt(v / (1-b2^t)) + eps) + decay w )

    Parameters are views into one vector, and so are their gradients: the sum over ranks, the norm
    and the update are a few operations on long vectors, and TRPO finds its vectors ready.  Decay
    touches matrices only.  With weights below float32 the update runs on a float32 copy.
    """

    def __init__(self, module, betas=(0.9, 0.999), eps=1e-8, decay=0.0):
        self.module, self.betas, self.eps, self.decay = module, betas, eps, decay
        self.params = sorted((p for p in module.parameters()), key=lambda p: p.dim() < 2)
        self.matrix_part = sum(p.numel() for p in self.params if p.dim() >= 2)
        self.flat = torch.cat([p.detach().flatten() for p in self.params])
        self.grad = torch.zeros_like(self.flat)
        start = 0
        for p in self.params:
            part = slice(start, start := start + p.numel())
            p.data, p.grad = self.flat[part].view_as(p), self.grad[part].view_as(p)
        self.master = self.flat if self.flat.dtype == torch.float64 else self.flat.float()
        self.m, self.v = torch.zeros_like(self.master), torch.zeros_like(self.master)
        self.updates = self.skipped = self.skips_in_a_row = 0

    def collect(self):
        """Sum what backward() left over all ranks; returns its norm.

        A gradient that is not finite is dropped and counted; MinipostError after 5 in a row.
        """
        parallel.sum_(self.grad)
        norm = float(self.grad.norm())
        if norm < float("inf"):
            self.skips_in_a_row = 0
            return norm
        self.skipped += 1
        self.skips_in_a_row += 1
        self.grad.zero_()
        if self.skips_in_a_row >= SKIPS_ALLOWED:
            raise MinipostError(
                f"the gradient was not finite {SKIPS_ALLOWED} steps in a row; lower the "
                "learning rate or look at the rewards"
            )
        return norm

    @torch.no_grad()
    def step(self, lr, max_grad_norm=1.0):
        """One update from the gradients that backward() left; returns their norm before clipping.

        A gradient that is not finite makes no update, see `collect`.
        """
        norm = self.collect()
        if not norm < float("inf"):
            return norm
        grad = self.grad.to(self.master.dtype)
        if norm > max_grad_norm:
            grad = grad * (max_grad_norm / norm)
        self.updates += 1
        b1, b2 = self.betas
        self.m.lerp_(grad, 1 - b1)
        self.v.mul_(b2).addcmul_(grad, grad, value=1 - b2)
        scale = (self.v / (1 - b2**self.updates)).sqrt_().add_(self.eps)
        self.master[: self.matrix_part].mul_(1 - lr * self.decay)
        self.master.addcdiv_(self.m, scale, value=-lr / (1 - b1**self.updates))
        self.assign(self.master)
        self.grad.zero_()
        return norm

    @torch.no_grad()
    def assign(self, weights):
        """Make this vector, in the order of `flat`, the weights."""
        if weights is not self.master:
            self.master.copy_(weights)
        if self.master is not self.flat:
            self.flat.copy_(self.master)

    def become(self, module):
        """Take over the weights of a module of the same shape, and start Adam afresh."""
        params = sorted(module.parameters(), key=lambda p: p.dim() < 2)
        self.assign(torch.cat([p.detach().flatten() for p in params]).to(self.master))
        self.forget()

    def forget(self):
        """Start Adam afresh, for another loss."""
        self.m.zero_()
        self.v.zero_()
        self.updates = 0

    def state(self):
        """Tensors and numbers that `restore` needs to continue exactly."""
        tensors = {"weights": self.master, "m": self.m, "v": self.v}
        return tensors, [self.updates, self.skipped, self.skips_in_a_row]

    def restore(self, tensors, numbers):
        for mine, saved in ((self.master, "weights"), (self.m, "m"), (self.v, "v")):
            mine.copy_(tensors[saved])
        self.assign(self.master)
        self.updates, self.skipped, self.skips_in_a_row = numbers


def cosine(peak, step, steps, warmup):
    """Learning rate of a step: a linear climb to `peak`, then a cosine that ends at zero."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup)))) / 2


class Meter:
    """Metrics of one step.  `add` takes pieces that sum to a gradient step's value over its
    micro-batches and ranks; `means` averages over the step's gradient steps."""

    def __init__(self, *names):
        self.sums = dict.fromkeys(names, 0.0)

    def add(self, **pieces):
        for name, piece in pieces.items():
            self.sums[name] += float(piece)

    def means(self, updates=1):
        values = torch.tensor(list(self.sums.values()), dtype=torch.float64)
        parallel.sum_(values)
        return dict(zip(self.sums, (values / max(1, updates)).tolist()))


@dataclass
class Run:
    """What a method trains and whom it asks.  `step` is the step that is now being made."""

    policy: Learner
    vocabulary: object
    task: object
    reward: object          # f(prompts, completions, **columns) -> list of float
    hidden: bool = False    # whether `reward` only measures and labels, and no learner may score by it
    seed: int = 0
    step: int = 0
    room: int = 48          # longest response, in tokens
    micro: int = 16         # sequences in one forward and backward pass
    tokens: int = 0         # response tokens sampled or trained on so far
    learners: dict = field(default_factory=dict)
    frozen: dict = field(default_factory=dict)
    carried: dict = field(default_factory=dict)  # numbers that a method carries from step to step
    reward_model: object = None                  # what `score` asks instead of `reward`

    def __post_init__(self):
        self.learners["policy"] = self.policy
        self.restored, self.thawed = {}, {}

    # ---- what a step depends on

    def rng(self, purpose):
        """A fresh random.Random for this purpose at this step of this seed."""
        return random.Random(f"{self.seed}/{self.step}/{purpose}")

    def learner(self, name, make, **options):
        """The learner of this name; at first asking, make() is the module that it trains.

        Resumed runs find it as it was saved.
        """
        if name not in self.learners:
            self.learners[name] = learner = Learner(make(), **options)
            if name in self.restored:
                learner.restore(*self.restored.pop(name))
        return self.learners[name]

    def keep(self, name, make):
        """The frozen module of this name; at first asking it is make(), or as it was saved."""
        if name not in self.frozen:
            self.frozen[name] = module = make().requires_grad_(False)
            if name in self.thawed:
                module.load_state_dict(self.thawed.pop(name))
        return self.frozen[name]

    def reference(self):
        """A frozen copy of the policy as it was when a reference was first asked for."""
        return self.keep("reference", lambda: copy.deepcopy(self.policy.module))

    def state(self):
        """(tensors, facts) for checkpoint.save_state."""
        tensors, numbers = {}, {}
        for name, learner in self.learners.items():
            found, numbers[name] = learner.state()
            tensors |= {f"learner/{name}/{key}": value for key, value in found.items()}
        for name, module in self.frozen.items():
            tensors |= {f"frozen/{name}/{k}": v for k, v in module.state_dict().items()}
        return tensors, {"step": self.step, "tokens": self.tokens, "learners": numbers,
                         "carried": self.carried}

    def restore(self, tensors, facts):
        """Continue from a saved state; what a method registers later finds its part here."""
        self.step, self.tokens = facts["step"], facts["tokens"]
        self.carried = dict(facts["carried"])
        for name, numbers in facts["learners"].items():
            found = {key: tensors[f"learner/{name}/{key}"] for key in ("weights", "m", "v")}
            self.restored[name] = (found, numbers)
        self.policy.restore(*self.restored.pop("policy"))
        for key, value in tensors.items():
            kind, name, part = key.split("/", 2)
            if kind == "frozen":
                self.thawed.setdefault(name, {})[part] = value

    # ---- problems, samples, rewards

    def problems(self, n, again=0):
        """The step's n training problems, the same in every rank; `again` counts further draws.

        A finite list is gone through in epochs, each in an order of its own; other tasks, and
        further draws in the same step, sample.
        """
        if again or not hasattr(self.task, "training"):
            return self.task.sample(n, self.rng(f"problems {again}"))
        return self.deal(self.task.training(), n)

    def deal(self, rows, n, since=0):
        """The step's n of these rows, which are gone through in epochs from step `since` on, each
        in an order of its own."""
        found = []
        for place in range((self.step - since) * n, (self.step - since + 1) * n):
            epoch, k = divmod(place, len(rows))
            if k == 0 or not found:
                order = list(range(len(rows)))
                random.Random(f"{self.seed}/epoch {epoch}").shuffle(order)
            found.append(rows[order[k]])
        return found

    def sample(self, problems, copies, *, temperature, module=None, purpose="rollout",
               stop=frozenset(), room=None):
        """`copies` responses to each problem, sampled in shares and gathered in every rank.

        `stop`: ids that end a response besides EOS.  `room`: the longest response, self.room if None.
        """
        module, room = module or self.policy.module, room or self.room
        prompts = [self.vocabulary.prompt(p.prompt) for p in problems]
        mine, repeat = parallel.share(range(len(prompts))), repeats(prompts)
        seed = (self.seed, self.step, zlib.crc32(purpose.encode()))
        size, part = max(1, ROWS // copies), None
        if len(mine):
            part = concat([generate(
                module, [prompts[i] for i in piece], copies, room=room,
                eos={*self.vocabulary.eos, *stop}, pad=self.vocabulary.pad,
                temperature=temperature, seed=seed, repeat=[repeat[i] for i in piece],
            ) for piece in (mine[k : k + size] for k in range(0, len(mine), size))],
                self.vocabulary.pad)
        rollout = gather(part, mine.start * copies, len(prompts) * copies, prompts, room,
                         self.vocabulary, module.device)
        self.tokens += int(rollout.mask.sum())
        return rollout

    @contextmanager
    def at(self, step):
        """What is random in here is so as it is at this step."""
        now, self.step = self.step, step
        try:
            yield
        finally:
            self.step = now

    def look(self, problems, copies, temperature, module=None, purpose="evaluation",
             **options):
        """Answers to be measured and not to be learnt from: a Rollout, not counted.

        The random streams are those of seed, problem and purpose at step 0, so two models are asked
        with the same luck, at any time.
        """
        tokens = self.tokens
        try:
            with self.at(0):
                return self.sample(problems, copies, temperature=temperature, module=module,
                                   purpose=purpose, **options)
        finally:
            self.tokens = tokens

    def evaluate(self, problems, temperature, module=None, purpose="evaluation"):
        """Answer each problem once: (rewards, texts).  Temperature 0 is greedy."""
        rollout = self.look(problems, 1, temperature, module, purpose)
        return self.grade(problems, rollout).tolist(), self.texts(rollout)

    def results(self, splits, module=None):
        """{split: {"greedy" or "sampled": {"score", "rewards", "texts"}}} of the policy as it is, or
        of another module."""
        found = {}
        for split, problems in splits.items():
            found[split] = {}
            for metric, temperature in ANSWERS.items():
                rewards, texts = self.evaluate(problems, temperature, module)
                found[split][metric] = {"score": asdict(interval(rewards)), "rewards": rewards,
                                        "texts": texts}
        return found

    def texts(self, rollout):
        """The completions as text."""
        return [self.vocabulary.decode(ids) for ids in rollout.responses()]

    def grade(self, problems, rollout):
        """The reward function's value for every row.  (B,)"""
        rows = [problems[i] for i in rollout.prompt.tolist()]
        return self.grade_texts(rows, self.texts(rollout)).to(rollout.logp)

    def grade_texts(self, problems, texts):
        """The reward of one text to each problem.  (B,)  Rank 0 asks for it and tells the others."""
        reward = torch.zeros(len(texts), dtype=torch.float64)
        if parallel.rank() == 0:
            reward = torch.tensor(ask(self.reward, problems, texts), dtype=torch.float64)
        parallel.sum_(reward)
        return reward

    def score(self, problems, rollout):
        """What learners are told of every row: the reward model's score if there is one, else the
        reward.  (B,)

        MinipostError where the task hides its reward, or a reward model's score is not finite.
        """
        if self.reward_model is None:
            if self.hidden:
                raise MinipostError(
                    f"the reward of {self.task.name} is hidden from learners; train a reward model "
                    f"(--algo reward --task {self.task.name}) and name it with --reward-model, or "
                    "give a function with --reward"
                )
            return self.grade(problems, rollout)
        return self.finite_scores(rollout)

    def finite_scores(self, rollout):
        """The reward model's score of every row.  (B,)  MinipostError where one is not finite."""
        score = self.final_scores(self.reward_model, rollout)
        if not score.isfinite().all():
            row = int((~score.isfinite()).nonzero()[0])
            raise MinipostError(f"the reward model's score is {float(score[row])} for the "
                                f"completion {self.texts(rollout)[row][:40]!r}")
        return score

    def score_by(self, model):
        """Let `score` ask this reward model, normalised on samples of the policy as it is now.

        Preferences determine a score only up to a shift, and nothing fixes its scale, so it is
        shifted and scaled to mean 0 and deviation 1 (Ziegler et al. 2019, arxiv.org/abs/1909.08593,
        sec. 2.1).
        """
        saved = "reward model" in self.thawed
        self.reward_model = self.keep("reward model", lambda: copy.deepcopy(model))
        if not saved:
            rollout = self.sample(self.problems(128, again=1), 2, temperature=1.0,
                                  purpose="normalise")
            scores = self.finite_scores(rollout)
            if not scores.std() > 0:
                raise MinipostError(f"the reward model scores {len(scores)} answers of the policy "
                                    f"all alike ({float(scores[0]):g}); nothing can be learnt from "
                                    "it")
            self.reward_model.normalise(scores)

    def final_scores(self, model, seqs):
        """A scalar model's output at every row's last real token.  (B,)"""
        found, = self.for_all(lambda batch: [final_score(model, batch)[:, None]], seqs)
        return found[:, 0]

    def log_ratio(self, rollout, reference, temperature):
        """log pi/ref of each sampled token, 0 where no reference is kept.  (B, T)"""
        if reference is None:
            return torch.zeros_like(rollout.logp)
        logp_ref, = self.for_all(lambda batch: [logprobs(reference, batch, temperature)], rollout)
        return rollout.logp - logp_ref

    @torch.no_grad()
    def for_all(self, f, seqs, outputs=1):
        """What f(batch) gives for all rows, computed in shares and gathered in every rank.

        f returns a list of `outputs` tensors (b, t) for a micro-batch of b rows; the result is as
        many tensors (B, T), zero in columns beyond a micro-batch's t.
        """
        found = [torch.zeros(seqs.mask.shape, dtype=self.policy.master.dtype,
                             device=seqs.mask.device) for _ in range(outputs)]
        for i in self.micro_batches(range(len(seqs)), seqs.lengths):
            for whole, part in zip(found, f(seqs[i]), strict=True):
                whole[i, : part.shape[1]] = part.to(whole.dtype)
        parallel.sum_(*found)
        return found

    def micro_batches(self, rows, lengths):
        """This rank's part of these rows, cut into micro-batches of like length.

        Rows are dealt to the ranks in order of length, so each has the same work and little of
        it is padding.
        """
        order = sorted(rows, key=lambda row: (int(lengths[row]), row))
        mine = order[parallel.rank() :: parallel.world()]
        return [mine[i : i + self.micro] for i in range(0, len(mine), self.micro)]


def gather(part, start, rows, prompts, room, vocabulary, device):
    """The Rollout of all ranks in every rank, from each one's part.

    Each rank fills its rows of zeros and the ranks add up.  (All ranks know every prompt.)
    """
    width = max(map(len, prompts)) + room
    tokens = torch.zeros(rows, width, dtype=torch.long, device=device)
    mask = torch.zeros(rows, width - 1, dtype=torch.uint8, device=device)
    logp = torch.zeros(rows, width - 1, device=device)
    finished = torch.zeros(rows, dtype=torch.uint8, device=device)
    if part is not None:
        mine = slice(start, start + len(part))
        tokens[mine] = vocabulary.pad
        tokens[mine, : part.tokens.shape[1]] = part.tokens
        mask[mine, : part.mask.shape[1]] = part.mask
        logp[mine, : part.logp.shape[1]] = part.logp
        finished[mine] = part.finished
    parallel.sum_(tokens, mask, logp, finished)
    prompt = torch.arange(len(prompts), device=device).repeat_interleave(rows // len(prompts))
    return Rollout(tokens, mask.bool(), logp, prompt, finished.bool())[torch.arange(rows)]


def describe(rollout, reward, group):
    """What people look for first in a rollout, under TRL's names."""
    by_group = reward.view(-1, group)
    found = {"reward": float(reward.mean())}
    if group > 1:
        ties = (by_group == by_group[:, :1]).all(1)
        found |= {"reward_std": float(by_group.std(1).mean()),
                  "frac_reward_zero_std": float(ties.float().mean())}
    else:  # a single answer has no siblings to tie with
        found["reward_std"] = float(reward.std(correction=0))
    return {
        **found,
        "completions/mean_length": float(rollout.lengths.float().mean()),
        "completions/clipped_ratio": float((~rollout.finished).float().mean()),
    }


def columns(problems):
    """The problems' columns as lists, one entry per problem."""
    names = {name for problem in problems for name in problem.columns}
    return {name: [problem.columns.get(name) for problem in problems] for name in sorted(names)}


def ask(reward, problems, completions):
    """Call a reward function and hold it to its contract: one finite float per row.

    MinipostError names the function and the row where it raises, returns another number of
    values, or gives something else than a finite number.
    """
    name = getattr(reward, "__qualname__", type(reward).__name__)
    try:
        values = reward(
            prompts=[problem.prompt for problem in problems], completions=completions,
            **columns(problems),
        )
    except Exception as error:  # whatever user code raises, the run ends with one sentence
        raise MinipostError(
            f"the reward function {name} raised {type(error).__name__}: {error}"
        ) from error
    try:
        values = list(values)
    except TypeError:
        raise MinipostError(
            f"the reward function {name} returned {type(values).__name__}, expected a list"
        ) from None
    if len(values) != len(problems):
        raise MinipostError(
            f"the reward function {name} returned {len(values)} values for {len(problems)} rows"
        )
    for row, value in enumerate(values):
        try:
            good = math.isfinite(value)
        except (TypeError, ValueError, OverflowError):
            good = False
        if not good:
            raise MinipostError(
                f"the reward function {name} returned {value!r} for row {row} "
                f"(completion {completions[row][:40]!r}); expected a finite number"
            )
    return [float(value) for value in values]
