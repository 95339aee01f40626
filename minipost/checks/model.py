"""Checks of a set-up before any training: the model, its sampler and its reward model.

A check is a function that takes what it needs and returns a Finding.  A *fault* makes training
wrong.  A *warning* makes it poor.  Either says in one sentence what was found, why it matters and
what to do.  The checks call the same functions as training, so a run meets what they find.  data.py
checks texts and rewards.  examine.py runs all checks.
"""

import json
from pathlib import Path

import torch

from minipost import checkpoint, files
from minipost.checks import finding
from minipost.checks.finding import FAULT, NONE, OK, WARNING, Finding
from minipost.measure.stats import interval
from minipost.rollout import Sequences, final_score, logprobs
from minipost.tokenizer_file import parts

CLIP = 0.2  # the default clip of the ratio in PPO and GRPO
NATS = {getattr(torch, name): nats for name, nats in finding.NATS.items()}
# Measured on checkpoints/base: gradients and scores differ by at most 1e-5 and 0.04 of their size.
SHARE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.bfloat16: 0.2}
ROWS = 12  # at most so many sequences are looked at one by one


def of(n, whole, noun):
    """'3 of 16 answers', or 'all 16 answers'."""
    return f"all {whole} {noun}" if n == whole > 1 else f"{n} of {whole} {noun}"


# ---- control ids

def stated_ids(directory, tokenizer):
    """{file: {"bos", "eos" or "pad": its ids}} as each file of a model directory states them."""
    found = {}
    for file in ("config.json", "generation_config.json", "tokenizer_config.json"):
        path = Path(directory) / file
        raw = files.read_json(path) if path.exists() else {}
        found[file] = {kind: ids_of(raw, kind, tokenizer) for kind in ("bos", "eos", "pad")}
    return found


def ids_of(raw, kind, tokenizer):
    """The ids under a file's "eos_token_id", or the id of the text under its "eos_token"."""
    ids, token = raw.get(f"{kind}_token_id"), raw.get(f"{kind}_token")
    if ids is None and token is not None:
        ids = tokenizer.id(token["content"] if isinstance(token, dict) else token)
    return set() if ids is None else set(ids) if isinstance(ids, list) else {ids}


def shared_with_pad(stated):
    """(file, kind, id) of the first control token to which a file gives PAD's id, or None."""
    return next(((file, kind.upper(), min(ids["pad"] & ids[kind])) for file, ids in stated.items()
                 for kind in ("eos", "bos") if ids["pad"] & ids[kind]), None)


def control_ids(vocabulary, stated):
    """PAD is neither EOS nor BOS in any file of the model directory."""
    name, found = "control ids", shared_with_pad(stated)
    if found:
        file, kind, number = found
        harm = "out of the loss, and what they train never stops" if kind == "EOS" else \
            "out of what the model reads"
        return Finding(
            name, WARNING, f"{file} gives PAD and {kind} the same id, {number}",
            f"other tools, which know padding by its id, leave {kind} {harm} "
            "(minipost masks by length)",
            "give PAD an id of its own, that of an unused token, in every file of the model")
    ends = " and ".join(map(str, sorted(vocabulary.eos)))
    start = f"BOS {' '.join(map(str, vocabulary.before))}" if vocabulary.before else "no BOS"
    pad = f"PAD {vocabulary.pad}" if any(ids["pad"] for ids in stated.values()) else \
        f"no PAD named (padding is filled with {vocabulary.pad} and masked by length)"
    shared = " (one id for both, as in GPT-2)" if set(vocabulary.before) & vocabulary.eos else ""
    return Finding(name, OK, f"{start}, EOS {ends}{shared}, {pad}")


