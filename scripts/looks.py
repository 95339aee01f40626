"""How a method looks in every plot: one colour each, and names at the ends of its curve."""

BLUE, RED, GREEN, PURPLE, ORANGE = "#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e"
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (6, 1.5, 1, 1.5)))
MARKS = "osD^vPX*h"

COLOURS = {
    "base": "#000000", "reinforce": BLUE, "self-critical": RED, "rloo": GREEN,
    "reinforce-pp": PURPLE, "a2c": ORANGE, "ppo": "#111111", "trpo": "#8c564b",
    "grpo": "#17becf", "dr-grpo": "#e377c2", "dapo": "#7f7f00", "sft": "#7f7f7f",
    "rft": "#bcbd22", "dpo": "#393b79", "kto": "#ad494a", "oreo": "#637939",
    # at test time; GRPO stands beside these, so none has its colour
    "at once": "#999999", "worked, greedy": "#000000", "self-consistency": BLUE,
    "best of n, PRM": ORANGE, "best of n, own verdicts": GREEN, "beam, PRM": RED,
    "retry": "#8c564b", "self-feedback": PURPLE, "tree of thoughts, b=1": "#e7298a",
    "tree of thoughts, b=5": "#8e0152", "tree, depth-first": "#f4a0c8",
    "tree, best-first": "#bcbd22", "MCTS": "#5b4a00", "after GRPO": "#17becf",
    "process-grpo": "#e6ab02", "gspo": "#1b9e77", "maxrl": "#7570b3", "vineppo": "#66a61e",
    "prime": "#a6761d",
    "adaptive consistency": "#6baed6", "speculative rejection": "#b15928",
    "particles, PRM": "#fb9a99", "tree, A*": "#cab2d6", "UCT": "#7a0177",
    "cispo": "#386cb0", "sapo": "#f781bf", "entropy": "#999933", "minimum-risk": "#44aa99",
    "es": "#882255", "by difficulty": "#117733", "with a calculator": "#332288",
    "best of n until sure": "#003c30",
}
LATER = ("#444444", "#d95f02", "#c49c94", "#666699", "#b3de69")  # of other names
LINE = 1.3   # least distance of two names, in heights of their letters


def colour(name):
    """The colour of a method; a name that is not in the table gets one that follows from it."""
    return COLOURS.get(name) or LATER[sum(map(ord, name)) % len(LATER)]


def line(name):
    """{keyword of axes.plot: value} that no other method of the table has together."""
    names = list(COLOURS)
    k = names.index(name) if name in names else sum(map(ord, name))
    return {"color": colour(name), "linestyle": DASHES[k % len(DASHES)],
            "marker": MARKS[k % len(MARKS)]}


def spread(heights, gap):
    """Heights in the order given, moved apart until neighbours are `gap` away, within 0..1."""
    order = sorted(range(len(heights)), key=lambda k: heights[k])
    found, last = list(heights), -gap
    for k in order:                                     # up from the lowest
        found[k] = last = max(found[k], last + gap)
    last = max(1.0, gap * (len(heights) - 1)) + gap
    for k in reversed(order):                           # and down again from the highest
        found[k] = last = min(found[k], last - gap)
    return found


def label_ends(axes, ends, size=8):
    """Write each curve's name beside the axes, level with its end as far as there is room.

    ends: (x, y, text, colour) of each, in the units of the data.  Call it when the limits are set.
    """
    inverse = axes.transAxes.inverted()
    gap = LINE * size / 72 * axes.figure.dpi / axes.get_window_extent().height
    places = [inverse.transform(axes.transData.transform((x, y))) for x, y, *_ in ends]
    for (_, _, text, shade), (x, y), height in zip(
            ends, places, spread([min(max(y, 0), 1) for _, y in places], gap)):
        axes.plot([x, 1.015], [y, height], color=shade, linewidth=0.5, alpha=0.6, clip_on=False,
                  transform=axes.transAxes)
        axes.text(1.02, height, text, color=shade, fontsize=size, va="center",
                  transform=axes.transAxes)
