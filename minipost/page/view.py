"""What the page shows of which run, arranged for the template."""

import base64
import hashlib
import json
import math
from difflib import SequenceMatcher
from functools import lru_cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, UndefinedError
from markupsafe import Markup

from minipost import __version__
from minipost.errors import MinipostError, visible
from minipost.measure.stats import FEWEST, beyond_chance
from minipost.page import health, plots
from minipost.page.reading import moved, part

HERE = Path(__file__).parent
MOST_TOKENS = 14_000    # that a page shows with their numbers
LONGEST = 2000          # characters of a text
KEPT = 4                # children of a tree's node that are shown unfolded

# name: (letter of its classes, title, what it says, whether it has two signs)
CHANNELS = {
    "advantages": ("a", "advantage", "how much better than expected; what the step teaches", True),
    "ratio": ("r", "log-ratio to the reference",
              "log π/ref: above 0, the policy likes it more than the model it began as", True),
    "value": ("v", "value", "what the critic, or the reward model, expects here", True),
    "kl": ("k", "KL to the reference", "nats, over the whole vocabulary", False),
    "entropy": ("e", "entropy", "nats; how undecided the policy was", False),
    "logp": ("p", "surprise", "−log π of the token that was drawn, in nats", False),
}
LEVELS = 4
CARDS = {  # metric: (title, what to look for)
    "reward": ("Reward", "what the policy is paid for, mean of a step; it should rise"),
    "gold": ("Gold reward", "what is meant by the reward; it should rise with it"),
    "kl": ("KL to the start", "nats per token; how far the policy has moved"),
    "entropy": ("Entropy", "nats per token; near 0, all answers are alike"),
    "completions/mean_length": ("Length", "tokens per answer"),
    "completions/clipped_ratio": ("Cut-off answers", "share that met the length limit"),
    "frac_reward_zero_std": ("Tied groups", "share of groups that teach nothing"),
    "clip_ratio": ("Clipping", "share of tokens whose ratio is held"),
    "grad_norm": ("Gradient norm", "before it is clipped"),
    "accuracy": ("Accuracy", "share that is told right, on the step's own data"),
    "loss": ("Loss", "what is minimised; in RL it need not fall"),
    "explained_variance": ("Explained variance", "of returns, by the critic; 1 is perfect"),
}
HIDDEN = {"step", "num_tokens", "seconds"}
# Settings that move no number of a method's curve, and the seed, whose runs stand together.
SAME = {"seed", "out", "report", "show", "workers", "device", "save_every", "eval_every", "merge",
        "keep_rollouts", "rollout_format", "log", "reward_timeout", "sampler_url"}


@lru_cache(maxsize=1)
def template():
    """The template, and how it treats what it is given: shown plainly, then escaped."""
    env = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined,
                      trim_blocks=True, lstrip_blocks=True,
                      finalize=lambda x: visible(x) if type(x) is str else x)
    env.filters.update(gain=gain, number=plots.number, short=short, signed=signed, spaces=spaces)
    return env.get_template("page.html.jinja")


def short(text):
    """A text of at most LONGEST characters."""
    text = str(text).strip("\n")
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} … ({len(text):,} characters)"


def signed(x):
    """A number with its sign, a true minus."""
    return "" if x is None else f"{'−' if x < 0 else '+'}{plots.number(abs(x))}"


def gain(x):
    """A difference of two shown figures, with as many digits as they have."""
    return f"{x:+.3f}".replace("-", "−")


def spaces(text):
    """A token with its line ends marked, so that one sees them."""
    return visible(text).replace("\n", "⏎\n")


def render(runs, refresh=0):
    """The page of some RunData, as a text.  MinipostError where one holds what no run writes."""
    script = (HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    try:
        alone = runs[0] if len(runs) == 1 else None
        groups = seeds(runs)
        return template().render(
            script=Markup(script), style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
            digest=digest, refresh=refresh, version=__version__, levels=range(1, LEVELS + 1),
            runs=[overview(run, len(runs) > 1) for run in runs], alone=alone is not None,
            title=str(alone.path.name if alone else f"{len(runs)} runs compared"),
            scores=scores(runs), charts=charts(groups, CARDS),
            held=held_out(groups), others=charts(groups, others(runs)),
            bands=any(len(mine) > 1 for _, mine in groups),
            **(samples(alone) if alone else samples(None)))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError,
            UndefinedError) as error:
        names = ", ".join(str(run.path) for run in runs)
        raise MinipostError(f"{names}: a file there is not as minipost writes it ({error!r:.100}); "
                            "make the run again") from None


# ---- the head