def eos_in_files(vocabulary, stated):
    """The EOS at the end of answers to learn from is the one that the tokenizer's file names."""
    name, file = "EOS in the files", "tokenizer_config.json"
    written, named = vocabulary.end, stated[file]["eos"]
    if vocabulary.ending:
        return Finding(name, OK, f"{written}, {vocabulary.ending!r}, ends answers to learn from, "
                       "as the chat template ends a turn")
    if named and written not in named:
        return Finding(
            name, WARNING, f"answers to learn from end in id {written}, but {file} names "
            f"{min(named)} as EOS",
            "what is trained here ends its answers otherwise than chat tools expect",
            f"let eos_token_id in generation_config.json and config.json be {min(named)}")
    return Finding(name, OK, f"{written} ends answers to learn from, " + (
        "as the tokenizer's file says" if named else "and no tokenizer's file names another"))


# ---- the files of a model, as other tools read them

def before_prompts(directory, vocabulary):
    """What stands before a prompt here stands there in other tools too.

    tokenizer.json decides here, and in transformers 5.  Other versions heed add_bos_token in
    tokenizer_config.json.  Some classes that it names build another tokenizer than tokenizer.json.
    """
    name, side = "before a prompt", Path(directory) / "tokenizer_config.json"
    said = files.read_json(side) if side.exists() else {}
    ids, switch = vocabulary.before, said.get("add_bos_token")
    what = f"id {' '.join(map(str, ids))}" if ids else "nothing"
    if said.get("add_eos_token") is True or switch not in (None, bool(ids)):
        key = "add_eos_token" if said.get("add_eos_token") is True else "add_bos_token"
        return Finding(
            name, WARNING, f"the template in tokenizer.json puts {what} before a prompt and "
            f"nothing behind it, but tokenizer_config.json says {key} {json.dumps(said[key])}",
            "some versions of transformers read other ids than training did",
            "let tokenizer_config.json say what the template does")
    kind = said.get("tokenizer_class")
    if not as_described(json.loads(vocabulary.tokenizer.backend.to_str()), said):
        return Finding(
            name, WARNING, f"tokenizer_config.json names the class {str(kind)[:40]}, for which "
            "transformers 5 builds another tokenizer than tokenizer.json describes",
            "it gives some texts other ids than training did, such as texts that begin with a "
            "space", 'let tokenizer_class be "PreTrainedTokenizerFast"')
    return Finding(name, OK, f"{what}, as the template in tokenizer.json says to other tools too")


def as_described(raw, said):
    """Whether the class that tokenizer_config.json names leaves tokenizer.json as it is.

    So it is in transformers 5.23, for the two classes of tokenizers of Llama models that build
    their own.
    """
    kind, part = str(said.get("tokenizer_class")).removesuffix("Fast"), raw["pre_tokenizer"] or {}
    bytewise = any(p["type"] == "ByteLevel" for name in ("pre_tokenizer", "decoder")
                   for p in parts(raw, name))
    if kind == "LlamaTokenizer" and not bytewise:
        prefix = said.get("add_prefix_space") is not False
        return (raw["normalizer"] is None and part.get("type") == "Metaspace"
                and not part.get("split", True) and raw["model"]["type"] == "BPE"
                and (part.get("prepend_scheme", "always") != "never") == prefix)
    if kind == "GPT2Tokenizer":
        cuts = parts(raw, "pre_tokenizer")
        return (raw["normalizer"] is None and len(cuts) == 1 and cuts[0]["type"] == "ByteLevel"
                and cuts[0].get("add_prefix_space", True) == (said.get("add_prefix_space") is True))
    return True


def empty_prompts(lengths):
    """Every prompt has a token that predicts the first one of its answer.  lengths: in tokens."""
    name, count = "empty prompts", list(lengths).count(0)
    if count:
        return Finding(
            name, FAULT, f"{of(count, len(lengths), 'prompts')} have no token, not even a BOS, "
            "which this model's tokenizer does not put there", "minipost.train refuses to start",
            "give them a text")
    return Finding(name, OK, f"none of {len(lengths)} is without a token")


def unused_ids(model):
    """Ids that no token has are never drawn and never learnt."""
    name, mask = "ids without a token", model.unused
    if mask is None:
        return Finding(name, OK, "every id of the model has a token")
    ids = mask.nonzero()[:, 0].tolist()
    return Finding(name, OK, f"{len(ids)} of {len(mask)}, from {ids[0]} on; they get no "
                   "probability")


