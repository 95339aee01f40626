"""A run's models as functions of texts, which is all that the files in test_time/ know of them.

    Texts     what a test-time method is given: the task, samples, verdicts, scores, and what they cost
    sampler   sample(texts, n) by the policy, whole answers or single steps
    reader    value(texts) by a scalar model
"""

import math

from minipost.errors import MinipostError
from minipost.rollout import logprobs, pack
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


VERDICT = 24  # tokens of a judge's reply, at most


class Texts:
    """A run's models as functions of texts.  `tokens` counts what was sampled so far, EOS included.

    verifier: a scalar model that scores a text at its last token and at the ends of its steps, or None.
    """

    def __init__(self, run, temperature=1.0, verifier=None):
        self.run, self.task, self.verifier, self.tokens = run, run.task, verifier, 0
        self.mark = getattr(run.task, "step_end", "\n")
        options = dict(count=self._count)
        self.sample = sampler(run, temperature=temperature, purpose="answers", **options)
        self.step = sampler(run, self.mark, temperature=temperature, purpose="steps", **options)
        self._greedy = sampler(run, temperature=0.0, **options)
        self._judge = sampler(run, purpose="verdicts", room=VERDICT, **options)

    def _count(self, tokens):
        self.tokens += tokens

    def greedy(self, texts):
        """The likeliest continuation of each text, one string each."""
        return [found for found, in self._greedy(texts, 1)]

    def worth(self, states, votes, known):
        """What the model itself thinks of each beginning of an answer, (problem, text), within 0..1.

        The task names the questions, each with the reply that approves; `votes` replies are sampled to
        each, and the worth is the product of the shares that approve.  `known` keeps the replies of a
        search: none of its questions is asked twice.
        """
        if not hasattr(self.task, "questions"):
            raise MinipostError(f"the task {self.task.name} has no question for a judge of a step (no "
                                "`questions`); countdown --target 24 and arithmetic have")
        asked = [self.task.questions(problem, text) for problem, text in states]
        shares = iter(self.shares([pair for questions in asked for pair in questions], votes, known))
        return [math.prod(next(shares) for _ in questions) for questions in asked]

    def shares(self, questions, votes, known):
        """The share of `votes` sampled replies to each question, (question, reply), that are that reply."""
        fresh = [q for q in dict.fromkeys(q for q, _ in questions) if q not in known]
        known.update(zip(fresh, self._judge(fresh, votes), strict=True))
        return [known[question].count(reply) / votes for question, reply in questions]

    def right(self, problems, answers):
        """What the task's exact reward says of one answer to each problem."""
        return self.run.grade_texts(problems, answers).tolist() if problems else []

    def _encoded(self, prompts, answers):
        """Prompts with answers as Sequences, cut to what the context holds."""
        vocabulary, limit = self.run.vocabulary, self.run.policy.module.config.max_position_embeddings
        before = [vocabulary.prompt(prompt)[: limit - 1] for prompt in prompts]
        after = [vocabulary.response(answer)[: limit - len(ids)]
                 for ids, answer in zip(before, answers, strict=True)]
        return pack(before, after, vocabulary.pad).to(self.run.policy.module.device)

    def confidence(self, prompts, answers):
        """The mean log-prob of each answer's tokens, EOS included, at temperature 1."""
        if not answers:
            return []
        seqs, policy = self._encoded(prompts, answers), self.run.policy.module
        logp, = self.run.for_all(lambda batch: [logprobs(policy, batch)], seqs)
        return (logp.sum(1) / seqs.lengths).tolist()

    def verified(self, prompts, answers):
        """The verifier's chances for each answer: of every step and, last, of the whole answer."""
        if not answers:
            return []
        seqs = self._encoded(prompts, answers)
        score, = self.run.for_all(lambda batch: [self.verifier(batch.tokens)[:, 1:]], seqs)
        found = []
        for row, mask, targets in zip(score.tolist(), seqs.mask.tolist(), seqs.targets.tolist()):
            columns = [k for k, chosen in enumerate(mask) if chosen]
            ids = [targets[k] for k in columns]
            steps = [columns[k] for k in ends(self.run.vocabulary, ids, self.mark) if k < len(ids) - 1]
            found.append([1 / (1 + math.exp(-row[k])) for k in [*steps, columns[-1]]])
        return found

    def value(self, texts):
        """The verifier's score after each text's last token."""
        return reader(self.run, self.verifier)(texts)


def sampler(run, mark="", temperature=1.0, purpose="search", room=None, count=lambda tokens: None):
    """sample(texts, n) -> for each text a list of n continuations by the policy.

    With `mark` a continuation ends with the token in which the first mark ends, else with the end of
    the answer.  An answer has at most `room` tokens in all, run.room if None: a text that was itself
    made here goes on with what its beginning left of them, and where nothing is left, or the context is
    full, the continuation is empty.  Every call draws afresh, and the same calls in another run of this
    seed draw the same.  count(k) is told of every k tokens that were sampled for a continuation.
    """
    vocabulary, config = run.vocabulary, run.policy.module.config
    stop = {i for i in range(config.vocab_size) if mark and mark in vocabulary.decode([i])}
    used, calls, whole = {}, 0, room or run.room            # used: tokens of a text that were made here

    def sample(texts, n):
        nonlocal calls
        if not texts:
            return []
        calls += 1
        found = [[""] * n for _ in texts]
        left = [whole - used.get(text, 0) for text in texts]
        space = [config.max_position_embeddings - len(vocabulary.prompt(text)) for text in texts]
        # All go on together for as long as any may, and are cut to their own length afterwards; only
        # where the context is too short for that a text goes by itself.
        groups, longest = {}, max(left)
        for k in range(len(texts)):
            room = longest if space[k] >= longest else space[k]
            if left[k] > 0 and room > 0:
                groups.setdefault(room, []).append(k)
        for room, rows in groups.items():
            rollout = run.look([Problem(texts[k]) for k in rows], n, temperature,
                               purpose=f"{purpose} {calls}", stop=stop, room=room)
            for place, (targets, chosen) in enumerate(zip(rollout.targets, rollout.mask)):
                k = rows[place // n]
                ids = targets[chosen].tolist()[: left[k]]
                if mark and (first := ends(vocabulary, ids, mark)):
                    ids = ids[: first[0] + 1]
                count(len(ids))
                found[k][place % n] = more = vocabulary.decode(ids)
                if more:                                    # else it is the same text, and ended
                    used[texts[k] + more] = whole - left[k] + len(ids)
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
