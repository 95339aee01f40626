"""Episodic memory: an agent that reads earlier questions and answers (survey fig. 2; Reflexion,
Shinn et al. 2023, arxiv.org/abs/2303.11366; nearest neighbours: Khandelwal et al. 2020,
arxiv.org/abs/1911.00172).

Each episode asks a question.  The agent answers from the question and what its memory recalls,
nothing else.  Then it is told the answer and writes both down, where Reflexion writes what it makes
of a failure.  What is recalled stands in the prompt; Khandelwal et al. mix it into the chances of
the next token, and hold hidden states, not words, near.  The memory recalls

    window    the last `size` episodes
    nearest   the `size` episodes whose question is most like this one: the cosine of word counts,
              each word weighted by log(1 + N / n_w), where n_w of N episodes have the word

One control recalls nothing.  The other recalls the nearest questions with the answers to others.
The most similar episode stands last, next to the question.  By default it stands alone, because
checkpoints/thinker reads one episode and hardly finds one among several.

The second experiment is a lock of n keys; the memory recalls the keys that failed.  Within k trials
the lock opens with chance k/n if no key is repeated, and with 1 - (1 - 1/n)^k without memory.
"""

import math
import random
from collections import Counter
from dataclasses import dataclass

from minipost.errors import Bounded, MinipostError
from minipost.measure.results import Arm
from minipost.tasks import answers

TASK, KNOBS = "recall", {}
BEFORE, AFTER = "no memory", "nearest"


@dataclass(frozen=True)
class Config(Bounded):
    """An agent's life of episodes."""

    size: int = 1               # episodes recalled for a question
    length: int = 40            # episodes of a life
    things: int = 16            # things that a life asks about
    lives: int = 16             # lives lived side by side
    keys: int = 8               # keys of a lock
    trials: int = 4             # trials at a lock

    LIMITS = {"length": ">= 2", "things": ">= 2", "keys": ">= 2"}

    def __post_init__(self):
        super().__post_init__()
        if self.keys > 9 or self.trials > self.keys:
            raise MinipostError(f"keys {self.keys}, trials {self.trials}; expected at most 9 keys "
                                "and no more trials than keys")


class Memory:
    """Episodes, (question, answer), in the order in which they were written."""

    def __init__(self):
        self.episodes, self.words = [], []
        self.counts = Counter()                             # word: how many episodes have it

    def write(self, question, answer):
        words = Counter(question.lower().split())
        self.episodes.append((question, answer))
        self.words.append(words)
        self.counts.update(words.keys())

    def window(self, size):
        """The last `size` episodes, oldest first."""
        return self.episodes[-size:]

    def nearest(self, question, size):
        """The `size` episodes whose question is most like this one, the most similar last.

        Of equally similar ones it takes the latest.
        """
        asked = Counter(question.lower().split())
        likeness = [self._cosine(asked, words) for words in self.words]
        order = sorted(range(len(likeness)), key=lambda k: (likeness[k], k))
        return [self.episodes[k] for k in order[-size:]]

    def _cosine(self, a, b):
        weight = {w: math.log(1 + len(self.episodes) / self.counts[w]) if self.counts[w] else 0.0
                  for w in {*a, *b}}
        dot = sum(a[w] * b[w] * weight[w] ** 2 for w in a.keys() & b.keys())
        norm = [math.sqrt(sum((n * weight[w]) ** 2 for w, n in words.items())) for words in (a, b)]
        return dot / (norm[0] * norm[1]) if all(norm) else 0.0


def recalled(memory, question, how, size, rng):
    """What the memory recalls for a question, [(question, answer)]."""
    if how == "no memory":
        return []
    if how == "window":
        return memory.window(size)
    found = memory.nearest(question, size)
    if how == "shuffled":                                   # every answer is that of another one
        every = [answer for _, answer in memory.episodes]
        found = [(q, rng.choice([b for b in every if b != a] or [a])) for q, a in found]
    return found


def live(streams, answer, how, size, rng):
    """Live through all streams side by side: a list of episodes for each.

    streams: lists of (question, answer, told), all of one length.  `told` says whether an earlier
    episode told the answer.  answer(asked) gives a text for each (recalled, question).  An episode
    is {"question", "recalled", "said", "right", "told"}.
    """
    memories = [Memory() for _ in streams]
    lives = [[] for _ in streams]
    for asked in zip(*streams, strict=True):
        brought = [recalled(m, q, how, size, rng) for m, (q, _, _) in zip(memories, asked)]
        said = answer([(found, q) for found, (q, _, _) in zip(brought, asked)])
        for life, memory, found, (question, right, told), text in zip(
                lives, memories, brought, asked, said, strict=True):
            life.append({"question": question, "recalled": found, "said": text, "right": right,
                         "told": told})
            memory.write(question, right)
    return lives