def shown_tokens(vocabulary):
    """The control tokens that a reward function sees in an answer."""
    name, control = "control tokens", vocabulary.tokenizer.control
    shown = [control[i] for i in sorted(control.keys() - vocabulary.frame)]
    if not shown:
        return Finding(name, NONE, "the tokenizer has none but BOS, EOS and PAD")
    return Finding(name, OK, f"{len(shown)} beside BOS, EOS and PAD, such as {shown[0]!r}, stand "
                   "in what a reward function reads")


def weights_as_written(directory):
    """The weights are those whose digest stands beside them."""
    name, said = "digest of the weights", checkpoint.verify(directory)
    if said.startswith("another"):
        return Finding(
            name, WARNING, said, "nobody can see whether it is damaged",
            "delete digests.json if the file is the one that is meant")
    return Finding(name, NONE if said else OK, said or "is that of the values")


# ---- sequences

def context(prompts, answers, max_new_tokens, limit):
    """Prompts leave `max_new_tokens` tokens of the context, and fit into it with given answers.

    prompts: lengths in tokens.  answers: lengths of (prompt, answer, EOS) where there are answers.
    """
    name = "context"
    over = sum(n + max_new_tokens > limit for n in prompts)
    if over:
        left = limit - max(prompts)
        return Finding(
            name, FAULT, f"{of(over, len(prompts), 'prompts')} with a response of up to "
            f"{max_new_tokens} tokens do not fit the model's context of {limit}",
            "minipost.train refuses to start",
            f"use --max-new-tokens {left} or leave out longer prompts" if left > 0 else
            f"use a lower --max-new-tokens than {limit}" if max_new_tokens >= limit else
            f"leave out prompts of more than {limit - max_new_tokens} tokens")
    over = sum(n > limit for n in answers)
    if over:
        return Finding(
            name, FAULT, f"{of(over, len(answers), 'given answers')} with their prompts pass the "
            f"model's context of {limit} tokens, the longest with {max(answers)}",
            "minipost.train stops where it meets them",
            f"leave out rows of more than {limit} tokens or shorten their prompts")
    return Finding(name, OK, f"the longest prompt has {max(prompts)} of {limit} tokens, the "
                   f"response {max_new_tokens}")


def ends_in_eos(seqs, eos, each=True):
    """Whether each stretch of a row's mask ends in an EOS and holds no other EOS.  (B,) bool

    each: or else the last of them alone, and no other stretch holds one.
    """
    stop = torch.isin(
        seqs.targets, torch.tensor(sorted(eos), device=seqs.tokens.device)) & seqs.mask
    last = seqs.mask & ~torch.nn.functional.pad(seqs.mask[:, 1:], (0, 1))
    if not each:
        last &= last.flip(1).cumsum(1).flip(1) == 1
    return (stop == last).all(1)


def eos_in_loss(answers, rollout, eos, each=True):
    """The mask is true on the EOS of every answer to learn from and of every finished sample.

    answers: Sequences of a file's or a task's own answers, or None.  each: as in `ends_in_eos`.
    """
    name, done = "EOS in the loss", rollout.finished.nonzero()[:, 0]
    sets = {"answers to learn from": answers,
            "finished samples": rollout[done] if len(done) else None}
    said = []
    for noun, seqs in sets.items():
        if seqs is None:
            continue
        lost = int((~ends_in_eos(seqs, eos, each)).sum())
        if lost:
            return Finding(
                name, FAULT, f"{of(lost, len(seqs), noun)} have no EOS at the end of their loss",
                "the policy does not learn to stop",
                "let every answer end in EOS, and the mask be true on it")
        said.append(f"{len(seqs)} {noun}")
    if not said:
        return Finding(name, NONE, "there are no answers to learn from, and no sample ended in EOS")
    return Finding(name, OK, f"learnt in {' and in '.join(said)}")


# ---- the sampler and the trainer

def trainers(run, rollout, temperature):
    """The log-probs of a rollout as training computes them before the first step.  (B, T)"""
    return run.for_all(
        lambda batch: [logprobs(run.policy.module, batch, temperature)], rollout)[0]