def verdict(run):
    """(good, bad or flat; what came out of a run, in words)."""
    before, after, gained = (part(run.summary, name) for name in ("before", "after", "gain"))
    if not run.summary:
        steps = run.about.get("steps") or part(run.config, "method").get("steps")
        return "flat", f"Not finished: {run.step} of {steps} steps have been made."
    if run.summary.get("unchanged"):
        return "bad", "No step changed the model: no update was made."
    if not before or not after:
        return "flat", "Finished. Nothing was measured before or after (--eval-n 0)."
    name = metric(run)
    what = f"{name[:1].upper()}{name[1:]}: {before['value']:.3f} before, " \
           f"{after['value']:.3f} after, on {after['n']} problems"
    if not gained:
        return "flat", f"{what}."
    by = "{}, 95% interval {} to {}".format(*(gain(gained[k]) for k in ("value", "low", "high")))
    if gained["n"] < FEWEST:
        return "flat", f"Too few problems to tell a difference from chance. {what}: {by}."
    if (sign := beyond_chance(gained)) > 0:
        return "good", f"It got better. {what}: {by}."
    if sign < 0:
        return "bad", f"It got worse. {what}: {by}."
    if not (others := moved(run.summary)):
        return "flat", f"No difference can be told from chance. {what}: {by}."
    more = " ".join(
        f"{name[:1].upper()}{name[1:]}, {'rose' if row['gain']['low'] > 0 else 'fell'} from "
        f"{row['before']['value']:.3f} to {row['after']['value']:.3f}: "
        + "{}, 95% interval {} to {}.".format(*(gain(row["gain"][k])
                                                for k in ("value", "low", "high")))
        for name, row in others)
    return "flat", (f"No difference of the {name.partition(', ')[0]} can be told from chance. "
                    f"{what}: {by}. {more}")


def metric(run):
    return str(run.summary.get("metric", "result")).replace("->", "→")


def overview(run, several):
    """What the head says of a run."""
    about, summary, tone = run.about, run.summary, verdict(run)
    method, task = part(run.config, "method"), part(run.config, "task")
    last = run.lines[-1] if run.lines else {}
    seconds = summary.get("seconds", last.get("seconds"))
    resumes = [row["step"] for row in run.kind("resume")]
    settings = {**run.options, **method,
                **{k: v for k, v in task.items() if k != "name"}, **part(about, "settings")}
    steps = about.get("steps") or method.get("steps")
    facts = [
        ("method", run.algo), ("model", run.options.get("model") or about.get("model")),
        ("task", run.task), ("seed", run.seed),
        ("steps", f"{run.step} of {steps}" if run.step < (steps or 0) else run.step or None),
        ("time", None if seconds is None else duration(seconds)),
        ("tokens", plots.number(summary.get("tokens", last.get("num_tokens")))),
        ("processes", about.get("workers") or run.config.get("workers")),
        ("device", about.get("device")), ("made", about.get("when")),
        ("went on after step", ", ".join(map(str, resumes)) or None),
        ("versions", ", ".join(f"{k} {v}" for k, v in part(about, "versions").items()) or None),
        ("ended", "finished" if summary else "not finished"),
        ("folder", str(run.path) if several else None),
    ]
    return {"name": run.path.name or str(run.path), "tone": tone[0], "verdict": tone[1],
            "facts": [(k, v) for k, v in facts if v not in (None, "")],
            "differs": [(k, v, d) for k, (v, d) in part(about, "differs").items()],
            "told": "differs" in about,
            "settings": sorted((k, v) for k, v in settings.items() if v not in ("", [])),
            "health": health.examine(run), "algo": run.algo}


def duration(seconds):
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def scores(runs):
    """Before and after with intervals, of all that each run measured."""
    rows = []
    for run in runs:
        of = f"{run.path.name}: " if len(runs) > 1 else ""
        for name, row in part(run.summary, "all").items():
            name = f"{of}{name}"
            if "score" in row:  # an arm of a test-time method
                rows.append((f"{name} ({plots.number(row['tokens per problem'])} tokens)", None,
                             row["score"], {}))
            else:
                rows.append((name, row["before"], row["after"], row.get("gain") or {}))
        rows += [(f"{of}{name}", row, None, {}) for name, row in part(run.summary, "asked").items()]
    return plots.intervals(rows)


# ---- curves

def seeds(runs):
    """[(label, runs)]: runs that differ in their seed, or in what is SAME, stand together."""
    found = {}
    for run in runs:
        settings = {name: value for name, value in {
            **run.options, **part(run.config, "method"),
            **{f"task {k}": v for k, v in part(run.config, "task").items()}}.items()
            if name not in SAME}
        key = (run.algo, json.dumps(settings, sort_keys=True))
        found.setdefault(key, (settings, []))[1].append(run)
    named = []
    for (algo, _), (settings, mine) in found.items():
        rivals = [other for (name, _), (other, _) in found.items() if name == algo]
        apart = [f"{k} {settings.get(k)}" for k in settings
                 if any(other.get(k) != settings.get(k) for other in rivals)]
        label = " ".join([algo, *apart]) if len(" ".join(apart)) <= 24 else mine[0].path.name
        n = len({run.seed for run in mine})
        many = f" ({n} seeds)" if n == len(mine) else (
            f" ({len(mine)} runs, {n} seed{'s' * (n > 1)})")
        named.append((label + many if len(mine) > 1 else label, mine))
    return named


