"""Tree of thoughts: propose steps, judge the states they lead to, go on from the best (survey
sec. 5.6; Yao et al. 2023, arxiv.org/abs/2305.10601).

    breadth-first   a level at a time; of all states of a level the `width` (b) best are expanded
    depth-first     the best child first; prune states below `threshold`, backtrack from dead ends
    best-first      the best open state, wherever in the tree it is
    a-star          the open state of the least f = g + h (A*, Hart, Nilsson & Raphael 1968); the
                    cost g of the way is -log of how likely its steps were, or their number, and the
                    heuristic h of the way left is -log worth

A state is expanded by `branching` sampled steps.  Its worth is a number from the model itself.  For
every step, `votes` samples work the step out again.  The worth is the product of the shares that
come to the same, times the share of samples that say that the goal can be reached from here.  No
question is asked twice.  Of several texts that come to the same state only the best is expanded.
The answer is the finished text of the highest worth.  Nothing outside the model is asked before the
answer is given.  Where we differ: the paper's model says of a state whether it is sure, likely or
impossible to reach the goal, proposes several steps in one text, and may keep a state twice.

For A* a step is as likely as the share of the sampled steps that are the same.  So exp(-f) is the
chance of the way times the chance that the goal can be reached from its end.  A goal is a finished
answer of worth 1, so its h is 0.  A* ends when no open state has an f below that of a goal, and
takes the cheapest one.  If h is consistent, nowhere more than the cost of a step and the h behind
it, no goal costs less.  Worths are shares of a few verdicts, so here that is not promised.  A
finished answer that the verdicts doubt ends nothing, whatever its f.  Where no goal is found before
the expansions run out, the answer is of the highest worth, and of equals the cheapest.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from minipost.errors import Bounded
from minipost.measure.results import Arm

TASK, KNOBS = "countdown", {"numbers": 4, "target": 24}
BEFORE, AFTER = "one answer", "breadth-first, b={width}"
EQUAL = "best of n, tokens of b={width}"
SURE = "best of n until sure, tokens of b={width}"
PAIRS = ((EQUAL.format(width=1), "breadth-first, b=1"), (EQUAL, AFTER), (SURE, AFTER),
         (SURE, "a-star"))
Order = Literal["breadth-first", "depth-first", "best-first", "a-star"]


@dataclass(frozen=True)
class Config(Bounded):
    """A search over steps, with worths from the model's own verdicts."""

    strategy: Order = "breadth-first"  # which states are expanded next
    cost: Literal["log-prob", "depth"] = "log-prob"  # what a way costs in A* (g)
    width: int = 5              # states kept at each level of breadth-first search (b)
    branching: int = 16            # steps sampled from a state (k)
    votes: int = 3              # verdicts sampled on a state
    threshold: float = 0.5      # depth-first search prunes states below this worth
    expansions: int = 11        # states that may be expanded, per problem
    depth: int = 8              # steps of an answer, at most


@dataclass
class Node:
    """A beginning of an answer.  `parent` is an index into the tree, None at the root."""

    text: str
    state: str
    parent: int | None
    depth: int
    worth: float = 0.0
    cost: float = 0.0           # g, by --cost; likely is what many of the samples share
    open: bool = True           # may be expanded: neither finished, nor expanded, nor pruned
    finished: bool = False
    expanded: bool = False


