"""Graph of thoughts: split a problem, solve the parts, put the answers together (survey sec. 5.7;
Besta et al. 2023, arxiv.org/abs/2308.09687).

A tree only branches.  In a graph a thought may have several parents.  The graph here is the one
with which the paper sorts and counts:

    split       the task cuts the problem into parts
    generate    `group_size` thoughts on every part
    keep        the one that most of them agree on
    aggregate   a new problem made of the kept answers; repeat from `generate` until nothing is left
                to cut

The task provides the split and the form of the aggregate.  The model solves parts and aggregates.
"""

from dataclasses import dataclass

from minipost.errors import Bounded, MinipostError
from minipost.measure.stats import vote

TASK, KNOBS = "arithmetic", {"terms": 20}
BEFORE, AFTER = "vote of as many chains", "graph"


@dataclass(frozen=True)
class Config(Bounded):
    """Parts solved one by one, and aggregated."""

    size: int = 4               # terms of a part, at most
    group_size: int = 5             # thoughts on every part and aggregate

    LIMITS = {"size": ">= 2"}


def keep(texts, parse):
    """(answer, text) with most votes, the first of equals; (None, first) without any answer."""
    answers = [parse(text) for text in texts]
    winner = next((answer for answer, _ in vote(answers)), None)
    return winner, texts[0 if winner is None else answers.index(winner)]


def search(problems, sample, task, size, group_size):
    """A list of thoughts for each problem; the last answers the problem itself if all went well.

    sample(texts, n) -> n answers to each text.  A thought is {"prompt", "text", "answer", "of"};
    `of` lists the places of the thoughts that it aggregates.  Where a kept thought states no
    answer, the problem's graph ends with it.
    """
    graphs = [[] for _ in problems]
    asked = []                                              # (problem, its next thought, sign, of)
    for k, problem in enumerate(problems):
        parts, signs = task.parts(problem, size)
        asked += [(k, part, sign, []) for part, sign in zip(parts, signs, strict=True)]
    while asked:
        found = sample([thought.prompt for _, thought, _, _ in asked], group_size)
        fresh = {}                                          # problem: [(place, sign)] of new ones
        for (k, thought, sign, of), texts in zip(asked, found, strict=True):
            answer, text = keep(texts, task.parse)
            fresh.setdefault(k, []).append((len(graphs[k]), sign))
            graphs[k].append({"prompt": thought.prompt, "text": text, "answer": answer, "of": of})
        asked = []
        for k, new in fresh.items():
            answers = [graphs[k][place]["answer"] for place, _ in new]
            if None in answers:
                graphs[k].append(graphs[k].pop(new[answers.index(None)][0]))
            elif len(new) > 1:
                for thought, sign, of in task.joined(answers, [sign for _, sign in new], size):
                    asked.append((k, thought, sign, [new[j][0] for j in of]))
    return graphs


def solve(problems, tools, cfg):
    """The last thought of each problem's graph: (answers, workings)."""
    if tools.task.parts is None:
        raise MinipostError(f"the task {tools.task.name} cannot be cut into parts (it has no "
                            "`parts` and `joined`); arithmetic can")
    graphs = search(problems, tools.sample, tools.task, cfg.size, cfg.group_size)
    return [graph[-1]["text"] for graph in graphs], [{"thoughts": graph} for graph in graphs]


def arms(problems, tools, cfg):
    """Yield the Arms: one chain, the graph, and a vote of whole chains.

    Chains are drawn for the vote until they have cost as many tokens as the graph.
    """
    prompts, start = [p.prompt for p in problems], tools.tokens
    first = [texts[0] for texts in tools.sample(prompts, 1)]
    yield tools.arm("1 sample", problems, first, [{"thoughts": []} for _ in first], start)
    start = tools.tokens
    answers, workings = solve(problems, tools, cfg)
    budget = tools.tokens - start
    yield tools.arm(AFTER, problems, answers, workings, start)
    start, drawn = tools.tokens, [[] for _ in problems]
    while tools.tokens - start < budget:
        for mine, (more,) in zip(drawn, tools.sample(prompts, 1)):
            mine.append(more)
    kept = [keep(mine, tools.task.parse) for mine in drawn]
    answers = [text for _, text in kept]
    yield tools.arm(BEFORE, problems, answers, [{"thoughts": []} for _ in answers], start)


def show(working):
    """The thoughts as lines, each with the places of those that it aggregates."""
    lines = []
    for place, found in enumerate(working["thoughts"]):
        of = f" of {', '.join(map(str, found['of']))}" if found["of"] else ""
        text = found["text"].strip().replace("\n", "; ")
        lines.append(f"{place}{of}: {found['prompt'].strip()}  {text}")
    return lines
