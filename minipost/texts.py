"""A run's models as functions of texts, which is all that the files in test_time/ know of them."""

from minipost.rollout import pack
from minipost.tasks.base import Problem
from minipost.test_time.beam import beam

DEPTH = 32  # steps of an answer after which a search gives up


def sampler(run, *, temperature=1.0, mark="", module=None, purpose="search"):
    """sample(texts, n) -> for each text a list of n continuations by the policy, or by `module`.

    With `mark` a continuation ends with the token in which the first mark stands, else with the end
    of the answer or after run.room tokens.  Where the context has no room for those it is empty.
    Every call draws afresh, and the same calls in another run of this seed draw the same.
    """
    vocabulary, module = run.vocabulary, module or run.policy.module
    limit, calls = module.config.max_position_embeddings - run.room, 0
    stop = {i for i in range(module.config.vocab_size) if mark and mark in vocabulary.decode([i])}

    def sample(texts, n):
        nonlocal calls
        calls += 1
        found = [[""] * n for _ in texts]
        fits = [k for k, text in enumerate(texts) if len(vocabulary.prompt(text)) <= limit]
        if fits:
            rollout = run.look([Problem(texts[k]) for k in fits], n, temperature, module,
                               f"{purpose} {calls}", stop)
            said = [vocabulary.decode(ids[chosen].tolist())
                    for ids, chosen in zip(rollout.targets, rollout.mask)]
            for place, k in enumerate(fits):
                found[k] = said[place * n : (place + 1) * n]
        return found

    return sample


def reader(run, model):
    """value(texts) -> what a scalar model says after each text's last token, a list of floats."""
    vocabulary = run.vocabulary

    def value(texts):
        ids = [vocabulary.prompt(text) for text in texts]
        seqs = pack([row[:-1] for row in ids], [row[-1:] for row in ids], vocabulary.pad)
        return run.final_scores(model, seqs.to(run.policy.module.device)).tolist()

    return value


def searched(run, problems, model, width, copies):
    """Beam search over the steps of an answer, guided by a scalar model: (rewards, texts).

    A step ends with the task's `step_end`, a new line where it names none.
    """
    mark = getattr(run.task, "step_end", "\n")
    texts = beam([p.prompt for p in problems], sampler(run, mark=mark), reader(run, model), mark=mark,
                 width=width, copies=copies, depth=DEPTH)
    return run.grade_texts(problems, texts).tolist(), texts
