"""A run's models as functions of texts.  A test-time method knows nothing else of them."""

import math

from minipost.checkpoint import load_reward_model
from minipost.errors import MinipostError
from minipost.measure.results import Arm
from minipost.rollout import pack, step_scores
from minipost.sampler import Sampler, ends

VERDICT = 24  # most tokens of a judge's reply


def once(f, rows):
    """f(rows), a list, where equal rows are asked once."""
    distinct = list(dict.fromkeys(rows))
    found = dict(zip(distinct, f(distinct) if distinct else [], strict=True))
    return [found[row] for row in rows]


class Texts:
    """The task, samples, verdicts, scores, and their cost in tokens.

    Every sampled token counts, also where samples were computed together (tree.py).  A question to
    the judge is asked once in a search and counts once.  Scores count no tokens.

    temperature: for answers and steps.  verifier: a value head that scores a text at its last token
    and at the ends of its steps, or None.  stream: the name of the random stream of steps.
    asks_tool: whether who samples here asks the task's tool; MinipostError where nobody does and
    the task's answers are made with it.
    """

    def __init__(self, run, temperature=1.0, verifier=None, stream="steps", asks_tool=False):
        if run.task.acts and not asks_tool:
            raise MinipostError(f"in answers of the task {run.task.name} a tool has a say, and of "
                                "the test-time methods only react asks it; choose --method react, "
                                "or measure greedy and sampled answers without --method and "
                                "--value")
        self.run, self.task, self.verifier, self.mark = run, run.task, verifier, run.task.step_end
        self.others = {}        # further reward models, by directory
        made: dict[str, int] = {}   # whoever goes on with an answer, its length is bounded once
        self.sample = Sampler(run, temperature=temperature, purpose="answers", made=made)
        self.step = Sampler(run, self.mark, temperature, stream, made=made)
        self.turn = Sampler(run, run.task.call_end, temperature, "turns", made=made)  # to its end
        self._greedy = Sampler(run, temperature=0.0, made=made)
        self.heard = self.sample.heard
        self._judge = Sampler(run, purpose="verdicts", max_new_tokens=VERDICT)

    @property
    def tokens(self):
        """The number of tokens sampled so far, EOS included."""
        return sum(each.tokens for each in (self.sample, self.step, self.turn, self._greedy,
                                        self._judge))

    def greedy(self, texts):
        """The likeliest continuation of each text, one string each."""
        return [found for found, in self._greedy(texts, 1)]

    def worth(self, states, votes, known):
        """The model's own estimate of each beginning of an answer, (problem, text), within 0..1.

        The task gives the questions, each with the reply that approves.  `votes` replies are
        sampled to each question.  The worth is the product of the shares that approve.  `known`
        keeps the replies of a search, so that none of its questions is asked twice.
        """
        if self.task.questions is None:
            raise MinipostError(f"the task {self.task.name} has no question for a judge of a step "
                                "(no `questions`); countdown --target 24 and arithmetic have")
        asked = [self.task.questions(problem, text) for problem, text in states]
        shares = iter(
            self.shares([pair for questions in asked for pair in questions], votes, known))
        return [math.prod(next(shares) for _ in questions) for questions in asked]

    def shares(self, questions, votes, known):
        """For each (question, reply), the share of `votes` sampled replies that equal the reply."""
        fresh = [q for q in dict.fromkeys(q for q, _ in questions) if q not in known]
        known.update(zip(fresh, self._judge(fresh, votes), strict=True))
        return [known[question].count(reply) / votes for question, reply in questions]

    def right(self, problems, answers, none=False):
        """The task's exact reward of one answer to each problem.  none: as in `Run.grade`."""
        return self.run.grade_texts(problems, answers, none=none).tolist() if problems else []

    def arm(self, name, problems, answers, workings, since):
        """The Arm of one answer to each problem.  Its cost is the tokens sampled after `since`."""
        return Arm.of(name, self.tokens - since, self.right(problems, answers), answers, workings)

    def _encoded(self, rows):
        """Pairs (prompt, answer) as Sequences, cut to what the context holds."""
        vocabulary, limit = self.run.vocabulary, self.run.policy.module.context
        before = [vocabulary.prompt(prompt)[: limit - 1] for prompt, _ in rows]
        after = [vocabulary.response(answer)[: limit - len(ids)]
                 for ids, (_, answer) in zip(before, rows)]
        return pack(before, after, vocabulary.pad).to(self.run.policy.module.device)

    def confidence(self, prompts, answers):
        """The mean log-prob of each answer's tokens, EOS included, at temperature 1."""
        return once(self._confidence, list(zip(prompts, answers, strict=True)))

    def _confidence(self, rows):
        seqs = self._encoded(rows)
        logp = self.run.logprobs(self.run.policy.module, seqs)
        return (logp.sum(1) / seqs.lengths).tolist()

    def verified(self, prompts, answers, directory=""):
        """The verifier's chances for each answer: of each step and, last, of the whole answer.

        directory: of another reward model that is asked in the verifier's place.
        """
        if directory and directory not in self.others:
            self.others[directory] = load_reward_model(directory, self.run.vocabulary)
        model = self.others[directory] if directory else self.verifier
        return once(lambda rows: self._verified(rows, model),
                    list(zip(prompts, answers, strict=True)))

    def _verified(self, rows, model):
        seqs = self._encoded(rows)
        score, = self.run.for_all(lambda batch: [step_scores(model, batch)], seqs)
        found = []
        for row, mask, targets in zip(score.tolist(), seqs.mask.tolist(), seqs.targets.tolist()):
            columns = [k for k, chosen in enumerate(mask) if chosen]
            ids = [targets[k] for k in columns]
            steps = [columns[k] for k in ends(self.run.vocabulary, ids, self.mark)
                     if k < len(ids) - 1]
            found.append([1 / (1 + math.exp(-row[k])) for k in [*steps, columns[-1]]])
        return found

    def value(self, texts):
        """The verifier's score after each text's last token.  Long texts are cut to the context."""
        return once(self._value, texts)

    def _value(self, texts):
        vocabulary, policy = self.run.vocabulary, self.run.policy.module
        ids = [vocabulary.prompt(text)[: policy.context] for text in texts]
        cuts = [len(row) - (len(row) > 1) for row in ids]  # a single id is read as a prompt
        seqs = pack([row[:cut] for row, cut in zip(ids, cuts)],
                    [row[cut:] for row, cut in zip(ids, cuts)], vocabulary.pad)
        return self.run.final_scores(self.verifier, seqs.to(policy.device)).tolist()