def ratio_at_start(run, rollout, temperature, old):
    """Two passes of the trainer agree on the same tokens, with rows in different micro-batches.

    old: what `trainers` gave.
    """
    name, model = "ratio 1 at the start", run.policy.module
    order, gaps = list(range(len(rollout))), []
    run.rng("order").shuffle(order)
    for i in (order[k : k + run.micro_batch_size]
              for k in range(0, len(order), run.micro_batch_size)):
        batch = rollout[i]
        logp = logprobs(model, batch, temperature).detach()
        gaps.append((logp - old[i, : logp.shape[1]])[batch.mask])
    gap = torch.cat(gaps)
    ratio, most = gap.expm1().abs().max(), gap.abs().max()
    if not most <= NATS[run.policy.flat.dtype]:
        return Finding(
            name, FAULT, "two passes over the same tokens with the same weights differ by up to "
            f"{most:.2g} nats", f"the ratio of new to old policy is off 1 by {ratio:.2g} before "
            "anything is learnt, and a clip acts on noise",
            "switch off what is random in the forward pass, such as dropout")
    return Finding(name, OK, f"off by at most {ratio:.1g} over {len(gap)} tokens")


def sampler_and_trainer(run, rollout, logp):
    """The sampler records the same log-prob of a token as training computes.

    logp: what `trainers` gave.
    """
    name, dtype = "sampler and trainer", run.policy.flat.dtype
    gap = (logp - rollout.logp)[rollout.mask]
    ratio, most = gap.expm1().abs(), gap.abs().max()
    outside = float((ratio > CLIP).float().mean())
    what = (f"log-probs recorded in sampling differ from those of training by up to {most:.2g} "
            f"nats and {outside:.1%} of {len(gap)} tokens start outside a clip of {CLIP}")
    if not most <= NATS[dtype]:
        return Finding(
            name, FAULT, what, "PPO and GRPO correct for a policy that never sampled anything",
            "sample and train at the same temperature, without top-k, with the same weights")
    if outside > 0.01:
        return Finding(name, WARNING, what, "rounding takes a part of every first gradient away",
                       "use --dtype float32")
    return Finding(name, OK, f"log-probs differ by at most {most:.1g} nats over {len(gap)} tokens")


