"""Monte Carlo tree search over steps (survey sec. 5.11; Kocsis & Szepesvari 2006; the rule of
AlphaGo Zero, Silver et al. 2017, doi.org/10.1038/nature24270).

A simulation selects, expands, evaluates and backs up:

    select      from the root on, the child a of the highest  Q_a + c P_a sqrt(N) / (1 + N_a)
    expand      the leaf it ends at, by `branching` sampled steps; P_a is the share that are a
    evaluate    the leaf, by the model's own verdicts on its steps and on whether the goal can be
                reached, as in tree of thoughts
    back up     N <- N + 1, W <- W + worth on the way to the root; Q = W / N, 0 where N = 0

After `simulations` of them the search moves to the most visited child.  It goes on from there with
what it knows, until it stands at a finished answer.  So the visits of a node's children add up to
its own less one, the visit that expanded it.  In AlphaGo Zero N is the sum over the children: at a
first choice the term of P is 0 there, and here P decides.
"""

import math
from dataclasses import dataclass, field

from minipost.errors import Bounded

TASK, KNOBS = "countdown", {"numbers": 4, "target": 24}
BEFORE, AFTER = "1 sample", "mcts"


@dataclass(frozen=True)
class Config(Bounded):
    """A search by visits, with worths from the model's own verdicts."""

    simulations: int = 24       # simulations before each step of the answer
    branching: int = 16            # steps sampled to expand a node (k)
    votes: int = 3              # verdicts sampled on a node
    c: float = 1.0              # how much a prior counts beside a value
    depth: int = 8              # steps of an answer, at most


@dataclass
class Node:
    """A beginning of an answer with its visits N, the sum of their worths W and its prior P."""

    text: str
    finished: bool = False
    prior: float = 1.0
    visits: int = 0
    total: float = 0.0
    worth: float | None = None  # what the verdicts said, once they were asked
    children: list = field(default_factory=list)

    @property
    def q(self):
        return self.total / self.visits if self.visits else 0.0


def select(node, c):
    """The way from a node to the leaf that the next simulation visits, both included."""
    way = [node]
    while way[-1].children:
        here = way[-1]
        root = math.sqrt(here.visits)
        way.append(max(here.children, key=lambda n: n.q + c * n.prior * root / (1 + n.visits)))
    return way


def search(prompts, propose, value, *, mark, simulations, branching, c, depth):
    """An answer to each prompt, and the root of its tree: [(text, Node)].

    propose and value as in tree of thoughts: propose(texts, n) continues by one step, value(states)
    gives a worth within 0..1 to each (k, text).
    """
    ways = [[Node("")] for _ in prompts]                    # from the root to the answer so far
    while live := [k for k, way in enumerate(ways)
                   if not way[-1].finished and len(way) <= depth]:
        for _ in range(simulations):
            found = {k: ways[k][:-1] + select(ways[k][-1], c) for k in live}
            leaves = [(k, way[-1]) for k, way in found.items() if way[-1].worth is None]
            grown = [(k, leaf) for k, leaf in leaves if not leaf.finished]
            proposed = propose([prompts[k] + leaf.text for k, leaf in grown], branching)
            for (k, leaf), nexts in zip(grown, proposed, strict=True):
                leaf.children = [
                    Node(leaf.text + more, mark not in more, nexts.count(more) / branching)
                    for more in dict.fromkeys(nexts)]
            worths = value([(k, leaf.text) for k, leaf in leaves])
            for (k, leaf), worth in zip(leaves, worths, strict=True):
                leaf.worth = worth
            for way in found.values():
                worth = way[-1].worth
                for node in way:
                    node.visits, node.total = node.visits + 1, node.total + worth
        for k in live:
            ways[k].append(max(ways[k][-1].children, key=lambda n: (n.visits, n.q, n.prior)))
    return [(way[-1].text, way[0]) for way in ways]


def solve(problems, tools, cfg):
    """The answer that each problem's search comes to: (answers, workings)."""
    options, known = {name: setting for name, setting in vars(cfg).items() if name != "votes"}, {}
    found = search([p.prompt for p in problems], tools.step,
                   lambda states: tools.worth([(problems[k], text) for k, text in states],
                                              cfg.votes, known),
                   mark=tools.mark, **options)
    return [text for text, _ in found], [{"answer": text, "tree": data(root)}
                                         for text, root in found]


def data(node):
    """A node and all below it that were visited, as plain data."""
    return {"text": node.text, "visits": node.visits, "q": node.q, "prior": node.prior,
            "children": [data(child) for child in node.children if child.visits]}


def arms(problems, tools, cfg):
    """Yield the Arms of one sample and of the search."""
    start = tools.tokens
    answers = [texts[0] for texts in tools.sample([p.prompt for p in problems], 1)]
    yield tools.arm(BEFORE, problems, answers,
                    [{"answer": text, "tree": data(Node(text))} for text in answers], start)
    start = tools.tokens
    yield tools.arm(AFTER, problems, *solve(problems, tools, cfg), start)


def show(working):
    """The visited tree as lines: visits, value, step."""
    lines = []

    def walk(node, parent, indent):
        step = node["text"][len(parent):].strip().replace("\n", "; ")
        lines.append(f"{'  ' * indent}{node['visits']:4d} visits  {node['q']:.2f}  {step}".rstrip())
        for child in sorted(node["children"], key=lambda child: -child["visits"]):
            walk(child, node["text"], indent + 1)

    walk(working["tree"], "", 0)
    return [*lines, f"answer: {working['answer'].strip()!r}"]