def charts(groups, cards):
    """[(title, what to look for, chart)] of those metrics that any run has."""
    found = []
    for metric, (title, hint) in cards.items():
        drawn = plots.chart([plots.Line(label, k, plots.merged([r.lines for r in mine], metric))
                             for k, (label, mine) in enumerate(groups)])
        if drawn and (len(drawn["table"]) > 1 or drawn["several"]):
            found.append((title, hint, drawn))
    return found


def others(runs):
    """The metrics that have no card."""
    names = dict.fromkeys(name for run in runs for line in run.lines for name in line)
    return {name: (name, "") for name in names
            if name not in CARDS and name not in HIDDEN and not name.startswith("eval/")}


def held_out(groups):
    """[(title, hint, chart)] of held-out results over the run, where they were measured."""
    names = dict.fromkeys(name for _, mine in groups for run in mine for line in run.lines
                          for name in line if name.startswith("eval/"))
    found = []
    for name in names:
        split, _, metric = name.removeprefix("eval/").rpartition("/")
        lines = []
        for k, (label, mine) in enumerate(groups):
            series = []
            for run in mine:
                ends = part(part(run.summary, "all"), f"{metric}, {split}")
                more = [{"step": step, name: ends[when]["value"]} for step, when in
                        ((0, "before"), (run.step, "after")) if when in ends]
                series.append([*run.lines, *more])
            lines.append(plots.Line(label, k, plots.merged(series, name)))
        if drawn := plots.chart(lines):
            found.append((f"{metric}, {split}", "on held-out problems, as the run goes on", drawn))
    return found


# ---- samples