def unlock(locks, choose, keys, trials, remember):
    """The trials at each lock: a list of the keys tried, up to the right one.

    locks: the right key of each.  choose(tried) gives a key, or None, for each list of keys that
    failed according to the memory.  Without `remember` those lists are empty.
    """
    made = [[] for _ in locks]
    for _ in range(trials):
        shut = [k for k, tried in enumerate(made) if locks[k] not in tried]
        failed = [[key for key in made[k] if key is not None] if remember else [] for k in shut]
        picks = choose([sorted(keys) for keys in failed])
        for k, key in zip(shut, picks, strict=True):
            made[k].append(key)
    return made


def streams_of(task, count, cfg):
    """The lives of `count` agents, the same at every call."""
    if task.stream is None:
        raise MinipostError(f"the task {task.name} has no episodes to remember (no `stream`); "
                            "recall has them")
    return [task.stream(cfg.length, cfg.things, random.Random(f"life {k}")) for k in range(count)]


def answerer(tools):
    """answer(asked) by the policy, greedily."""
    return lambda asked: tools.greedy([tools.task.asked(found, q) for found, q in asked])


def judged(lives, task):
    """The lives with "good" in each episode: whether the task reads the right answer in it."""
    for episode in (episode for life in lives for episode in life):
        episode["good"] = task.parse(episode["said"]) == episode["right"]
    return lives


def solve(problems, tools, cfg):
    """One life for each problem, whatever it asks: (last answers, workings)."""
    lives = judged(live(streams_of(tools.task, len(problems), cfg), answerer(tools), "nearest",
                        cfg.size, random.Random(0)), tools.task)
    return [life[-1]["said"] for life in lives], [{"episodes": life} for life in lives]


def outcome(working):
    """The last question of a life, and whether the answer was right."""
    last = working["episodes"][-1]
    return f"{last['question']}?", last["good"]


def arms(problems, tools, cfg):
    """Yield the Arms of each memory, and of the locks with memory and without.

    The memories are measured on the episodes whose answer has been told before.
    """
    streams, task = streams_of(tools.task, cfg.lives, cfg), tools.task
    for how in (BEFORE, "window", "shuffled", AFTER):
        start = tools.tokens
        lives = judged(live(streams, answerer(tools), how, cfg.size, random.Random(0)), task)
        told = [episode for life in lives for episode in life if episode["told"]]
        if not told:
            raise MinipostError(f"no question comes twice in {cfg.length} episodes about "
                                f"{cfg.things} things; raise --length or lower --things")
        right = [float(e["good"]) for e in told]
        spent = (tools.tokens - start) * len(told) / (cfg.lives * cfg.length)
        yield Arm.of(how, spent, right, [e["said"] for e in told],
                     [{"episodes": [e]} for e in told])
    locks = [random.Random(f"lock {k}").randint(1, cfg.keys) for k in range(len(problems))]
    for remember in (False, True):
        start = tools.tokens

        def choose(tried):
            texts = tools.sample([task.lock(cfg.keys, failed) for failed in tried], 1)
            return [answers.whole(answers.stated(text)) for text, in texts]

        made = unlock(locks, choose, cfg.keys, cfg.trials, remember)
        opened = [float(key in tried) for key, tried in zip(locks, made)]
        name = f"lock of {cfg.keys}, {cfg.trials} trials, {'with' if remember else 'no'} memory"
        yield Arm.of(name, tools.tokens - start, opened, [str(tried) for tried in made],
                     [{"trials": tried, "key": key} for tried, key in zip(made, locks)])


def show(working):
    """The episodes, or the trials at a lock, as lines."""
    if "trials" in working:
        return [f"key {working['key']}, tried {' '.join(map(str, working['trials']))}"]
    lines = []
    for k, e in enumerate(working["episodes"]):
        mark = "right" if e["good"] else "wrong"
        lines.append(f"episode {k + 1}: {e['question']}?  said {e['said'].strip()!r}, {mark}; "
                     f"written: {e['right']}")
        lines += [f"    read: {q}? {a}" for q, a in e["recalled"]]
    return lines