def search(prompts, propose, value, *, mark, strategy, width, branching, threshold=0.0,
           cost="log-prob", expansions=None, depth=8, state=lambda k, text: text, enough=None):
    """A tree for each prompt: a list of Nodes in the order they were found, the root first.

    propose(texts, n) -> n one-step continuations of each text; one without `mark` ends the answer.
    value(states) -> a number for each (k, text): the beginning `text` of an answer to prompt k.
    state(k, text) -> a name that beginnings of prompt k share if they come to the same state.
    expansions: how many nodes may be expanded for a prompt, None for no bound.
    cost: what the way to a node costs, as in Config.
    enough: all but breadth-first search stop at a finished answer of this worth; None: never.  A*
    goes on while an open state is below it.
    """
    trees = [[Node("", state(k, ""), None, 0)] for k in range(len(prompts))]
    gone = [set() for _ in prompts]                         # states that have been expanded
    left = [float("inf") if expansions is None else expansions for _ in prompts]
    orders: dict[str, Callable] = {"breadth-first": _level, "depth-first": _deepest,
                                   "best-first": _best, "a-star": _least}
    choose = orders[strategy]
    while True:
        picked = []
        for k, tree in enumerate(trees):
            picks = choose(tree, gone[k], width)
            done = [n for n in tree if n.finished and enough is not None and n.worth >= enough]
            if strategy == "a-star":
                done = [n for n in done if all(f(n) <= f(tree[i]) for i in picks)]
            if strategy == "breadth-first" or not done:
                picked += [(k, i) for i in picks[: int(min(left[k], len(picks)))]]
        if not picked:
            return trees
        for k, i in picked:
            left[k] -= 1
            gone[k].add(trees[k][i].state)
            trees[k][i].open, trees[k][i].expanded = False, True
        fresh = []
        proposed = propose([prompts[k] + trees[k][i].text for k, i in picked], branching)
        for (k, i), nexts in zip(picked, proposed, strict=True):
            for more in dict.fromkeys(nexts):
                text, finished, level = (trees[k][i].text + more, mark not in more,
                                         trees[k][i].depth + 1)
                paid = 1 if cost == "depth" else -math.log(nexts.count(more) / len(nexts))
                trees[k].append(Node(text, state(k, text), i, level, cost=trees[k][i].cost + paid,
                                     finished=finished, open=not finished and level < depth))
                fresh.append((k, trees[k][-1]))
        for (k, node), worth in zip(fresh, value([(k, node.text) for k, node in fresh]),
                                    strict=True):
            node.worth = worth
            if strategy == "depth-first" and worth < threshold:
                node.open = False


def _level(tree, gone, width):
    """The open ones of the `width` best states of the deepest level; all others are left behind."""
    last = max(node.depth for node in tree)
    found = {}
    for i in sorted((i for i, node in enumerate(tree) if node.depth == last),
                    key=lambda i: -tree[i].worth):
        found.setdefault((tree[i].finished, tree[i].state), i)
    return [i for i in list(found.values())[:width] if tree[i].open]


def _deepest(tree, gone, width):
    """The best open state of the deepest level that has one."""
    found = [i for i, node in enumerate(tree) if node.open and node.state not in gone]
    return sorted(found, key=lambda i: (-tree[i].depth, -tree[i].worth))[:1]


def _best(tree, gone, width):
    """The best open state; of equals the deepest."""
    found = [i for i, node in enumerate(tree) if node.open and node.state not in gone]
    return sorted(found, key=lambda i: (-tree[i].worth, -tree[i].depth))[:1]


def f(node):
    """f = g + h of A*: the cost of the way to a node, and -log worth for the way left."""
    return node.cost - math.log(node.worth) if node.worth > 0 else math.inf


def _least(tree, gone, width):
    """The open state of the least f; of equals the deepest."""
    found = [i for i, node in enumerate(tree) if node.open and node.state not in gone]
    return sorted(found, key=lambda i: (f(tree[i]), -tree[i].depth))[:1]


def answers(tree, strategy=""):
    """The finished texts, the best first; of a tree without any, its beginnings.

    Of equals the deepest is before the others, in A* the cheapest.
    """
    found = [node for node in tree if node.finished] or tree
    return [node.text for node in sorted(found, key=lambda node: (
        -node.worth, node.cost if strategy == "a-star" else -node.depth))]


def grow(problems, tools, cfg, **changes):
    """The trees of the search that cfg describes, with these changes."""
    given = {**vars(cfg), **changes}
    votes, known, found = given.pop("votes"), {}, {}
    if tools.task.state is not None:
        found["state"] = lambda k, text: tools.task.state(problems[k], text)
    return search([p.prompt for p in problems], tools.step,
                  lambda states: tools.worth([(problems[k], text) for k, text in states], votes,
                                             known),
                  mark=tools.mark, enough=1.0, **found, **given)


def solve(problems, tools, cfg):
    """The best answer of each problem's tree: (answers, workings)."""
    trees = grow(problems, tools, cfg)
    return [answers(tree, cfg.strategy)[0] for tree in trees], [{"tree": [vars(n) for n in tree]}
                                                  for tree in trees]


