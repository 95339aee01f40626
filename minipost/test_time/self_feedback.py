"""Self-feedback: one model drafts, critiques and revises (survey sec. 5.10; Self-Refine, Madaan et
al. 2023, arxiv.org/abs/2303.17651; Reflexion, Shinn et al. 2023, arxiv.org/abs/2303.11366).

    y_1 ~ pi(. | x)
    c_t ~ pi(. | critique(x, y_t))
    y_t+1 ~ pi(. | revise(x, y_t, c_t))     unless c_t approves, up to `attempts` answers in all

The critique alone decides whether to go on (Self-Refine).  With `checker` the exact reward decides
instead (Reflexion's evaluator).  A critique that approves an answer which the checker refuses is of
no use, so the model makes another draft.  The control has the same number of attempts and samples
each afresh, without a critique.  Its answer is the last one, or with a checker the first right one.
So without a checker it is one sample, and a second control votes among as many answers as cost the
same.  Where mistakes are slips, as here by default, the vote is the better use of these tokens.

Where we differ: Self-Refine's model reads all answers and critiques so far when it revises; ours
reads the last of each, which fits a small context.
"""

from dataclasses import dataclass

from minipost.errors import Bounded, MinipostError
from minipost.measure.stats import winner

TASK, KNOBS = "arithmetic", {}
BEFORE, AFTER, VOTE = "retry", "self-feedback", "vote, its tokens"
PAIRS = ((VOTE, AFTER), ("retry, checker", "self-feedback, checker"))
N = 1000


@dataclass(frozen=True)
class Config(Bounded):
    """A draft, and revisions of it by the model's own critique."""

    attempts: int = 4           # answers that may be made, the draft included
    checker: bool = False       # let the exact reward say when to stop, not the critique


def refine(problems, sample, task, attempts, right=None):
    """Draft, critique and revise: for each problem the list of its rounds.

    sample(texts, n) -> n answers to each text.  right(problems, answers) -> whether to stop, in
    place of the critique.  A round is {"answer", "critique"}.  The last round's answer counts.
    """
    rounds = [[] for _ in problems]
    going = list(range(len(problems)))
    asked = [p.prompt for p in problems]
    for attempt in range(attempts):
        answers = [found[0] for found in sample([asked[k] for k in going], 1)]
        for k, answer in zip(going, answers):
            rounds[k].append({"answer": answer, "critique": None})
        if right is not None:
            good = right([problems[k] for k in going], answers)
            going = [k for k, stop in zip(going, good) if not stop]
        if attempt == attempts - 1 or not going:
            break
        critiques = sample([task.critique(problems[k], rounds[k][-1]["answer"]) for k in going], 1)
        still = []
        for k, (critique,) in zip(going, critiques):
            rounds[k][-1]["critique"] = critique
            approved = task.approves(critique)
            if approved and right is None:
                continue
            asked[k] = problems[k].prompt if approved else task.revise(
                problems[k], rounds[k][-1]["answer"], critique)
            still.append(k)
        going = still
    return rounds


def retry(problems, sample, attempts, right=None):
    """The control: `attempts` fresh answers, or, with `right`, up to the first right one."""
    rounds = [[] for _ in problems]
    going = list(range(len(problems)))
    for _ in range(attempts):
        answers = [found[0] for found in sample([problems[k].prompt for k in going], 1)]
        for k, answer in zip(going, answers):
            rounds[k].append({"answer": answer, "critique": None})
        if right is not None:
            good = right([problems[k] for k in going], answers)
            going = [k for k, stop in zip(going, good) if not stop]
        if not going:
            break
    return rounds


def _needed(task):
    if task.critique is None:
        raise MinipostError(f"the task {task.name} has no form for a critique (no `critique` and "
                            "`revise`); arithmetic has one")


def solve(problems, tools, cfg):
    """The last answer of each problem's rounds: (answers, workings)."""
    _needed(tools.task)
    rounds = refine(problems, tools.sample, tools.task, cfg.attempts,
                    tools.right if cfg.checker else None)
    return [found[-1]["answer"] for found in rounds], [{"rounds": found} for found in rounds]


def arms(problems, tools, cfg):
    """Yield the Arms with feedback and without, with a checker and without, and of a vote."""
    _needed(tools.task)
    spent = {}
    ways = {
        "draft": lambda: retry(problems, tools.sample, 1),
        BEFORE: lambda: retry(problems, tools.sample, cfg.attempts),
        AFTER: lambda: refine(problems, tools.sample, tools.task, cfg.attempts),
        "retry, checker": lambda: retry(problems, tools.sample, cfg.attempts, tools.right),
        "self-feedback, checker": lambda: refine(problems, tools.sample, tools.task, cfg.attempts,
                                                 tools.right),
    }
    for name, way in ways.items():
        start, rounds = tools.tokens, way()
        answers, spent[name] = [found[-1]["answer"] for found in rounds], tools.tokens - start
        yield tools.arm(name, problems, answers, [{"rounds": found} for found in rounds], start)
    start, n = tools.tokens, max(1, round(spent[AFTER] / max(1, spent["draft"])))
    drawn = tools.sample([p.prompt for p in problems], n)
    elected = [winner([tools.task.ballot(text) for text in texts])[0] for texts in drawn]
    yield tools.arm(VOTE, problems, [texts[k] for texts, k in zip(drawn, elected)],
                    [{"rounds": [{"answer": text, "critique": None} for text in texts]}
                     for texts in drawn], start)


def show(working):
    """The working as lines."""
    lines = []
    for k, found in enumerate(working["rounds"]):
        lines.append(f"{'revision ' + str(k) if k else 'draft'}: {found['answer'].strip()!r}")
        if found["critique"] is not None:
            lines.append(f"critique: {found['critique'].strip()!r}")
    return lines
