"""What a run keeps for its report: answers with the numbers of their tokens, from a few steps.

    Watch     told by `run.keep` what a step learns from; it keeps a group or two of some steps
    Example   told the same; it keeps one group, for the console
    Signal    told the same; it knows whether the rewards taught anything
    judged    a few held-out answers with what a reward model, or a value, says after each token

A row is plain data for JSON.  An answer is {"text", "reward", "advantage", "finished", "tokens"}
with lists of as many numbers as it has tokens: logp, and where the run has them ratio (log pi/ref),
kl, entropy, value, advantages.
"""

import math
import weakref

import torch

from minipost import parallel
from minipost.rollout import readings, step_scores
from minipost.sampler import ends

STEPS = 8        # steps that are kept, of each stage of a run
ANSWERS = (8, 4)  # answers that are kept of the widest group and of the first: best and worst
TOKENS = 1400    # of a step, at most, so that a page stays small


def steps_to_watch(total, milestones=(), first=0):
    """The numbers of the steps to keep: first and last of each stage, and log-spaced between.

    first: steps that were made before any answers were learnt from.
    """
    found, edges = set(), [first, *sorted(k for k in milestones if first < k < total), total]
    count = max(3, STEPS // (len(edges) - 1))
    for first, last in zip(edges, edges[1:]):
        n = last - first
        found |= {first + round(n ** (k / (count - 1))) for k in range(count)} if n else set()
    return frozenset(found)


def short(x):
    """A number of three digits, None where it is not finite."""
    return float(f"{x:.3g}") if math.isfinite(x) else None


def pieces(vocabulary, ids):
    """The text that each id adds.  One that only begins a letter adds nothing, the last adds it."""
    # Usually an id says the same alone; to decode every beginning takes a fifth of a watched step.
    alone = {i: vocabulary.tokenizer.control.get(i, "<end>") if i in vocabulary.eos
             else vocabulary.decode([i]) for i in {*ids}}
    said = "".join(alone[i] for i in ids if i not in vocabulary.eos)
    if "\ufffd" not in said and said == vocabulary.decode(ids):
        return [alone[i] for i in ids]
    found, before = [], ""
    for k, number in enumerate(ids):
        if number in vocabulary.eos:
            found.append(vocabulary.tokenizer.control.get(number, "<end>"))
            continue
        text = vocabulary.decode(ids[: k + 1])
        whole = not text.endswith("\ufffd") or k + 1 == len(ids)
        found.append(text[len(before):] if whole else "")
        before = text if whole else before
    return found


def groups_of(rollout):
    """{number of a prompt: its rows}"""
    found: dict[int, list[int]] = {}
    for row, prompt in enumerate(rollout.prompt.tolist()):
        found.setdefault(prompt, []).append(row)
    return found


def widest(groups, reward):
    """The prompt whose answers' rewards differ most; those without a reward (NaN) do not count."""
    def width(prompt):
        there = reward[groups[prompt]]
        there = there[~there.isnan()]
        return float(there.std(correction=0)) if len(there) > 1 else -1.0

    return max(groups, key=width)


class Example:
    """Keeps a group of the first step in which the rewards of one differ, as the rows of a table.

    Answers without a reward are left out.  A step without two answers to a prompt changes nothing.
    """

    def __init__(self, run):
        self.run, self.rows = weakref.proxy(run), []

    def __call__(self, problems, rollout, reward, adv, value=None):
        """As Watch."""
        if parallel.rank() or len({row["reward"] for row in self.rows}) > 1:
            return
        groups = groups_of(rollout)
        rows = groups[widest(groups, reward)] if groups else []
        rows = [row for row in rows if not reward[row].isnan()]
        if len(rows) < 2:
            return
        texts, gain = self.run.texts(rollout[torch.tensor(rows)]), rollout.per_answer(adv)
        prompt = problems[int(rollout.prompt[rows[0]])].prompt
        self.rows = [{"step": self.run.step + 1, "prompt": prompt, "completion": text,
                      "reward": float(reward[row]), "advantage": float(gain[row])}
                     for row, text in zip(rows, texts)]


class Signal:
    """Whether the rewards of any step told its answers apart.

    They do where those to a prompt differ.  Where they differ from prompt to prompt, or from step
    to step, they do if the method gives an advantage for that.  A method without a critic that
    gives advantages by token has them from elsewhere, such as the steps of an answer.
    """

    def __init__(self):
        self.low, self.high, self.steps = math.inf, -math.inf, 0
        self.apart = self.moved = self.missing = False

    def __call__(self, problems, rollout, reward, adv, value=None):
        """As Watch."""
        self.steps += 1
        known = reward[~reward.isnan()]
        self.missing |= len(known) < len(reward)
        if len(known):
            self.low = min(self.low, float(known.min()))
            self.high = max(self.high, float(known.max()))
        some = bool((adv.nan_to_num() != 0).any())
        self.moved |= some
        self.apart |= some and adv.dim() == 2 and value is None or any(
            len({x for x in reward[rows].tolist() if x == x}) > 1
            for rows in groups_of(rollout).values())

    def sentence(self):
        """What to look at where the rewards of no step taught anything; else ""."""
        if not self.steps or self.apart or self.moved and self.low < self.high:
            return ""
        if self.low > self.high and self.missing:
            return ("no reward function applies to any answer of this run, so they taught nothing; "
                    "let a function of --reward return a number for every row")
        return ("in no step did the rewards tell answers apart, so they have no advantage and "
                "taught nothing; look at what the reward returns (python -m minipost.doctor shows "
                "some), take harder or easier problems, or raise --group-size")


class Watch:
    """Keeps answers of the `steps_to_watch` from the first step on in which it is called.

    rows: a list to add to.  first: the number of steps before that one, if it has been made, else
    -1.  Every rank is to call it, since they share the work of the readings.
    """

    def __init__(self, run, total, milestones, rows):
        self.run = weakref.proxy(run)  # which holds this Watch, and ends when nobody else has it
        self.total, self.milestones, self.rows = total, milestones, rows
        self.first = -1

    def __call__(self, problems, rollout, reward, adv, value=None):
        """problems: those that rollout.prompt counts.  reward (B,); adv (B,) or (B, T); value (B,
        T) of a critic."""
        if self.first < 0:
            self.first = self.run.step
        if self.run.step + 1 not in steps_to_watch(self.total, self.milestones, self.first):
            return
        groups = self.choose(rollout, reward, adv)
        rows = [row for _, mine in groups for row in mine]
        if not rows:  # DAPO may find no group to learn from
            return
        most = max(24, TOKENS // len(rows))
        parts = {"logp": rollout.logp, **self.readings(rollout, rows, most)}
        parts |= {} if value is None else {"value": value}
        parts |= {"advantages": adv} if adv.dim() == 2 else {}
        gain = rollout.per_answer(adv)
        for prompts, mine in groups:
            answers = answers_of(self.run, rollout, mine, parts, most)
            for answer, row in zip(answers, mine):
                answer |= {"reward": short(float(reward[row])),
                           "advantage": short(float(gain[row]))}
                if len(prompts) > 1:
                    answer["prompt"] = str(problems[int(rollout.prompt[row])].prompt)
            self.rows.append({"kind": "group", "step": self.run.step + 1, "answers": answers,
                              "prompt": str(problems[prompts[0]].prompt) if len(prompts) == 1
                              else ""})

    def choose(self, rollout, reward, adv):
        """[(numbers of the prompts, rows)]: the group whose rewards differ most, and the first.

        Without groups, answers to several prompts.  Of many answers the best and the worst.
        """
        gain, groups = rollout.per_answer(adv).tolist(), groups_of(rollout)
        if len(groups) == len(gain):
            groups = {tuple(groups): list(range(len(gain)))}
        else:
            first = next(iter(groups))
            groups = {(k,): groups[k] for k in dict.fromkeys([widest(groups, reward), first])}
        found = []
        for (prompts, rows), most in zip(groups.items(), ANSWERS):
            rows, half = sorted(rows, key=lambda row: -gain[row]), most // 2
            found.append((prompts, rows if len(rows) <= most else rows[:half] + rows[-half:]))
        return found

    def readings(self, rollout, rows, most):
        """Entropy and, where the run has a reference, log-ratio and KL of the rows' tokens."""
        run = self.run
        known = "frozen/reference" in run.parts or "frozen/reference" in run.saved
        reference = run.reference() if known else None

        def read(batch):
            seen = readings(run.policy.module, batch, run.temperature, reference, entropy=True)
            return [seen.entropy] + ([] if reference is None else
                                     [batch.logp - seen.logp_ref, seen.kl])

        # Columns beyond what is shown need no reading, and equal answers need one.
        alike = {row: tuple(rollout.tokens[row].tolist()) for row in rows}
        asked = {ids: row for row, ids in alike.items()}
        rows = list(asked.values())
        width = int((rollout.mask[rows].cumsum(1) <= most).sum(1).max())
        part = rollout[torch.tensor(rows)]
        cut = type(part)(part.tokens[:, : width + 1], part.mask[:, :width], part.logp[:, :width],
                         part.prompt, part.finished)
        names = ["entropy"] if reference is None else ["entropy", "ratio", "kl"]
        found = {}
        for name, x in zip(names, run.for_all(read, cut, outputs=len(names))):
            found[name] = whole = torch.zeros_like(rollout.logp)
            for row, ids in alike.items():
                whole[row, : x.shape[1]] = x[rows.index(asked[ids])].to(whole)
        return found


def answers_of(run, rollout, rows, parts, most):
    """The answers of these rows as plain data, each with at most so many tokens."""
    found = []
    for row in rows:
        columns = rollout.mask[row].nonzero()[:, 0].tolist()
        ids = rollout.targets[row, columns].tolist()
        answer = {"text": run.vocabulary.decode(ids), "finished": bool(rollout.finished[row]),
                  "length": len(ids), "tokens": pieces(run.vocabulary, ids[:most])}
        for name, x in parts.items():
            answer[name] = [short(v) for v in x[row, columns[:most]].tolist()]
        found.append(answer)
    return found


@torch.no_grad()
def judged(run, problems, model, by):
    """A row on a few held-out answers, with the score of `model` after each of their tokens.

    by: the name of the model.  Where the task has steps, each answer says the score after each.
    """
    with run.aside():
        rollout = run.sample(problems, 2, temperature=1.0, purpose="evaluation")
    score, = run.for_all(lambda batch: [step_scores(model, batch)], rollout)
    reward = run.grade(problems, rollout, none=True)
    answers = answers_of(run, rollout, range(len(rollout)), {"value": score},
                         max(24, TOKENS // len(rollout)))
    for row, answer in enumerate(answers):
        answer |= {"reward": short(float(reward[row])),
                   "prompt": str(problems[int(rollout.prompt[row])].prompt)}
        if run.task.step_end:
            columns = rollout.mask[row].nonzero()[:, 0].tolist()
            ids = rollout.targets[row, columns].tolist()
            at = [k for k in ends(run.vocabulary, ids, run.task.step_end) if k < len(ids) - 1]
            starts = [0, *(k + 1 for k in at)]
            answer["steps"] = [
                {"text": run.vocabulary.decode(ids[a:b + 1]), "value": short(float(
                    score[row, columns[b]]))} for a, b in zip(starts, [*at, len(ids) - 1])]
    return {"kind": "judged", "by": by, "answers": answers}