def samples(run):
    """Answers and how they came about, of one run; nothing of several."""
    groups = [*run.kind("group"), *run.kind("judged")] if run else []
    while len(groups) > 2 and sum(len(a["tokens"]) for g in groups for a in g["answers"]) \
            > MOST_TOKENS:
        groups.pop(len(groups) // 2)
    every = [answer for group in groups for answer in group["answers"]]
    known, scales = [], {}
    for name, (letter, title, hint, two) in CHANNELS.items():
        numbers = sorted(abs(x) for a in every for x in channel(a, name) if x is not None)
        if numbers and numbers[-1] > 0:
            scales[name] = numbers[int(0.98 * (len(numbers) - 1))] or numbers[-1]
            known.append({"name": name, "letter": letter, "title": title, "hint": hint,
                          "two": two, "scale": scales[name]})
    return {
        "pairs": [{**row, "rows": [{**pair, **changed(pair["before"], pair["after"])}
                                   for pair in row["rows"]],
                   "exact": {r for pair in row["rows"] for r in pair["rewards"]} <= {0.0, 1.0}}
                  for row in run.kind("pairs")]
        if run else [], "channels": known,
        "groups": opened([{"prompt": "", **group,
                           "answers": [shown(a, scales) for a in alike(group["answers"])],
                           "count": len(group["answers"]), "tied": tied(group)}
                          for group in groups]),
        "exact": {a["reward"] for a in every} <= {0.0, 1.0, None},
        "workings": [working(row) for row in run.kind("working")] if run else [],
    }


def changed(before, after):
    """Two texts as lines, each with whether the other text has it too; so too if none is."""
    old, new = (short(text).split("\n") for text in (before, after))
    kept = [set(), set()]
    for a, b, n in SequenceMatcher(None, old, new, autojunk=False).get_matching_blocks():
        kept[0] |= set(range(a, a + n))
        kept[1] |= set(range(b, b + n))
    return {when: [(line, k in same or not same) for k, line in enumerate(lines)]
            for when, lines, same in zip(("before", "after"), (old, new), kept)}


def tied(group):
    """Whether all answers of a group have the same reward, so that none has an advantage."""
    return bool(group.get("prompt")) and len({a["reward"] for a in group["answers"]}) == 1


def alike(answers):
    """The answers, the highest advantage first, with how many others are the same text."""
    found = {}
    for answer in sorted(answers, key=lambda a: -(a.get("advantage") or 0.0)):
        key = answer["text"], answer.get("prompt"), answer.get("advantage"), answer["finished"]
        found.setdefault(key, {**answer, "same": 0})["same"] += 1
    return list(found.values())


def opened(groups):
    """The groups, with which of them are unfolded: the first and the last that teach something."""
    good = [k for k, group in enumerate(groups) if not group["tied"]] or [0]
    return [{**group, "open": k in (good[0], good[-1])} for k, group in enumerate(groups)]


def channel(answer, name):
    """The numbers of an answer's tokens in a channel, [] where it has none."""
    found = answer.get(name)
    if found is None and name == "advantages" and answer.get("advantage") is not None:
        return [answer["advantage"]] * len(answer["tokens"])
    return found or []


def level(x, scale):
    """The step of a colour scale, -4..4: how far x is from 0, as a share of the scale."""
    if x is None:
        return 0
    size = min(LEVELS, math.ceil(LEVELS * abs(x) / scale - 0.25))
    return max(0, size) * (1 if x > 0 else -1)


def shown(answer, scales):
    """An answer with the classes and the numbers of its tokens."""
    columns = {name: channel(answer, name) for name in scales}
    columns = {name: xs for name, xs in columns.items() if len(xs) == len(answer["tokens"])}
    tokens = []
    for k, text in enumerate(answer["tokens"]):
        marks = []
        for name, xs in columns.items():
            letter, _, _, two = CHANNELS[name]
            step = level(xs[k] if two or xs[k] is None else abs(xs[k]), scales[name])
            if step:
                marks.append(f"{letter}{step}")
        tokens.append({"text": str(text), "marks": " ".join(marks),
                       "numbers": [None if xs[k] is None else -xs[k] if name == "logp" else xs[k]
                                   for name, xs in columns.items()]})
    return {**answer, "shown": tokens, "left": answer.get("length", len(tokens)) - len(tokens),
            "titles": [CHANNELS[name][1] for name in columns]}


# ---- workings of test-time methods

def working(row):
    """A working by its kind: a tree, votes, rounds, episodes, choices, or lines of text."""
    found = row["working"] if isinstance(row["working"], dict) else {}
    base = {name: row[name] for name in ("arm", "problem", "prompt", "answer", "reward")}
    if isinstance(found.get("tree"), list) and len(found["tree"]) > 1:
        root = grown(found["tree"], row["answer"])
        return {**base, "kind": "tree", "root": root, "picture": plots.tree(root),
                "left": found.get("left out", 0)}
    if isinstance(found.get("tree"), dict) and found["tree"].get("children"):
        root = visited(found["tree"], "", row["answer"])
        return {**base, "kind": "tree", "root": root, "picture": plots.tree(root), "left": 0}
    if found.get("votes"):
        return {**base, "kind": "votes", "votes": found["votes"][:12],
                "most": max(vote["votes"] for vote in found["votes"]) or 1,
                "samples": found.get("samples", [])[:12]}
    for kind in ("rounds", "episodes"):
        if found.get(kind):
            return {**base, "kind": kind, kind: found[kind][:24]}
    if isinstance(found.get("samples"), list) and "chosen" in found:
        return {**base, "kind": "choice", "chosen": found["chosen"],
                "samples": found["samples"][:24]}
    return {**base, "kind": "lines", "lines": row.get("lines", [])}


def grown(tree, answer):
    """The nested nodes of a tree of thoughts, which is a list whose nodes name their parents."""
    nodes = []
    for k, node in enumerate(tree):
        parent = node["parent"]
        before = tree[parent]["text"] if parent is not None else ""
        nodes.append({
            "step": node["text"][len(before):].strip().replace("\n", "; ") or "(the problem)",
            "value": node["worth"] if parent is not None else None, "visits": None, "children": [],
            "state": "answer" if node["finished"] else "expanded" if node["expanded"] else "left",
            "chosen": answer.startswith(node["text"]) and (
                not node["finished"] or node["text"] == answer)})
        if parent is not None:
            nodes[parent]["children"].append(nodes[-1])
    return ordered(nodes[0])


def visited(node, before, answer):
    """The nested nodes of a Monte Carlo tree."""
    children = [visited(child, node["text"], answer) for child in node["children"]]
    return ordered({
        "step": node["text"][len(before):].strip().replace("\n", "; ") or "(the problem)",
        "value": node["q"], "visits": node["visits"], "children": children,
        "state": "expanded" if children else "left", "chosen": answer.startswith(node["text"])},
        deep=False)


def ordered(node, deep=True):
    """The chosen child first, then the others from the best; what is kept open, what is folded."""
    if deep:
        for child in node["children"]:
            ordered(child)
    node["children"].sort(key=lambda n: (not n["chosen"], not n["children"],
                                         -(n["visits"] or 0), -(n["value"] or 0)))
    open_ = max(KEPT, sum(bool(n["children"]) or n["chosen"] for n in node["children"]))
    node["first"], node["rest"] = node["children"][:open_], node["children"][open_:]
    return node
