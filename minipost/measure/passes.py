"""pass@k: the chance that at least one of k samples is right (Chen et al. 2021,
arxiv.org/abs/2107.03374).

    exact     Where a task lists its right completions y, and its own reward says what is right, a
              sample is right with the chance p = sum_y pi(y | x), and pass@k = 1 - (1 - p)^k for
              any k, without a sample.
    samples   Elsewhere n answers are drawn, c of them right: 1 - C(n - c, k) / C(n, k), k <= n.

The exact chance is a sum over the task's own spelling, in the tokens that the tokenizer gives it.
What else the reward accepts is left out, so it errs to the low side, by as much as a model strays
from the spelling that it was taught.
"""

from dataclasses import replace

from minipost.errors import MinipostError
from minipost.measure.stats import pass_at, pass_at_k, share

ROWS = 4096    # answers whose log-probs are taken together
MOST = 10_000  # samples of a problem that are drawn unasked


def chances(run, problems):
    """The chance of a right sample at temperature 1, of each problem.  -> floats, or None

    None where the task cannot list what is right, or another reward than its own says so.  An
    answer longer than a sample may be has no chance.
    """
    if run.task.answers is None or run.reward != run.task.reward:
        return None
    listed = [run.task.answers(problem) for problem in problems]
    if None in listed:
        return None
    rows = [(k, text) for k, texts in enumerate(listed) for text in texts
            if len(run.vocabulary.response(text)) <= run.max_new_tokens]
    total = [0.0] * len(problems)
    for first in range(0, len(rows), ROWS):
        part = rows[first : first + ROWS]
        seqs = run.encode([problems[k] for k, _ in part], [text for _, text in part])
        for way in endings(seqs, run.vocabulary.eos):
            logp = run.logprobs(run.policy.module, way).double().sum(1)
            for (k, _), chance in zip(part, logp.exp().tolist()):
                total[k] += chance
    return [min(1.0, chance) for chance in total]


def endings(seqs, eos):
    """The Sequences with each of the ids in whose place a model may end an answer: a list."""
    width = seqs.mask.shape[1]
    last = width - seqs.mask.flip(1).int().argmax(1)[:, None]               # (B, 1)
    return [replace(seqs, tokens=seqs.tokens.scatter(1, last, end)) for end in sorted(eos)]


def counts(run, problems, n):
    """How many of n samples at temperature 1 are right, of each problem.

    It leaves out a problem of which any sample has no reward.
    """
    rollout = run.sample(problems, n, temperature=1.0, purpose="pass")
    reward = run.grade(problems, rollout, none=True).view(len(problems), n)
    reward = reward[~reward.isnan().any(1)]
    if not len(reward):
        raise MinipostError(f"--pass-at: of each of the {len(problems)} problems there is a sample "
                            "without a reward (None), so nothing says how many are right")
    if not set(reward.unique().tolist()) <= {0.0, 1.0}:
        raise MinipostError(f"--pass-at: the reward of {run.task.name} is not 0 or 1, so no answer "
                            "is right or wrong")
    return [int(c) for c in reward.sum(1).tolist()]


def measure(run, problems, ks, samples=0):
    """{"pass@k": Score} for each k, exact where the task lists its answers.

    samples: how many are drawn elsewhere, the largest k if 0.  MinipostError where that is fewer.
    """
    found = None if samples else chances(run, problems)
    if found is not None:
        return {f"pass@{k}": share([pass_at(p, k) for p in found]) for k in ks}
    n = samples or max(ks)
    if not samples and n > MOST:
        raise MinipostError(f"--pass-at: right answers of {run.task.name} cannot be listed here, "
                            f"so pass@{n} takes {n:,} samples of each problem; say so with "
                            f"--samples, or ask for at most {MOST:,}")
    if n < max(ks):
        raise MinipostError(f"--samples {n}: pass@{max(ks)} takes at least {max(ks)} samples of "
                            "each problem")
    right = counts(run, problems, n)
    return {f"pass@{k}": share([pass_at_k(n, c, k) for c in right]) for k in ks}
