"""A run's models as functions of texts, which is all that the files in test_time/ know of them."""

from minipost.rollout import pack
from minipost.tasks.base import Problem
from minipost.test_time.beam import beam

DEPTH = 32  # steps of an answer after which a search gives up


def ends(vocabulary, ids, mark):
    """Index of the token in which each `mark` of a response ends.

    A token may hold half a character, two marks, or half of one, so growing prefixes are decoded, but
    only where a token's own text may end a mark: each takes time by its length.
    """
    found = []
    for k, token in enumerate(ids):
        if {mark[-1], "\ufffd"} & set(vocabulary.decode([token])):
            found += [k] * (vocabulary.decode(ids[: k + 1]).count(mark) - len(found))
    return found


def sampler(run, mark=""):
    """sample(texts, n) -> for each text a list of n continuations by the policy.

    With `mark` a continuation ends with the token in which the first mark ends, else with the end of
    the answer.  An answer has at most run.room tokens in all: a text that was itself made here goes on
    with what its beginning left of them, and where nothing is left, or the context is full, the
    continuation is empty.  Every call draws afresh, and the same calls in another run of this seed draw
    the same.
    """
    vocabulary, config = run.vocabulary, run.policy.module.config
    stop = {i for i in range(config.vocab_size) if mark and mark in vocabulary.decode([i])}
    used, calls = {}, 0                                     # tokens of a text that were made here

    def sample(texts, n):
        nonlocal calls
        calls += 1
        found = [[""] * n for _ in texts]
        left = [run.room - used.get(text, 0) for text in texts]
        space = [config.max_position_embeddings - len(vocabulary.prompt(text)) for text in texts]
        # All go on together for as long as any may, and are cut to their own length afterwards; only
        # where the context is too short for that a text goes by itself.
        groups, longest = {}, max(left)
        for k in range(len(texts)):
            room = longest if space[k] >= longest else space[k]
            if left[k] > 0 and room > 0:
                groups.setdefault(room, []).append(k)
        for room, rows in groups.items():
            rollout = run.look([Problem(texts[k]) for k in rows], n, 1.0,
                               purpose=f"search {calls}", stop=stop, room=room)
            for place, (targets, chosen) in enumerate(zip(rollout.targets, rollout.mask)):
                k = rows[place // n]
                ids = targets[chosen].tolist()[: left[k]]
                if mark and (first := ends(vocabulary, ids, mark)):
                    ids = ids[: first[0] + 1]
                found[k][place % n] = more = vocabulary.decode(ids)
                if more:                                    # else it is the same text, and ended
                    used[texts[k] + more] = run.room - left[k] + len(ids)
        return found

    return sample


def reader(run, model):
    """value(texts) -> what a scalar model says after each text's last token, a list of floats.

    Of a text that the context does not hold it reads as much as fits.
    """
    vocabulary, limit = run.vocabulary, run.policy.module.config.max_position_embeddings

    def value(texts):
        ids = [vocabulary.prompt(text)[:limit] for text in texts]
        seqs = pack([row[:-1] for row in ids], [row[-1:] for row in ids], vocabulary.pad)
        return run.final_scores(model, seqs.to(run.policy.module.device)).tolist()

    return value


def searched(run, problems, model, width, copies):
    """Beam search over the steps of an answer, guided by a scalar model: (rewards, texts).

    A step ends with the task's `step_end`, a new line where it names none.
    """
    mark = getattr(run.task, "step_end", "\n")
    texts = beam([p.prompt for p in problems], sampler(run, mark), reader(run, model), mark=mark,
                 width=width, copies=copies, depth=DEPTH)
    return run.grade_texts(problems, texts).tolist(), texts
