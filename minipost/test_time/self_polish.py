"""Self-Polish: the model says a problem in clearer words before it answers (survey sec. 5.10; Xi et
al. 2023, arxiv.org/abs/2305.14497).

    a_0 ~ pi(. | x_0),    x_t ~ pi(. | polish(x_t-1)),    a_t ~ pi(. | x_t)
    until a_t = a_t-1, at most `rewordings` times

An answer that stays the same when the words change is taken to be settled.  Where none settles,
the answer is the last one, the one that most of them state, or the first, that of the problem as it
stands (`unsettled`); the paper compares the first two, and its code takes the third unless told
otherwise.  Three rewordings are the number of its code, as is that all texts are greedy.

A large model rewords by a few examples; a nano model is taught to, by SFT, on as many stories as it
is taught to answer: checkpoints/polisher (minipost/tasks/polish.py).

The arms: the problem as it stands, reworded once, reworded to the end, up to where the answer
settles, and the control: as many sampled answers to the problem as it stands as cost the same
tokens, and a vote.  Beside these stands the share of rewordings after which the words still ask for
the problem's answer.
"""

from dataclasses import dataclass
from typing import Literal

from minipost.errors import Bounded, MinipostError
from minipost.measure.results import Arm
from minipost.measure.stats import winner

TASK, KNOBS = "polish", {}
MODEL = "checkpoints/polisher"
BEFORE, AFTER = "as it stands", "until settled"
PAIRS = (("vote, its tokens", "until settled"), ("as it stands", "reworded once"),
         ("until settled", "reworded to the end"))
N = 400


@dataclass(frozen=True)
class Config(Bounded):
    """Answers to a problem in clearer and clearer words."""

    rewordings: int = 3         # of a problem, at most (T)
    unsettled: Literal["last", "vote", "first"] = "last"  # whose answer counts where none settles


def refine(problems, greedy, task, rewordings, settle=True):
    """Answer, reword, answer: for each problem the list of its rounds {"problem", "answer"}.

    greedy(texts) -> a text behind each.  settle: stop where an answer is that of the round before.
    """
    if task.polish is None:
        raise MinipostError(f"the task {task.name} has no form for clearer words (no `polish` and "
                            "`polished`); polish has one")
    rounds, now, going = [[] for _ in problems], list(problems), list(range(len(problems)))
    for k in range(rewordings + 1):
        if k and going:
            said = greedy([task.polish(now[row]).prompt for row in going])
            for row, text in zip(going, said, strict=True):
                now[row] = task.polished(now[row], text)
        for row, text in zip(going, greedy([now[row].prompt for row in going]), strict=True):
            rounds[row].append({"problem": now[row], "answer": text})
        going = [row for row in going if not (settle and settled(rounds[row], task))]
    return rounds


def settled(found, task):
    """Whether the last two rounds state the same answer."""
    last = [task.ballot(each["answer"]) for each in found[-2:]]
    return len(last) == 2 and last[0] is not None and last[0] == last[1]


def taken(found, task, unsettled):
    """The answer of a problem's rounds."""
    texts = [each["answer"] for each in found]
    if settled(found, task) or unsettled == "last":
        return texts[-1]
    return texts[winner([task.ballot(text) for text in texts])[0] if unsettled == "vote" else 0]


def worked(rounds, task):
    """Plain data on each problem's rounds."""
    return [{"wordings": [{"words": each["problem"].prompt, "answer": each["answer"],
                          "kept": bool(task.keeps(each["problem"]))} for each in found]}
            for found in rounds]


def solve(problems, tools, cfg):
    """The answer of each problem, as soon as it settles: (answers, workings)."""
    rounds = refine(problems, tools.greedy, tools.task, cfg.rewordings)
    return [taken(found, tools.task, cfg.unsettled) for found in rounds], worked(rounds, tools.task)


def arms(problems, tools, cfg):
    """Yield the Arms: as it stands, reworded, until settled, and a vote for the same tokens."""
    task, spent = tools.task, {}
    ways = {BEFORE: (0, False), "reworded once": (1, False),
            "reworded to the end": (cfg.rewordings, False), AFTER: (cfg.rewordings, True)}
    for name, (rewordings, settle) in ways.items():
        start = tools.tokens
        rounds = refine(problems, tools.greedy, task, rewordings, settle)
        spent[name] = tools.tokens - start
        texts = [taken(found, task, cfg.unsettled if settle else "last") for found in rounds]
        yield tools.arm(name, problems, texts, worked(rounds, task), start)
    fresh = [(row, each) for row, found in enumerate(rounds) for each in found[1:]]
    kept = [float(task.keeps(each["problem"])) for _, each in fresh]
    cost = spent[AFTER] * len(kept) / len(problems)  # so that it is that arm's, of each problem
    yield Arm.of("rewordings that keep the answer", cost, kept,
                 [each["problem"].prompt for _, each in fresh],
                 worked([rounds[row] for row, _ in fresh], task))
    start, n = tools.tokens, max(1, round(spent[AFTER] / max(1, spent[BEFORE])))
    drawn = tools.sample([p.prompt for p in problems], n)
    votes = [winner([task.ballot(text) for text in texts]) for texts in drawn]
    yield tools.arm("vote, its tokens", problems,
                    [texts[first] for texts, (first, _) in zip(drawn, votes)],
                    worked([[{"problem": p, "answer": text} for text in texts]
                            for p, texts in zip(problems, drawn)], task), start)


def show(working):
    """The working as lines."""
    return [f"{each['words'].strip()} {each['answer'].strip()!r}"
            + ("" if each["kept"] else "  (asks for another number)")
            for each in working["wordings"]]