def arms(problems, tools, cfg):
    """Yield the Arms of one answer, of the strategies, and of sampling whole answers.

    Whole answers are sampled for as many tokens as a narrow and the wide search took: as many to
    every problem, since breadth-first search does not stop before its last level either; and only
    to those without an answer of worth 1, as the other orders stop at one.
    """
    spent, start = {}, tools.tokens
    first = [text for text, in tools.sample([p.prompt for p in problems], 1)]
    yield tools.arm(BEFORE, problems, first, [{"tree": [vars(Node(text, "", None, 1,
                                                                  finished=True))]}
                                              for text in first], start)
    ways = {f"breadth-first, b={b}": ("breadth-first", b) for b in (1, cfg.width)}
    ways |= {name: (name, cfg.width) for name in ("depth-first", "best-first")}
    for name, (strategy, width) in ways.items():
        start = tools.tokens
        trees = grow(problems, tools, cfg, strategy=strategy, width=width)
        spent[name] = tools.tokens - start
        workings = [{"tree": [vars(node) for node in tree]} for tree in trees]
        yield from ranked(name, problems, [answers(tree) for tree in trees], workings, tools, start)
    yield from sampled(problems, tools, cfg.votes, {
        EQUAL.format(width=b): spent[f"breadth-first, b={b}"] for b in (1, cfg.width)})
    start, trees = tools.tokens, grow(problems, tools, cfg, strategy="a-star")
    yield from ranked("a-star", problems, [answers(tree, "a-star") for tree in trees],
                      [{"tree": [vars(node) for node in tree]} for tree in trees], tools, start)
    yield from sampled(problems, tools, cfg.votes, {
        SURE.format(width=cfg.width): spent[f"breadth-first, b={cfg.width}"]}, sure=1.0)


def sampled(problems, tools, votes, budgets, sure=math.inf):
    """Yield the Arms of whole answers, drawn and judged until they have cost each of the budgets.

    budgets: {name: tokens}, the smaller first.  sure: a problem with an answer of this worth has no
    further ones.
    """
    start, known, found = tools.tokens, {}, [[] for _ in problems]
    for name, budget in budgets.items():
        while tools.tokens - start < budget:
            going = [k for k, mine in enumerate(found) if not mine or max(mine)[0] < sure]
            if not going:
                break
            asked = [problems[k] for k in going]
            drawn = [text for text, in tools.sample([p.prompt for p in asked], 1)]
            worths = tools.worth(list(zip(asked, drawn)), votes, known)
            for k, worth, text in zip(going, worths, drawn):
                found[k].append((worth, text))
        found = [sorted(mine, key=lambda found: -found[0]) for mine in found]
        texts = [[text for _, text in mine] for mine in found]
        trees = [{"tree": [vars(Node(text, "", None, 1, worth, finished=True))
                           for worth, text in mine]} for mine in found]
        yield from ranked(name, problems, texts, trees, tools, start)


def ranked(name, problems, texts, workings, tools, since):
    """The Arms of each problem's best text and of any of its five best."""
    first = [mine[0] for mine in texts]
    yield tools.arm(name, problems, first, workings, since)
    yield Arm.of(f"{name}, any of 5", tools.tokens - since, any_of(problems, texts, tools, 5),
                 first, workings)


def any_of(problems, texts, tools, count):
    """1.0 where one of the first `count` texts of a problem is right."""
    rows = [(k, text) for k, mine in enumerate(texts) for text in mine[:count]]
    right = tools.right([problems[k] for k, _ in rows], [text for _, text in rows])
    found = [0.0] * len(problems)
    for (k, _), good in zip(rows, right):
        found[k] = max(found[k], good)
    return found


def show(working):
    """The tree as lines: each node's worth and last step; dots mark what was not expanded."""
    tree, lines = working["tree"], []

    def walk(i, indent):
        node = tree[i]
        if node["parent"] is not None:
            step = node["text"][len(tree[node["parent"]]["text"]):].strip().replace("\n", "; ")
            sign = "=" if node["finished"] else "+" if node["expanded"] else "."
            lines.append(f"{'  ' * indent}{sign} {node['worth']:.2f}  {step}")
        for j, child in enumerate(tree):
            if child["parent"] == i:
                walk(j, indent + (node["parent"] is not None))

    for i, node in enumerate(tree):
        if node["parent"] is None:
            if node["text"]:
                lines.append(f"= {node['worth']:.2f}  {node['text'].strip()!r}")
            walk(i, 0)
    return lines
