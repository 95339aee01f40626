"""Monte Carlo tree search with roll-outs (survey sec. 5.11; UCT, Kocsis & Szepesvari 2006,
doi.org/10.1007/11871842_29).

A simulation selects, expands, rolls out and backs up:

    select      from the root on, the child a of the highest  Q_a + c sqrt(2 log N / N_a); a child
                that was never visited comes first
    expand      the leaf it ends at, if it was visited before or is the root, by `branching` sampled
                steps; it goes on to the first of them, in the order in which they were sampled
    roll out    the model writes the answer to its end, `rollouts` times; what these are worth on
                average is what the leaf is worth
    back up     N <- N + 1, W <- W + worth on the way to the root; Q = W / N

A whole answer is worth what the model's own verdicts on its steps say, as in tree of thoughts.  The
answer is the best that was written in any roll-out.  A search ends with an answer that no verdict
doubts, or after `simulations`.

With rollouts 0 there are none: the verdicts judge the leaf itself, whether the goal is in reach
among them.  That is the value form, with the same tree and the same rule.  mcts.py has it with
priors.  The paper returns the action with the highest mean; here what was found stays found.  UCB1,
for worths between 0 and 1, has c = 1; ours is smaller.

In the Game of 24 nearly all roll-outs are worth 0 until one is worth 1, and then the search is
over.  So visits have little to go by, and as many tokens of whole answers do better.
"""

import math
from dataclasses import dataclass, field

from minipost.errors import Bounded

TASK, KNOBS = "countdown", {"numbers": 4, "target": 24}
BEFORE, AFTER = "best of n, tokens of uct", "uct"
PAIRS = (("uct, values", "uct"),)
N = 100


@dataclass(frozen=True)
class Config(Bounded):
    """A search by visits, with worths from whole answers."""

    simulations: int = 64       # simulations of a search, at most
    branching: int = 16            # steps sampled to expand a node (k)
    rollouts: int = 1           # answers written from a leaf; 0: verdicts judge the leaf instead
    votes: int = 3              # verdicts sampled on an answer
    c: float = 0.2              # how much a rarely visited child is preferred
    depth: int = 8              # steps of an answer in the tree, at most

    LIMITS = {"rollouts": ">= 0, <= 10000"}


@dataclass
class Node:
    """A beginning of an answer with its visits N and the sum of their worths W."""

    text: str
    finished: bool = False
    depth: int = 0
    visits: int = 0
    total: float = 0.0
    children: list = field(default_factory=list)

    @property
    def q(self):
        return self.total / self.visits if self.visits else 0.0


def select(root, c):
    """The way from the root to the leaf that the next simulation visits, both included."""
    way = [root]
    while way[-1].children:
        spread = 2 * math.log(way[-1].visits)
        way.append(max(way[-1].children, key=lambda n: n.q + c * math.sqrt(spread / n.visits)
                       if n.visits else math.inf))
    return way


def search(prompts, propose, complete, value, *, mark, simulations, branching, rollouts, c, depth):
    """For each prompt ([(worth, answer)], root): the answers found, the best first.

    propose(texts, n) -> n one-step continuations of each text; one without `mark` ends the answer.
    complete(texts, n) -> n continuations of each text to the end of the answer.
    value(states) -> a worth within 0..1 for each (k, text).
    """
    roots, found = [Node("") for _ in prompts], [{} for _ in prompts]
    for _ in range(simulations):
        ways = {k: select(root, c) for k, root in enumerate(roots)
                if max(found[k].values(), default=0.0) < 1.0}
        if not ways:
            break
        grown = [k for k, way in ways.items() if not way[-1].finished and way[-1].depth < depth
                 and (way[-1].visits or len(way) == 1)]
        for k, nexts in zip(grown, propose([prompts[k] + ways[k][-1].text for k in grown],
                                           branching), strict=True):
            leaf = ways[k][-1]
            leaf.children = [Node(leaf.text + more, mark not in more, leaf.depth + 1)
                             for more in dict.fromkeys(nexts)]
            ways[k].append(leaf.children[0])
        ends = {k: [way[-1].text] for k, way in ways.items()}
        rolled = [k for k, way in ways.items() if rollouts and not way[-1].finished]
        for k, nexts in zip(rolled, complete([prompts[k] + ends[k][0] for k in rolled],
                                             max(1, rollouts)), strict=True):
            ends[k] = [ends[k][0] + more for more in nexts]
        rows = [(k, text) for k, texts in ends.items() for text in texts]
        worths = {k: [] for k in ways}
        for (k, text), worth in zip(rows, value(rows), strict=True):
            worths[k].append(worth)
            if rollouts or ways[k][-1].finished:
                found[k].setdefault(text, worth)
        for k, way in ways.items():
            for node in way:
                node.visits += 1
                node.total += sum(worths[k]) / len(worths[k])
    return [(sorted(((worth, text) for text, worth in mine.items()), key=lambda each: -each[0]),
             root) for mine, root in zip(found, roots)]


