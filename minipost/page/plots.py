"""Charts as numbers and path strings; the template draws them.  Nothing here is markup."""

import math
from dataclasses import dataclass

WIDTH, HEIGHT = 420, 200
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 26
POINTS = 60     # of a line, at most; each stands for the mean of the steps between
ROWS = 12       # of the table under a chart
COLOURS = 8


@dataclass
class Line:
    """A line of a chart, with the least and the most that each of its points stands for."""

    label: str
    colour: int
    points: list  # (x, mean, low, high)


def merged(runs, metric):
    """(x, mean, low, high) of a metric over several runs' lines, of the seeds that have it."""
    found = {}
    for lines in runs:
        for line in lines:
            y = line.get(metric)
            if y is not None and math.isfinite(y):
                found.setdefault(line["step"], []).append(y)
    points = [(x, sum(ys) / len(ys), min(ys), max(ys)) for x, ys in sorted(found.items())]
    if len(points) <= POINTS:
        return points
    size = len(points) / POINTS
    cut = [points[round(k * size):round((k + 1) * size)] for k in range(POINTS)]
    return [(some[-1][0] if k == POINTS - 1 else some[len(some) // 2][0],
             sum(p[1] for p in some) / len(some), min(p[2] for p in some), max(p[3] for p in some))
            for k, some in enumerate(cut)]


def ticks(low, high, count=4):
    """Round numbers within low..high, about so many."""
    rough = (high - low) / count or 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def number(x):
    """A number as people write it: three digits, thousands with commas."""
    if x is None:
        return ""
    if x == 0:
        return "0"
    if abs(x) >= 1000:
        return f"{x:,.0f}"
    return f"{x:.3g}".replace("e-0", "e-")


def chart(lines):
    """What the template draws of some Lines: paths, ticks, places of labels, rows of a table."""
    lines = [line for line in lines if line.points]
    if not lines:
        return None
    xs = [p[0] for line in lines for p in line.points]
    low = min(p[2] for line in lines for p in line.points)
    high = max(p[3] for line in lines for p in line.points)
    if low == high == 0:
        high = 1.0
    elif high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - abs(low) * 0.1, high + abs(high) * 0.1
    room = (high - low) * 0.06
    low, high = (0.0 if 0 <= low < (high - low) * 0.3 else low - room), high + room
    left, right = min(xs), max(max(xs), min(xs) + 1)
    margin = RIGHT if len(lines) == 1 else 14 + 6.2 * max(len(line.label[:16]) for line in lines)

    def at_x(x):
        return round(LEFT + (x - left) / (right - left) * (WIDTH - LEFT - margin), 1)

    def at_y(y):
        return round(HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    drawn = []
    for line in lines:
        path = " ".join(f"{'L' if k else 'M'}{at_x(x)} {at_y(y)}"
                        for k, (x, y, _, _) in enumerate(line.points))
        band = ""
        if any(b > a for _, _, a, b in line.points):
            band = "M" + " L".join(
                [f"{at_x(x)} {at_y(b)}" for x, _, _, b in line.points]
                + [f"{at_x(x)} {at_y(a)}" for x, _, a, _ in reversed(line.points)]) + " Z"
        x, y = line.points[-1][:2]
        drawn.append({"path": path, "band": band, "colour": line.colour % COLOURS,
                      "label": line.label[:16], "full": line.label, "x": at_x(x), "y": at_y(y),
                      "dash": line.colour >= COLOURS, "dot": len(line.points) == 1})
    apart(drawn)
    known = sorted(set(xs))
    values = [{p[0]: p[1] for p in line.points} for line in lines]
    gap = max(1, -(-len(known) // ROWS))
    shown = [*known[:-1:gap], known[-1]]
    return {
        "lines": drawn, "several": len(lines) > 1, "width": WIDTH, "height": HEIGHT,
        "left": LEFT, "right": WIDTH - margin, "bottom": HEIGHT - BOTTOM, "top": TOP,
        "x": [(at_x(x), number(x)) for x in ticks(left, right, 5) if x == int(x)],
        "y": [(at_y(y), number(y)) for y in ticks(low, high)],
        "hits": hits(known, values, lines, at_x, margin),
        "table": [(number(x), [number(mine.get(x)) for mine in values]) for x in shown],
        "columns": [line.label for line in lines],
        "last": number(lines[0].points[-1][1]),
    }


def hits(known, values, lines, at_x, margin):
    """Columns that show their numbers when they are pointed at."""
    found, places = [], [at_x(x) for x in known]
    for k, x in enumerate(known):
        a = (places[k - 1] + places[k]) / 2 if k else LEFT
        b = (places[k] + places[k + 1]) / 2 if k + 1 < len(known) else WIDTH - margin
        said = [f"{line.label + ' ' if len(lines) > 1 else ''}{number(mine[x])}"
                for line, mine in zip(lines, values) if x in mine]
        found.append((round(a, 1), round(max(0.5, b - a), 1), places[k],
                      f"step {number(x)}: {', '.join(said)}"))
    return found if len(found) <= 2 * POINTS else found[:: -(-len(found) // (2 * POINTS))]


def apart(drawn, least=12.0):
    """Move labels that lie over each other apart, up and down."""
    order = sorted(drawn, key=lambda line: line["y"])
    for line in order:
        line["label_y"] = line["y"]
    for above, below in zip(order, order[1:]):
        below["label_y"] = max(below["label_y"], above["label_y"] + least)
    over = order[-1]["label_y"] - (HEIGHT - BOTTOM)
    for line in reversed(order) if over > 0 else ():
        line["label_y"] -= max(0.0, over)
    for line in order:
        line["label_y"] = round(line["label_y"], 1)


def intervals(rows):
    """Before and after with their intervals, a row each: (label, before, after, gain)."""
    scores = [s for _, before, after, _ in rows for s in (before, after) if s]
    if not scores:
        return None
    low, high = min(s["low"] for s in scores), max(s["high"] for s in scores)
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    room = (high - low) * 0.03 or 1.0
    low, high = low - room, high + room

    def at(x):
        return round(8 + (x - low) / (high - low) * 304, 1)

    def place(score):
        return score and {name: at(score[name]) for name in ("value", "low", "high")}

    marks = [(at(x), number(x)) for x in ticks(low + room, high - room)]
    return {"both": any(before for _, before, _, _ in rows), "ticks": marks, "rows": [
        {"label": label, "before": before, "after": after, "gain": gain,
         "at_before": place(before), "at_after": place(after)}
        for label, before, after, gain in rows]}


def tree(root):
    """Places of a tree's nodes: leaves side by side, a parent over the middle of its children."""
    nodes, edges, next_leaf, deepest = [], [], 0, 0

    def walk(node, depth):
        nonlocal next_leaf, deepest
        deepest = max(deepest, depth)
        below = [walk(child, depth + 1) for child in node["children"]]
        if below:
            x = (below[0][0] + below[-1][0]) / 2
        else:
            x, next_leaf = next_leaf, next_leaf + 1
        mine = (x, depth)
        nodes.append((mine, node))
        edges.extend((mine, place, child) for place, child in zip(below, node["children"]))
        return mine

    walk(root, 0)
    width = max(300, 9 * next_leaf + 20)
    gap = (width - 20) / max(1, next_leaf - 1) if next_leaf > 1 else 0

    def at(place):
        return (round(10 + place[0] * gap if gap else width / 2, 1), 12 + 44 * place[1])

    return {"width": width, "height": 24 + 44 * deepest,
            "edges": [(*at(a), *at(b), child["chosen"]) for a, b, child in edges],
            "nodes": [(*at(place), node) for place, node in nodes]}
