"""An oracle: a world so small that every expectation in it is a sum over all answers.

A world has at most 8 ids and answers of at most 5 tokens, so all answers can be listed.  The
nano-GPT itself gives the chance of each.  So the oracle computes exactly what is elsewhere
estimated from samples:

    pi(y|x)                     chance of each answer; they sum to one
    J = E_pi r                  and its gradient, by autograd through the sum
    KL(pi || ref), KL(ref || pi)
    F = E_pi g g'               the Fisher matrix, g = grad log pi(y|x)
    V*(s) = b log E_ref[ exp(r/b) | s ]      the most that E r - b KL(pi || ref) can reach from s
    pi* = ref exp(r/b) / Z,  b log Z = V*    the policy that attains it, whatever the method

The oracle can also run a method's own training step on every possible rollout.  `Dealer` hands the
method its answers one rollout after another, with the chance of each, and keeps the gradient.  The
mean over all rollouts is the expectation of the method's estimate, computed by the training code.

A policy is a function of weights, so derivatives are vectors (W,), in the order of Learner.flat.
Axes: P prompts, S answers to each, M = P S rows of `World.seqs`, T tokens, W weights.
"""

import copy
import itertools
import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from minipost.errors import MinipostError
from minipost.gpt import GPT, GPTConfig
from minipost.optim import Learner
from minipost.rollout import Rollout, logprobs, pack
from minipost.run import Run
from minipost.tasks.base import Problem, Task

VOCAB, HORIZON = 8, 5  # the largest world
PAD, BOS, EOS = 0, 1, 2
LETTERS = "abcdefg"    # the words, one per id except EOS; PAD and BOS are ordinary words here


class Words:
    """A vocabulary of single letters, with the interface of checkpoint.Vocabulary."""

    pad, bos, eos = PAD, BOS, frozenset([EOS])

    def __init__(self, vocab):
        self.vocab_size, self.ids = vocab, [i for i in range(vocab) if i != EOS]

    def prompt(self, text):
        return [BOS, *(self.ids[LETTERS.index(c)] for c in text)]

    def response(self, text):
        return [*(self.ids[LETTERS.index(c)] for c in text), EOS]

    def decode(self, ids):
        return "".join(LETTERS[self.ids.index(i)] for i in ids if i != EOS)


@dataclass(frozen=True)
class Table(Task):
    """A task whose rewards are a table of (prompt, answer).  `told`: the only demonstration."""

    rewards: dict
    told: str | None = None
    name = "table"
    step_end = "a"                                          # the end of every step of an answer

    def sample(self, n, rng):
        return [Problem(p) for p in rng.choices(sorted({p for p, _ in self.rewards}), k=n)]

    def heldout(self, n):
        return [Problem(p) for p in sorted({p for p, _ in self.rewards})][:n]

    def parse(self, text):
        return text

    def reward(self, prompts, completions, **columns):
        return [self.rewards[pair] for pair in zip(prompts, completions)]

    def finished(self, problem):
        """The answers that end by themselves, not because they reach the horizon."""
        longest = max(len(text) for _, text in self.rewards)
        return [text for p, text in self.rewards if p == problem.prompt and len(text) < longest]

    def demonstrate(self, problem, rng=None):
        """`told` if there is one, else one of the finished answers, all equally likely."""
        return rng.choice(self.finished(problem)) if self.told is None else self.told

    def steps(self, text):
        return text.split(self.step_end)[:-1]

    def check_steps(self, problem, text):
        """A step is right if its length is odd.  Any rule will do."""
        return [len(step) % 2 == 1 for step in self.steps(text)]


def endings(vocab, horizon):
    """Every answer as ids: words and EOS, or `horizon` words."""
    words = [i for i in range(vocab) if i != EOS]
    return [[*some, EOS][:horizon] for n in range(horizon + 1)
            for some in itertools.product(words, repeat=n)]


def nano(vocab, seed, size=16, layers=2, scale=0.15):
    """A float64 nano-GPT with grouped queries, not uniform but smooth enough to be trained."""
    model = GPT(GPTConfig(vocab, hidden_size=size, intermediate_size=2 * size,
                          num_hidden_layers=layers, num_attention_heads=2, num_key_value_heads=1,
                          head_dim=8, max_position_embeddings=HORIZON + 3)).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(scale * torch.randn(p.shape, generator=generator, dtype=p.dtype)
                    + (p.dim() == 1))
    return model


def weights_of(module):
    """A module's parameters in the order of Learner.flat: matrices first."""
    return sorted(module.parameters(), key=lambda p: p.dim() < 2)