def solve(problems, tools, cfg):
    """The best answer of each problem's search: (answers, workings).

    Where no answer was finished, it is the most visited beginning.
    """
    options, known = {name: setting for name, setting in vars(cfg).items() if name != "votes"}, {}
    found = search([p.prompt for p in problems], tools.step, tools.sample,
                   lambda states: tools.worth([(problems[k], text) for k, text in states],
                                              cfg.votes, known),
                   mark=tools.mark, **options)
    answers = [mine[0][1] if mine else visited(root) for mine, root in found]
    return answers, [{"answer": text, "tree": data(root), "answers": len(mine)}
                     for text, (mine, root) in zip(answers, found)]


def visited(node):
    """The text that the most visited children lead to."""
    while node.children:
        node = max(node.children, key=lambda child: child.visits)
    return node.text


def data(node):
    """A node and all below it that were visited, as plain data."""
    return {"text": node.text, "visits": node.visits, "q": node.q,
            "children": [data(child) for child in node.children if child.visits]}


def arms(problems, tools, cfg):
    """Yield the Arms of one sample, of both forms of the search, and of sampling whole answers.

    Whole answers are drawn and judged in the same way, to each problem until no verdict doubts one,
    and for as many tokens as the search with roll-outs took.
    """
    start, spent = tools.tokens, 0
    first = [text for text, in tools.sample([p.prompt for p in problems], 1)]
    yield tools.arm("1 sample", problems, first, [working(text, 1) for text in first], start)
    for name, rollouts in ((AFTER, max(1, cfg.rollouts)), ("uct, values", 0)):
        start = tools.tokens
        answers, workings = solve(problems, tools, Config(**{**vars(cfg), "rollouts": rollouts}))
        spent = spent or tools.tokens - start
        yield tools.arm(name, problems, answers, workings, start)
    start, known, drawn = tools.tokens, {}, [[] for _ in problems]
    while tools.tokens - start < spent:
        going = [k for k, mine in enumerate(drawn) if max(mine, default=(0.0, ""))[0] < 1.0]
        if not going:
            break
        texts = [text for text, in tools.sample([problems[k].prompt for k in going], 1)]
        worths = tools.worth([(problems[k], text) for k, text in zip(going, texts)], cfg.votes,
                             known)
        for k, worth, text in zip(going, worths, texts, strict=True):
            drawn[k].append((worth, text))
    answers = [max(mine, key=lambda each: each[0])[1] for mine in drawn]
    yield tools.arm(BEFORE, problems, answers,
                    [working(text, len(mine)) for text, mine in zip(answers, drawn)], start)


def working(text, count):
    """The working of an answer without a tree."""
    return {"answer": text, "tree": data(Node(text)), "answers": count}


def show(working):
    """The visited tree as lines: visits, value, step; then the answer."""
    lines = []

    def walk(node, parent, indent):
        step = node["text"][len(parent):].strip().replace("\n", "; ")
        lines.append(f"{'  ' * indent}{node['visits']:4d} visits  {node['q']:.2f}  {step}".rstrip())
        for child in sorted(node["children"], key=lambda child: -child["visits"]):
            walk(child, node["text"], indent + 1)

    walk(working["tree"], "", 0)
    return [*lines, f"best of {working['answers']} answers: {working['answer'].strip()!r}"]