def few(seqs):
    """Indices of at most ROWS rows, spread over a batch."""
    return torch.arange(0, len(seqs), -(-len(seqs) // ROWS))


def widened(seqs, pad, limit):
    """The same rows in a wider batch, as far as the context allows."""
    extra = (0, max(0, min(8, limit - seqs.mask.shape[1] - 1)))
    return Sequences(torch.nn.functional.pad(seqs.tokens, extra, value=pad),
                     torch.nn.functional.pad(seqs.mask, extra))


@torch.no_grad()
def padding(model, seqs, pad, temperature):
    """A row's log-probs are the same in its batch, with more padding, and alone without padding."""
    name, seqs = "padding", seqs[few(seqs)]
    plain = logprobs(model, seqs, temperature)
    wide = logprobs(model, widened(seqs, pad, model.context), temperature)
    gaps = [(wide[:, : plain.shape[1]] - plain)[seqs.mask]]
    for k in range(len(seqs)):
        alone = logprobs(model, seqs[[k]], temperature)[0]
        gaps.append((alone - plain[k, : len(alone)])[seqs.mask[k, : len(alone)]])
    gap = torch.cat(gaps).abs().max()
    if not gap <= NATS[next(model.parameters()).dtype]:
        return Finding(
            name, FAULT, f"the log-probs of {len(seqs)} answers change by up to {gap:.2g} nats "
            "with the padding beside them",
            "what is learnt from an answer depends on which others stand in its batch",
            "pad on the right and let no token attend to what follows it")
    return Finding(name, OK,
                   f"changes the log-probs of {len(seqs)} answers by at most {gap:.1g} nats")


def micro_batches(policy, seqs, loss, temperature):
    """A gradient step has the same gradient in micro-batches of 1 row, of 3 rows and in one piece.

    loss(logp, adv, mask, count=) -> (scalar, metrics), as in REINFORCE.
    """
    name, seqs = "micro-batches", seqs[few(seqs)]
    adv = torch.linspace(-1, 1, len(seqs), device=seqs.mask.device)
    count, found = int(seqs.mask.sum()), {}
    for size in (1, 3, len(seqs)):
        policy.grad.zero_()
        for i in torch.arange(len(seqs)).split(size):
            batch = seqs[i]
            logp = logprobs(policy.module, batch, temperature)
            loss(logp, adv[i.to(adv.device)], batch.mask, count=count)[0].backward()
        found[size] = policy.grad.to(policy.master.dtype).clone()
    policy.grad.zero_()
    whole = found[len(seqs)]
    gap = max(float((grad - whole).norm() / whole.norm().clamp(min=1e-30))
              for grad in found.values())
    if not gap <= SHARE[policy.flat.dtype]:
        return Finding(
            name, FAULT, f"the gradient of {len(seqs)} answers changes by {gap:.2g} of its size "
            "when it is added up from micro-batches",
            "--micro-batch-size, which should only save memory, changes what is learnt",
            "divide the loss by the tokens of the whole step, not by those of a micro-batch")
    return Finding(name, OK, f"of 1, 3 and {len(seqs)} rows give one gradient, within {gap:.1g} of "
                   "its size")


# ---- the reward model

@torch.no_grad()
def reward_model(run, model, rollout):
    """Scores are finite, differ, and are read at the last real token, whatever padding follows."""
    name, score = "reward model", run.final_scores(model, rollout)
    again = "train it again with --algo reward, and look at its held-out accuracy"
    broken = int((~score.isfinite()).sum())
    if broken:
        return Finding(
            name, FAULT, f"the scores of {of(broken, len(score), 'answers')} are not finite",
            "a run with it ends at once", again)
    spread = float(score.std(correction=0))
    if not spread > 0:
        return Finding(
            name, FAULT, f"{of(len(score), len(score), 'answers')} have the score {score[0]:g}",
            "there is nothing to learn from it", again)
    some = rollout[few(rollout)]
    wide = final_score(model, widened(some, run.vocabulary.pad, model.trunk.context))
    alone = torch.stack([model(some[[k]].tokens)[0, -1] for k in range(len(some))])
    gap = float((torch.stack([wide, alone]) - score[few(rollout)]).abs().max()) / spread
    if not gap <= SHARE[next(model.parameters()).dtype]:
        return Finding(
            name, FAULT, f"the scores of {len(some)} answers alone and with more padding differ by "
            f"{gap:.2g} of their spread from those in a batch",
            "an answer is judged by what stands beside it",
            "read the score at the last real token, with padding on the right")
    return Finding(name, OK, f"{len(score)} scores, {score.mean():.2f} +- {spread:.2f}, whatever "
                   "the padding")


def reward_model_ids(stated):
    """Other tools also read the score at EOS.  They look for the last token that is not PAD."""
    name, found = "reward model's PAD", shared_with_pad(stated)
    if found and found[1] == "EOS":
        return Finding(
            name, WARNING, f"{found[0]} of the reward model gives PAD and EOS the same id, "
            f"{found[2]}",
            "transformers reads its scores one token before the EOS, where minipost does not",
            "let pad_token_id in its config.json be null or the id of another token")
    return Finding(name, OK, "is not its EOS, as other tools need it")


def reward_model_ranks(gaps, better):
    """The better of two answers gets the higher score.

    gaps: how far its score is ahead, one per prompt.
    better: in what respect it is better, for the sentence.
    """
    name = "reward model's ranks"
    if not gaps:
        return Finding(name, NONE, "no two answers to a prompt are known to differ in worth")
    right = [float(gap > 0) + 0.5 * (gap == 0) for gap in gaps]
    what = f"the answer that {better} has the higher score in {sum(right):g} of {len(right)} pairs"
    if interval(right).high < 0.5:
        return Finding(
            name, WARNING, what, "a policy that raises the score makes its answers worse",
            "look whether chosen and rejected were exchanged when it was trained")
    return Finding(name, OK, what)
