"""Graph of thoughts: split a problem, solve the parts, put the answers together (survey sec. 5.7;
Besta et al. 2023, arxiv.org/abs/2308.09687).

A tree only branches.  In a graph a thought may have several parents.  The graph here has the form
of those with which the paper sorts and counts:

    split       the task cuts the problem into parts
    generate    `group_size` thoughts on every part
    keep        the one that most of them agree on
    refine      the kept thought, by the model's own critique of it and a revision by that, up to
                `refine` times or until the critique approves; a revision without an answer does not
                count
    aggregate   a new problem made of the kept answers; repeat from `generate` until nothing is left
                to cut

The task provides the split, the forms of the aggregate, the critique and the revision.  The model
solves parts and aggregates, and refines them.  In the paper a thought is refined in place, a loop
in the graph.  Here what comes of it is a thought of its own, whose parent is the first.  With
checkpoints/thinker that spoils what a vote got right; it learnt to criticise sums of single digits
only.  Where we differ besides: in the paper's sorting a model splits, a program counts the errors
of thoughts and the ones with the fewest are kept; aggregates are refined, in one of its two
programs only the last; and a thought stands beside its refinements when the best is kept.  Here a
revision takes its place.
"""

from dataclasses import dataclass, replace

from minipost.errors import Bounded, MinipostError
from minipost.measure.stats import vote

TASK, KNOBS = "arithmetic", {"terms": 20}
BEFORE, AFTER = "vote of as many chains", "graph"
REFINED, MORE = "graph, refined", "graph, more thoughts"
PAIRS = ((AFTER, REFINED), (MORE, REFINED))


@dataclass(frozen=True)
class Config(Bounded):
    """Parts solved one by one, and aggregated."""

    size: int = 4               # terms of a part, at most
    group_size: int = 5             # thoughts on every part and aggregate
    refine: int = 0             # critiques, and revisions, of a kept thought at most; 0: none

    LIMITS = {"size": ">= 2", "refine": ">= 0, <= 10000"}


def keep(texts, parse):
    """(answer, text) with most votes, the first of equals; (None, first) without any answer."""
    answers = [parse(text) for text in texts]
    winner = next((answer for answer, _ in vote(answers)), None)
    return winner, texts[0 if winner is None else answers.index(winner)]


def search(problems, sample, task, size, group_size, refine=0):
    """A list of thoughts for each problem; the last answers the problem itself if all went well.

    sample(texts, n) -> n answers to each text.  A thought is {"prompt", "text", "answer", "of"};
    `of` lists the places of the thoughts that it aggregates, or of the one that it refines.  Where
    a kept thought states no answer, the problem's graph ends with it.
    """
    graphs = [[] for _ in problems]
    asked = []                                              # (problem, its next thought, sign, of)
    for k, problem in enumerate(problems):
        parts, signs = task.parts(problem, size)
        asked += [(k, part, sign, []) for part, sign in zip(parts, signs, strict=True)]
    while asked:
        found = sample([thought.prompt for _, thought, _, _ in asked], group_size)
        made = []                                           # (problem, its part, sign, place)
        for (k, thought, sign, of), texts in zip(asked, found, strict=True):
            answer, text = keep(texts, task.parse)
            made.append((k, thought, sign, len(graphs[k])))
            graphs[k].append({"prompt": thought.prompt, "text": text, "answer": answer, "of": of})
        places = refined(graphs, [(k, thought, place) for k, thought, _, place in made], sample,
                         task, refine)
        fresh = {}                                          # problem: [(place, sign)] of new ones
        for (k, _, sign, _), place in zip(made, places, strict=True):
            fresh.setdefault(k, []).append((place, sign))
        asked = []
        for k, new in fresh.items():
            answers = [graphs[k][place]["answer"] for place, _ in new]
            if None in answers:
                to_end(graphs[k], new[answers.index(None)][0])
            elif len(new) > 1:
                for thought, sign, of in task.joined(answers, [sign for _, sign in new], size):
                    asked.append((k, thought, sign, [new[j][0] for j in of]))
    return graphs