def flat(tensors):
    return torch.cat([t.flatten() for t in tensors])


class World:
    """Two prompts, all answers to each, a policy, a reference and a reward within 0..1.

    log_chance and rewards are (P, S).  Row p*S + s of `seqs` holds answer s to prompt p.
    """

    def __init__(self, vocab=4, horizon=3, seed=0):
        for name, value, least, most in (("vocab", vocab, 4, VOCAB),
                                         ("horizon", horizon, 1, HORIZON)):
            if not least <= value <= most:
                raise MinipostError(f"{name} is {value}; expected {least} to {most}")
        self.horizon, self.words = horizon, Words(vocab)
        answers = endings(vocab, horizon)
        self.prompts, self.count = ["a", "c"], len(answers)
        self.seqs = pack([self.words.prompt(p) for p in self.prompts for _ in answers],
                         [ids for _ in self.prompts for ids in answers], PAD)
        self.texts = [self.words.decode(ids) for ids in answers]
        self.policy, self.reference = nano(vocab, seed), nano(vocab, seed + 1)
        generator = torch.Generator().manual_seed(seed)
        self.reward = torch.rand(2, self.count, generator=generator, dtype=torch.float64)

    def with_reward(self, reward):
        """The same world with another reward, (P, S)."""
        other = copy.copy(self)
        other.reward = reward
        return other

    @property
    def task(self):
        pairs = itertools.product(self.prompts, self.texts)
        return Table(dict(zip(pairs, self.reward.flatten().tolist())))

    def token_logp(self, model):
        """Log-prob of every token of every answer.  (P, S, T)"""
        return logprobs(model, self.seqs).view(2, self.count, -1)

    def log_chance(self, model):
        """log pi(y|x).  (P, S)"""
        return self.token_logp(model).sum(2)

    def slope(self, model, value):
        """The gradient of a scalar in the model's weights.  (W,)"""
        found = torch.autograd.grad(value, weights_of(model), allow_unused=True)
        return flat(torch.zeros_like(p) if g is None else g
                    for g, p in zip(found, weights_of(model)))

    def scores(self, model):
        """grad log pi(y|x) of every answer.  (M, W)"""
        each = self.log_chance(model).flatten()
        return torch.stack([flat(torch.autograd.grad(x, weights_of(model), retain_graph=True))
                            for x in each])

    def states(self):
        """The number of each token's state: its prompt and the tokens before it.  (M, T)

        Rows that agree so far are in the same state.  -1 off the mask.
        """
        place, found = {}, torch.full(self.seqs.mask.shape, -1)
        for row, (ids, mask) in enumerate(zip(self.seqs.tokens.tolist(), self.seqs.mask.tolist())):
            for t, chosen in enumerate(mask):
                if chosen:
                    found[row, t] = place.setdefault(tuple(ids[: t + 1]), len(place))
        return found

    def given(self, weight, x):
        """The mean of x over the rows that pass through a token's state.  (M, T) or (M,) -> (M, T)

        weight (M,) is the chance of each row; zero off the mask.
        """
        states, mask = self.states(), self.seqs.mask
        x = x if x.dim() == 2 else x[:, None].expand(mask.shape)
        at, many = states[mask], int(states.max()) + 1
        share = weight[:, None].expand(mask.shape)[mask]
        sums, total = (share.new_zeros(many).index_add(0, at, v) for v in (share * x[mask], share))
        return torch.zeros_like(x).masked_scatter(mask, (sums / total)[at])

    def soft_values(self, beta):
        """V* of every token's state, by induction from the last token to the first.  (M, T)

        V*(s) = beta log sum_a ref(a|s) exp(V*(s a) / beta), and the reward after the last token.
        """
        with torch.no_grad():
            logp_ref = self.token_logp(self.reference).flatten(0, 1)        # (M, T)
        mask, states = self.seqs.mask, self.states()
        after, found = self.reward.flatten() / beta, torch.zeros_like(logp_ref)
        for t in reversed(range(mask.shape[1])):
            rows = mask[:, t].nonzero()[:, 0]
            first = {}                                      # one row per state and next token
            for row in rows.tolist():
                first.setdefault((int(states[row, t]), int(self.seqs.tokens[row, t + 1])), row)
            for state in {s for s, _ in first}:
                branch = torch.tensor([row for (s, _), row in first.items() if s == state])
                found[states[:, t] == state, t] = (logp_ref[branch, t] + after[branch]).logsumexp(0)
            after = after.where(~mask[:, t], found[:, t])
        return beta * found


