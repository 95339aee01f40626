"""What asking more gets from a model that is not trained: samples of it, and ways to choose one.

Training is to reach what no vote and no choice reaches.  So a demo shows these beside its result:

    vote        the answer that most of n samples state (test_time/self_consistency.py)
    surest      the sample with the highest mean log-prob of its tokens
    any right   whether any sample is right: what an exact checker would reach, pass@n
"""

from minipost.measure.results import of_known
from minipost.measure.stats import winner


def asked(run, problems, n):
    """{way to choose: Result} of n samples at temperature 1 to each problem.

    An answer without a reward is left out, as `evaluate` does.
    """
    with run.aside():
        rollout = run.sample(problems, n, temperature=1.0, purpose="asked")
    texts, rewards = run.texts(rollout), run.grade(problems, rollout, none=True).tolist()
    sure = (rollout.logp.sum(1) / rollout.lengths).tolist()
    chosen = {f"vote of {n}": [], f"surest of {n}": [], f"any of {n} right": []}
    for first in range(0, len(texts), n):
        rows = range(first, first + n)
        voted, _ = winner([run.task.ballot(texts[row]) for row in rows])
        best = max(rows, key=lambda row: (rewards[row] == rewards[row], rewards[row]))
        found = first + voted, max(rows, key=sure.__getitem__), best
        for picked, row in zip(chosen.values(), found):
            picked.append(row)
    return {name: of_known(run, [rewards[row] for row in rows], [texts[row] for row in rows])
            for name, rows in chosen.items()}
