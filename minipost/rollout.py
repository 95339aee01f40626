"""The one buffer: token sequences with a mask, sampled or loaded, and the code that reads them.

    Sequences   tokens (B, T+1), mask (B, T)                       prompts with responses
    Rollout     + logp (B, T), prompt (B,), finished (B,)          what a policy sampled
    Pairs       chosen and rejected Sequences of the same prompts  what somebody preferred

One alignment rule: column t of a (B, T) tensor is about the token it predicts, tokens[:, t+1].
Only `Sequences.inputs` and `.targets` shift by one.  Rows are [BOS prompt response EOS], padded on
the right.  The mask is true on the response and its EOS, but for what a user or a tool wrote in it.
The buffer knows what was sampled, never what was learned from it: rewards and advantages belong to
the methods.
"""

import zlib
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import torch

from minipost import ops
from minipost.engine import decode_cuda, head
from minipost.engine.decode_cuda import NOT_FINITE, StaticDecoder
from minipost.engine.packed import alike, spans
from minipost.engine.tree import Tree
from minipost.errors import MinipostError
from minipost.ops import pick, spread

NO_TOKENS = ("an empty prompt needs a BOS, which this model's tokenizer does not put there; give "
             "the prompt a text")


@dataclass(frozen=True)
class Sequences:
    """Prompts with responses.  tokens (B, T+1) long; mask (B, T) bool, true where to learn."""

    tokens: torch.Tensor
    mask: torch.Tensor

    def __len__(self):
        return len(self.tokens)

    @property
    def inputs(self):
        """What the model reads.  (B, T)"""
        return self.tokens[:, :-1]

    @property
    def targets(self):
        """What it should predict there.  (B, T)"""
        return self.tokens[:, 1:]

    @property
    def lengths(self):
        """Response tokens of each row, EOS included.  (B,)"""
        return self.mask.sum(1)

    def per_answer(self, x):
        """A number of each answer: x itself, or its mean over an answer's tokens.

        (B,) or (B, T) -> (B,)
        """
        return x if x.dim() == 1 else (x * self.mask).sum(1) / self.lengths

    def written(self):
        """The ids of each row behind its prompt, EOS included: a list of B lists.

        What a tool or a user wrote in between is there too; `learnt` says where.
        """
        return [ids for ids, _ in self._answers()]

    def learnt(self):
        """Of each id of `written`, whether the mask has it: a list of B lists."""
        return [mask for _, mask in self._answers()]

    def _answers(self):
        rows = zip(self.targets.tolist(), self.mask.tolist())
        whole = [(targets, mask, slice(mask.index(True), len(mask) - mask[::-1].index(True))
                  if True in mask else slice(0)) for targets, mask in rows]
        return [(targets[span], mask[span]) for targets, mask, span in whole]

    def spans(self):
        """Of each row the tokens that the model reads: of the prompt, and in all.  (B,), (B,)"""
        return spans(self.mask)

    def __getitem__(self, rows):
        """These rows, without the columns that only padding would fill."""
        picked = {f.name: getattr(self, f.name)[rows] for f in fields(self)}
        used = picked["mask"].any(0).nonzero()
        width = int(used[-1]) + 1 if len(used) else 1
        for name, value in picked.items():
            if value.dim() == 2:
                picked[name] = value[:, : width + (name == "tokens")]
        return type(self)(**picked)

    def take(self, rows, *others):
        """These rows, and the same rows and columns of tensors that go with them.

        others: (B, T) or (B, ...), such as advantages, values, returns.  -> Sequences, then each
        """
        batch = self[rows]
        width = batch.mask.shape[1]
        return batch, *(x[rows, :width] if x.shape == self.mask.shape else x[rows] for x in others)

    def to(self, device):
        return type(self)(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


@dataclass(frozen=True)
class Rollout(Sequences):
    """What a policy sampled.  logp is its log-prob of each token at the sampling temperature."""

    logp: torch.Tensor      # (B, T), zero off the mask
    prompt: torch.Tensor    # (B,) which prompt of the batch the row answers
    finished: torch.Tensor  # (B,) bool: the policy ended it with EOS

    def responses(self):
        """`written`, EOS left out."""
        return [ids[:-1] if done else ids
                for ids, done in zip(self.written(), self.finished.tolist())]


@dataclass(frozen=True)
class Pairs:
    """Row i of `chosen` was preferred to row i of `rejected`; both answer the same prompt."""

    chosen: Sequences
    rejected: Sequences

    def __len__(self):
        return len(self.chosen)

    def __getitem__(self, rows):
        return Pairs(self.chosen[rows], self.rejected[rows])

    def to(self, device):
        return Pairs(self.chosen.to(device), self.rejected.to(device))


def check_prompts(prompts):
    """MinipostError where a prompt has no ids: nothing would predict its answer's first token."""
    if not all(prompts):
        raise MinipostError(f"{NO_TOKENS} (prompt {[len(ids) for ids in prompts].index(0) + 1} of "
                            f"{len(prompts)})")


def pack(prompts, responses, pad, learnt=None):
    """Sequences from lists of ids; each response already ends in EOS where it should.

    learnt: for each response, whether each of its ids is; all are if None.
    """
    check_prompts(prompts)
    width = max(len(p) + len(r) for p, r in zip(prompts, responses))
    tokens = torch.full((len(prompts), width), pad)
    mask = torch.zeros(len(prompts), width - 1, dtype=torch.bool)
    for row, (p, r) in enumerate(zip(prompts, responses)):
        tokens[row, : len(p) + len(r)] = torch.tensor(p + r)
        mask[row, len(p) - 1 : len(p) + len(r) - 1] = torch.tensor(
            learnt[row]) if learnt else True
    return Sequences(tokens, mask)


def received(prompts, answers, ends, pad):
    """The Rollout of answers that somebody else drew: (ids, log-probs) of each, to as many prompts.

    ends: the set of ids that end an answer.
    """
    seqs = pack(prompts, [ids for ids, _ in answers], pad)
    logp = torch.zeros(seqs.mask.shape)
    logp[seqs.mask] = torch.tensor([x for _, found in answers for x in found])
    finished = torch.tensor([ids[-1] in ends for ids, _ in answers])
    return Rollout(seqs.tokens, seqs.mask, logp, torch.arange(len(prompts)), finished)


def concat(rollouts, pad):
    """Several Rollouts as one; the prompt numbers go on from one to the next."""
    width = max(rollout.tokens.shape[1] for rollout in rollouts)
    wide = {f.name: [] for f in fields(Rollout)}
    prompts = 0
    for rollout in rollouts:
        extra = (0, width - rollout.tokens.shape[1])
        wide["tokens"].append(torch.nn.functional.pad(rollout.tokens, extra, value=pad))
        for name in ("mask", "logp"):
            wide[name].append(torch.nn.functional.pad(getattr(rollout, name), extra))
        wide["prompt"].append(rollout.prompt + prompts)
        wide["finished"].append(rollout.finished)
        prompts += int(rollout.prompt.max()) + 1 if len(rollout) else 0
    return Rollout(**{name: torch.cat(parts) for name, parts in wide.items()})


def distribution(model, seqs, temperature=1.0):
    """Log-probs over the vocabulary where a response token is predicted, and nowhere else.

    -> (N, V), rows in the order of mask.nonzero().  At least float32, whatever the model's type.
    """
    return law(model, model.hidden_at(seqs.inputs, seqs.mask), temperature)


def law(model, hidden, temperature):
    """The distribution after each hidden state.  (N, D) -> (N, V)"""
    logits = model.head(hidden)
    if logits.dtype not in (torch.float32, torch.float64):
        logits = logits.float()
    return torch.log_softmax(logits if temperature == 1 else logits / temperature, -1)


def chosen_logprobs(logp_all, seqs):
    """Log-prob in a `distribution` of every response token, else zero.  (N, V) -> (B, T)"""
    return spread(pick(logp_all, seqs.targets[seqs.mask]), seqs.mask)


def logprobs(model, seqs, temperature=1.0):
    """Log-prob of every response token, zero elsewhere.  -> (B, T)"""
    return readings(model, seqs, temperature).logp


def logprobs_and_distribution(model, seqs, temperature=1.0):
    """`logprobs` and their `distribution`, from one pass.  -> (B, T), (N, V)

    For what needs the whole of it, such as a second derivative.  Others ask `readings`.
    """
    logp_all = distribution(model, seqs, temperature)
    return chosen_logprobs(logp_all, seqs), logp_all


class Readings(NamedTuple):
    """Numbers of each response token, zero elsewhere, (B, T) each; None where none was asked for.

    The reference's log-probs have no gradient.
    """

    logp: torch.Tensor
    entropy: Any = None
    kl: Any = None          # exact, of the model to the reference
    logp_ref: Any = None


def readings(model, seqs, temperature=1.0, reference=None, *, kl=True, entropy=False):
    """What losses read of the distributions of a model, and of a reference, from one pass.

    kl: whether a reference is asked for the exact KL, beside its log-probs.
    Where all logits are more than head.WHOLE, they are computed in pieces (engine/head.py), and
    where the head's derivative is added in place.
    """
    hidden, mask = model.hidden_at(seqs.inputs, seqs.mask), seqs.mask
    if len(hidden) * model.config.vocab_size > head.WHOLE or (
            torch.is_grad_enabled() and head.adds_in_place(model.head_weight)):
        other = None
        if reference is not None:
            with torch.no_grad():
                other = (reference.hidden_at(seqs.inputs, mask), reference.head_weight,
                         reference.unused)
        logp, *found = head.Readings.apply(hidden, model.head_weight, seqs.targets[mask],
                                           model.unused, temperature, other, entropy)
        wanted = entropy, other is not None and kl, other is not None
        return Readings(spread(logp, mask),
                        *(spread(x, mask) if want else None for x, want in zip(found, wanted)))
    logp_all = law(model, hidden, temperature)                              # (N, V)
    logp, divergence, logp_ref = chosen_logprobs(logp_all, seqs), None, None
    if reference is not None:
        with torch.no_grad():
            logq_all = distribution(reference, seqs, temperature)
            logp_ref = chosen_logprobs(logq_all, seqs)
        divergence = spread(ops.kl_exact(logp_all, logq_all), mask) if kl else None
    return Readings(logp, spread(ops.entropy(logp_all), mask) if entropy else None, divergence,
                    logp_ref)


def stacked(parts):
    """Several Sequences as one, the rows of each below those of the one before.

    Answers to the same prompts are read together then, and the prompt once.
    """
    width = max(part.mask.shape[1] for part in parts)
    return Sequences(*(
        torch.cat([torch.nn.functional.pad(x, (0, width + extra - x.shape[1])) for x in tensors])
        for tensors, extra in (([part.tokens for part in parts], 1),
                               ([part.mask for part in parts], 0))))


def logprobs_of_each(model, parts, temperature=1.0):
    """`logprobs` of several Sequences, from one pass.  -> [(B, T), ...]"""
    parts = list(parts)
    logp = logprobs(model, stacked(parts), temperature).split([len(part) for part in parts])
    return [each[:, : part.mask.shape[1]] for each, part in zip(logp, parts)]


def values(model, seqs):
    """A value head's output where each response token is predicted, zero elsewhere.  (B, T)"""
    return spread(model.at(seqs.inputs, seqs.mask), seqs.mask)


def final_score(model, seqs):
    """A value head's output at the last real token of every row, the EOS if there is one.  (B,)

    Equal rows have equal scores: they are one row, so no rounding tells them apart.
    """
    prompts, ends = seqs.spans()
    which, first = alike(seqs.tokens, ends + 1)
    tokens, ends = seqs.tokens[first], ends[first]
    column = torch.arange(tokens.shape[1], device=tokens.device)
    return model.at(tokens, column == ends[:, None], prompts[first])[which]


def step_scores(model, seqs):
    """A value head's output after each response token has been read, zero elsewhere.  (B, T)"""
    read = torch.nn.functional.pad(seqs.mask, (1, 0))
    return spread(model.at(seqs.tokens, read, seqs.spans()[0]), seqs.mask)


def final_scores(model, parts):
    """`final_score` of K Sequences of as many rows each, from one pass.  (B, K)"""
    return torch.stack(final_score(model, stacked(parts)).chunk(len(parts)), 1)


def minibatches(rows, size, epochs, rng):
    """Shuffled index lists that cover `rows` once per epoch, each of at most `size`."""
    for _ in range(epochs):
        order = list(rows)
        rng.shuffle(order)
        for start in range(0, len(order), size):
            yield order[start : start + size]


# ---- sampling

def repeats(prompts):
    """How often each prompt stands earlier in the list."""
    seen, found = {}, []
    for ids in prompts:
        found.append(seen.get(tuple(ids), 0))
        seen[tuple(ids)] = found[-1] + 1
    return found


def uniforms(prompts, group_size, max_new_tokens, seed, repeat):
    """The random numbers of every sample, each from a stream of its own.  (P*G, N)

    A stream is named by (seed, the prompt's own ids, the number of the sample).  So a sample's
    draws do not depend on the rest of the batch or on its place in it.  If a prompt stands there
    twice, its sample numbers go on, so its second group differs from its first.
    """
    drawn = []
    for ids, earlier in zip(prompts, repeat):
        name = zlib.crc32(np.asarray(ids, dtype=np.int64).tobytes())
        for k in range(group_size):
            key = np.random.SeedSequence([*seed, name, earlier * group_size + k])
            drawn.append(np.random.Generator(np.random.Philox(key)).random(max_new_tokens))
    return torch.from_numpy(np.stack(drawn)).float()  # some devices have no float64


def fits(model, prompt, response):
    """Whether a prompt and a response of so many tokens, BOS and EOS included, fit the context."""
    return prompt + response <= model.context


def check_context(model, prompt, response, *texts):
    """MinipostError unless a prompt and a response of so many tokens fit the context together.

    BOS and EOS count.  texts: the prompt and, if it is known, the response, for the message.
    """
    if not fits(model, prompt, response):
        named = [f" ({text[:40]!r})" for text in texts] + ["", ""]
        known = "a response of" if len(texts) == 2 else "a response of up to"
        raise MinipostError(f"a prompt of {prompt} tokens{named[0]} and {known} "
                            f"{response}{named[1]} do not fit the model's context of "
                            f"{model.context}"
                            + ("" if len(texts) == 2 else "; lower --max-new-tokens"
                               if prompt < model.context else "; shorten the prompt"))


@torch.no_grad()
def generate(model, prompts, group_size=1, *, max_new_tokens, eos, pad, temperature=1.0,
             seed=(0,), repeat=None):
    """Sample `group_size` responses to each prompt, of at most `max_new_tokens` tokens.

    prompts: P lists of ids, BOS included.  eos: the set of ids that end a response.  seed: the
    integers that name this call, such as (run seed, step).  temperature 0 takes the likeliest
    token.  repeat: how often each prompt stands earlier, where these are a share of a longer list.
    Returns a Rollout of P*G rows, the samples of one prompt side by side.

    A token is drawn by inverting the cumulative distribution at one uniform number.  This is
    several times faster than torch.multinomial, and each row's draws depend on no other row.  On a
    CPU what samples or prompts begin with alike is computed once, see tree.py.
    """
    check_prompts(prompts)
    longest = max(map(len, prompts))
    check_context(model, longest, max_new_tokens)
    device, rows = model.device, len(prompts) * group_size
    lengths = torch.tensor([len(ids) for ids in prompts], device=device)
    read = torch.tensor([ids + [pad] * (longest - len(ids)) for ids in prompts], device=device)
    uniform = None
    if temperature > 0:
        repeat = repeats(prompts) if repeat is None else repeat
        uniform = uniforms(prompts, group_size, max_new_tokens, seed, repeat).to(device)  # (B, N)
    ends = torch.zeros(max(model.config.vocab_size, *eos, 0) + 1, dtype=torch.bool, device=device)
    ends[sorted(eos)] = True                                                # ids that end
    prompt = torch.arange(len(prompts), device=device).repeat_interleave(group_size)
    if device.type in decode_cuda.DEVICES:
        owner, first = alike(read, lengths)  # each different prompt is read once
        owner = owner.repeat_interleave(group_size)
        static = StaticDecoder(
            model, read[first], lengths[first], max_new_tokens, owner, uniform=uniform, pad=pad,
            stop=ends,
            choose=lambda logits, uniform: choose(logits, temperature, uniform))
        drawn = static.run()
        return assemble(read[prompt], lengths[prompt], static.response, static.logp, prompt, ends,
                        drawn, pad)
    here = torch.arange(rows, device=device)                                # those unfinished
    tree, drawn = Tree(model, prompts, max_new_tokens, group_size), []
    for t in range(max_new_tokens):
        logp_all = next_logp(tree.logits(), temperature)                    # (nodes, V)
        if broken(logp_all):
            raise MinipostError(NOT_FINITE)
        token = draw(logp_all, None if uniform is None else uniform[here, t], tree.node)
        drawn.append((here * max_new_tokens + t, token, logp_all[tree.node, token]))
        going = (~ends[token]).nonzero()[:, 0]
        if len(going) == 0 or t == max_new_tokens - 1:
            break
        here = here[going]
        tree.grow(going, token[going])
    place, token, chance = (torch.cat(found) for found in zip(*drawn))
    response = torch.full((rows * max_new_tokens,), pad, device=device)
    logp = torch.zeros(rows * max_new_tokens, device=device)
    response[place], logp[place] = token, chance.to(logp.dtype)
    return assemble(read[prompt], lengths[prompt], response.view(rows, -1), logp.view(rows, -1),
                    prompt, ends, t + 1, pad)


def next_logp(logits, temperature):
    """Log-probs to sample from, at the same temperature and precision as `distribution`."""
    if logits.dtype not in (torch.float32, torch.float64):
        logits = logits.float()
    return torch.log_softmax(logits if temperature in (0, 1) else logits / temperature, -1)


def broken(logp_all):
    """Whether the logits of any row were not finite.  (B, V) -> ()"""
    return logp_all[:, 0].isnan().any()  # then all of its row are


def choose(logits, temperature, uniform):
    """A token per row, its log-prob, and whether anything is `broken`, without a look at them."""
    logp_all = next_logp(logits, temperature)
    token = draw(logp_all, uniform).clamp(max=logits.shape[1] - 1)  # it is beyond where all are NaN
    return token, pick(logp_all, token), broken(logp_all)


def draw(logp_all, uniform, row=None):
    """A token per sample: the likeliest, or where the cumulative distribution passes `uniform`.

    logp_all (n, V), uniform (B,), row (B,): which of the distributions a sample has, its own if
    None.  -> (B,)
    """
    row = slice(None) if row is None else row
    if uniform is None:
        return logp_all.argmax(-1)[row]
    cumulative = logp_all.exp().cumsum(-1)[row]
    total = cumulative[:, -1]
    point = (uniform * total).to(total.dtype)
    point = torch.minimum(point, torch.nextafter(total, torch.zeros_like(total)))
    # The first entry above a point below the total is always a token of positive probability.
    return torch.searchsorted(cumulative, point[:, None], right=True)[:, 0]


def assemble(read, lengths, response, logp, prompt, ends, sampled, pad):
    """Put each response right behind its prompt.

    A row's response ends with its first EOS.  Tokens that were drawn for it afterwards, while it
    waited to leave the cache, are dropped.
    """
    (rows, longest), max_new_tokens = read.shape, response.shape[1]
    column = torch.arange(max_new_tokens, device=read.device)
    ended = ends[response]                                                  # (B, N)
    mask = (ended.cumsum(1) - ended.long() == 0) & (column < sampled)
    place = lengths[:, None] + column
    tokens = torch.full((rows, longest + max_new_tokens), pad, device=read.device)
    tokens[:, :longest] = read
    tokens.scatter_(1, place, response.where(mask, pad))
    wide = torch.zeros(rows, longest + max_new_tokens - 1, device=read.device)
    return Rollout(
        tokens, wide.bool().scatter(1, place - 1, mask),
        wide.scatter(1, place - 1, logp.where(mask, 0.0)), prompt, (ended & mask).any(1),
    )[torch.arange(rows)]