def mean_reward(log_chance, reward):
    """J, the mean over prompts of the expected reward.  (P, S) twice -> ()"""
    return (log_chance.exp() * reward).sum(1).mean()


def divergence(log_p, log_q):
    """KL(p || q) of whole answers, the mean over prompts.  (P, S) twice -> ()"""
    return (log_p.exp() * (log_p - log_q)).sum(1).mean()


def regularised(log_chance, log_ref, reward, beta):
    """J - beta KL(pi || ref).  -> ()"""
    return mean_reward(log_chance, reward) - beta * divergence(log_chance, log_ref)


def optimum(log_ref, reward, beta):
    """(log pi*, V* of each prompt) of that objective: pi* = ref exp(r/beta) / Z.  (P, S), (P,)"""
    log_z = (log_ref + reward / beta).logsumexp(1)
    return log_ref + reward / beta - log_z[:, None], beta * log_z


def relative(found, expected):
    """|found - expected| / |expected|"""
    return float((found - expected).norm() / expected.norm())


# ---- a method's own step on every rollout

class Recorder(Learner):
    """A learner that records its gradient and leaves its weights as they are."""

    def collect(self):
        self.seen = self.grad.clone()
        self.grad.zero_()
        return 0.0

    def step(self, lr, max_grad_norm=1.0, weight_decay=None):
        return self.collect()


class Known(torch.nn.Module):
    """A critic that looks up the known value of every state.  values (M, T)"""

    def __init__(self, world, values):
        super().__init__()
        self.none = torch.nn.Parameter(torch.zeros(1, 1, dtype=torch.float64))
        rows = zip(world.seqs.tokens.tolist(), world.seqs.mask.tolist(), values.tolist())
        self.values = {tuple(ids[: t + 1]): x for ids, mask, row in rows
                       for t, (chosen, x) in enumerate(zip(mask, row)) if chosen}

    def at(self, tokens, where):
        """The values where `where` is true, 0 of states that nobody knows.  (B, T) -> (N,)"""
        return torch.tensor([self.values.get(tuple(ids[: t + 1]), 0.0)
                             for ids, row in zip(tokens.tolist(), where.tolist())
                             for t, wanted in enumerate(row) if wanted], dtype=torch.float64)


@dataclass
class Dealer(Run):
    """A run in a World.  While `hand` holds (prompt, rows), `sample` returns those answers.

    `log_chance` sums the log-probs of the dealt answers under the module that samples.  `sampler`
    is that module if none is named: the policy, or an older one.  `metrics` are those of the latest
    step.
    """

    world: Any = None
    sampler: Any = None
    hand: Any = None
    log_chance: float = 0.0
    metrics: dict = field(default_factory=dict)
    known: dict = field(default_factory=dict)  # id of a module: (module, its logp (P, S, T))

    def deal_hand(self, prompt, rows):
        self.hand, self.log_chance = (prompt, rows), 0.0

    def show(self, row):
        """Let the task demonstrate this answer.  -> whether it would demonstrate it by itself"""
        shown = self.task.finished(self.problems(1)[0])
        self.task = replace(self.task, told=self.world.texts[row])
        self.log_chance = -math.log(len(shown))
        return self.task.told in shown

    def problems(self, n, again=0):
        """One prompt n times, that of the hand or a drawn one: a step is about one prompt."""
        if self.hand is None:
            return super().problems(1, again) * n
        return [Problem(self.world.prompts[self.hand[0]])] * n

    def sample(self, problems, group_size, begun=None, *, temperature=1.0, module=None, **options):
        """What is dealt are whole answers: with a hand, none is begun."""
        module = module or self.sampler or self.policy.module
        if self.hand is None or temperature == 0:
            return super().sample(problems, group_size, begun, temperature=temperature,
                                  module=module, **options)
        prompt, rows = self.hand
        if len(rows) != len(problems) * group_size:
            raise MinipostError(f"{len(rows)} answers in the hand; the step asks for "
                                f"{len(problems) * group_size}")
        if id(module) not in self.known:
            with torch.no_grad():
                self.known[id(module)] = module, self.world.token_logp(module)
        logp = self.known[id(module)][1][prompt, rows]                      # (B, T)
        self.log_chance += float(logp.sum())
        place = prompt * self.world.count + torch.tensor(rows)
        seqs = self.world.seqs
        tokens, mask = seqs.tokens[place], seqs.mask[place]
        return Rollout(
            tokens, mask, logp, torch.arange(len(problems)).repeat_interleave(group_size),
            (tokens[:, 1:].eq(EOS) & mask).any(1))[torch.arange(len(rows))]