def to_end(graph, place):
    """Move a thought that no other names to the end.  `of` still names the same thoughts."""
    graph.append(graph.pop(place))
    for thought in graph:
        thought["of"] = [k - (k > place) for k in thought["of"]]


def refined(graphs, made, sample, task, rounds):
    """Refine thoughts: the place of each one's last revision, or its own.

    made: (problem, its part, place of the thought).  Revisions are added to the graphs.
    """
    places = [place for _, _, place in made]
    going = [j for j, (k, _, place) in enumerate(made) if graphs[k][place]["answer"] is not None]
    for _ in range(rounds):
        if not going:
            break
        drafts = [graphs[made[j][0]][places[j]]["text"] for j in going]
        critiques = sample([task.critique(made[j][1], draft) for j, draft in zip(going, drafts)], 1)
        faulty = [(j, task.revise(made[j][1], draft, critique))
                  for j, draft, (critique,) in zip(going, drafts, critiques, strict=True)
                  if not task.approves(critique)]
        going = []
        for (j, asked), (text,) in zip(faulty, sample([asked for _, asked in faulty], 1)):
            if (answer := task.parse(text)) is not None:
                graph = graphs[made[j][0]]
                graph.append({"prompt": asked, "text": text, "answer": answer, "of": [places[j]]})
                places[j] = len(graph) - 1
                going.append(j)
    return places


def solve(problems, tools, cfg):
    """The last thought of each problem's graph: (answers, workings)."""
    if tools.task.parts is None:
        raise MinipostError(f"the task {tools.task.name} cannot be cut into parts (it has no "
                            "`parts` and `joined`); arithmetic can")
    if cfg.refine and tools.task.critique is None:
        raise MinipostError(f"the task {tools.task.name} has no form for a critique (no `critique` "
                            "and `revise`); leave out --refine")
    graphs = search(problems, tools.sample, tools.task, cfg.size, cfg.group_size, cfg.refine)
    return [graph[-1]["text"] for graph in graphs], [{"thoughts": graph} for graph in graphs]


def arms(problems, tools, cfg):
    """Yield the Arms: one chain, the graph, and a vote of whole chains.

    Chains are drawn for the vote until they have cost as many tokens as the graph.  Where the task
    has critiques, the graph with refined thoughts follows, and the one without them whose thoughts
    are as many more as make up for what refining costs.
    """
    prompts, start = [p.prompt for p in problems], tools.tokens
    first = [texts[0] for texts in tools.sample(prompts, 1)]
    yield tools.arm("1 sample", problems, first, [{"thoughts": []} for _ in first], start)
    start = tools.tokens
    answers, workings = solve(problems, tools, replace(cfg, refine=0))
    budget = tools.tokens - start
    yield tools.arm(AFTER, problems, answers, workings, start)
    start, drawn = tools.tokens, [[] for _ in problems]
    while tools.tokens - start < budget:
        for mine, (more,) in zip(drawn, tools.sample(prompts, 1)):
            mine.append(more)
    kept = [keep(mine, tools.task.parse) for mine in drawn]
    answers = [text for _, text in kept]
    yield tools.arm(BEFORE, problems, answers, [{"thoughts": []} for _ in answers], start)
    if tools.task.critique is None:
        return
    start = tools.tokens
    answers, workings = solve(problems, tools, replace(cfg, refine=max(1, cfg.refine)))
    more = round(cfg.group_size * (tools.tokens - start) / budget)
    yield tools.arm(REFINED, problems, answers, workings, start)
    start = tools.tokens
    answers, workings = solve(problems, tools, replace(cfg, group_size=more, refine=0))
    yield tools.arm(MORE, problems, answers, workings, start)


def show(working):
    """The thoughts as lines, each with the places of those that it aggregates."""
    lines = []
    for place, found in enumerate(working["thoughts"]):
        of = f" of {', '.join(map(str, found['of']))}" if found["of"] else ""
        asked, text = (found[name].strip().replace("\n", "; ") for name in ("prompt", "text"))
        lines.append(f"{place}{of}: {asked}  {text}")
    return lines
