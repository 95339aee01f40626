"""What two ranks must make as one does: a step of every method, and every helper that shares work.

`python ranks.py` makes all of it in one process and then in two, and prints as JSON what differs.
The rows are odd in number, so the shares are unequal.
"""

import json
import random
import warnings
from dataclasses import asdict, replace

import torch
from anew import CASES, Chance, Listed, Mixed, scene
from fakes import Hidden, Letters, make_run, scalar, tiny, toy

from minipost import parallel
from minipost.datasets import preferences
from minipost.measure import scorers
from minipost.measure.meter import Meter
from minipost.measure.results import evaluate, results
from minipost.measure.texts import Texts
from minipost.methods import grpo, iterative_grpo, oreo, ppo, prm, rft, rlaif, trpo
from minipost.run import REWARD_MODEL
from minipost.tasks.base import Problem

ODD = dict(prompts=5, group_size=3)     # 15 answers, so one rank has a row more than the other


class Wide(Letters):
    """Any text as letters."""

    def prompt(self, text):
        return [self.bos, *(3 + ord(c) % 8 for c in text)]

    def response(self, text):
        return [*self.prompt(text)[1:], 2]


def judge(seed=7):
    """RLAIF's judge: a network that reads any text."""
    found = rlaif.Judge.__new__(rlaif.Judge)
    found.model, found.vocabulary = tiny(seed=seed, context=128), Wide()
    found.principle, found.shared, found.sides, found.seen = "p", [3], (4, 5), {}
    return found


def flat(run):
    """All weights of a run, and how far they are from those of the other ranks."""
    found = torch.cat([learner.flat for learner in run.learners.values()])
    total = found.clone()
    parallel.all_reduce(total)
    return {"weights": found, "apart": total - parallel.world() * found}


def stepped(case):
    odd = {name: value for name, value in ODD.items() if name in case.cfg}
    case = replace(case, cfg=case.cfg | odd)
    run = scene(case)
    metrics = next((case.train or case.module.train)(run, case.config()))
    return {**flat(run), **metrics, "tokens": run.tokens}


def staged():
    """All stages of RLHF, and RLAIF's labels."""
    run = toy(Hidden())
    run.reward = run.task.reward = Mixed().reward
    cfg = ppo.Config(steps=1, sft_steps=1, reward_steps=1, prompts=7, minibatch_size=5)
    learner, lines = judge(), []
    learn = ppo.rlhf(run, cfg, learner)
    for run.step in range(3):
        lines.append(next(learn))
    return {**flat(run), **{f"{k} {name}": x for k, line in enumerate(lines)
                            for name, x in line.items()}, **learner.seen}


def rounds():
    """Two rounds of a reward model and GRPO, with pairs that are replayed."""
    run, lines = toy(Hidden()), []
    run.reward = run.task.reward = Mixed().reward
    learn = iterative_grpo.train(run, iterative_grpo.Config(
        steps=2, reward_steps=2, sft_steps=0, iterations=2, replay_share=0.5, **ODD))
    for run.step in range(4):
        lines.append(next(learn))
    return {**flat(run), **run.parts["frozen/history"].state()[0], "lines": lines}


def whole(task=None):
    """A run of odd batches whose networks differ from one another."""
    run = make_run(task or Mixed(), tiny(seed=4), micro_batch_size=2)
    run.frozen("reference", lambda: tiny(seed=5))
    run.learner(REWARD_MODEL, lambda: scalar(2, tiny(seed=6)))
    run.learner("critic", lambda: scalar(3, tiny(seed=8)))
    return run


def shared():
    """Samples, log-probs, scores, grades and sums, each of an odd number of rows."""
    run = whole()
    problems = run.problems(5)
    rollout = run.sample(problems, 3, temperature=0.8)
    scorer = run.learners[REWARD_MODEL].module
    found = {name: getattr(rollout, name) for name in ("tokens", "mask", "logp", "finished")}
    found |= {"logprobs": run.logprobs(run.policy.module, rollout, 0.8),
              "scores": run.final_scores(scorer, rollout), "grade": run.grade(problems, rollout),
              "ratio": run.log_ratio(rollout, run.reference(), 0.7),
              "share": len(parallel.share(range(5)))}
    share = torch.tensor([float(found.pop("share"))])
    parallel.all_reduce(share)
    meter = Meter("one", "two")
    meter.add(one=1 / parallel.world(), two=3 / parallel.world())
    run.score_by(scorer)
    critic = run.learners["critic"]
    rows = [rollout[i] for i in run.micro_batches(range(15), rollout)]
    vector = torch.linspace(-1, 1, len(run.policy.flat), dtype=torch.float64)
    product = torch.zeros_like(vector)
    for part in rows:
        product += trpo.product_jacobian(run.policy, part, 0.8, vector)
    parallel.all_reduce(product)
    return {**found, "shares": share, "one": meter.means(2), "score": run.score(problems, rollout),
            "fisher": product, "seen": torch.tensor(run.tokens), **flat(run),
            "implied": oreo.implied(run, rollout, critic.module, 0.3)}


def measured():
    """What is measured of a run."""
    run, problems = whole(), Mixed().sample(5, random.Random(1))
    listed = whole(Listed())
    pairs = {"rows": listed.task.training()[:5]}
    found = {"policy": evaluate(run, problems, 1.0), "rate": scorers.win_rate(
        run, problems, run.reference())}
    for name, splits in {
        "results": results(run, {"all": problems}),
        "report": scorers.measure(run, {"all": problems}, None),
        "pairs": scorers.measure(listed, pairs, None),
        "implied": scorers.report_policy(listed, pairs, 0.3),
        "mean": scorers.report_policy(listed, pairs, None),
        "prm": prm.measure(whole(Chance()), {"all": problems}, prm.Config()),
        "oreo": oreo.measure(whole(Chance()), {"all": problems[:3]},
                             oreo.Config(width=2, branching=2)),
    }.items():
        for split, metrics in splits.items():
            found |= {f"{name} {metric}": result for metric, result in metrics.items()}
    answers = [Problem(p.prompt, {"completion": 2 * p.prompt, "reward": 1.0}) for p in problems]
    found["rft"] = rft.measure(run, {"all": answers}, rft.Config())["all"][
        "log-prob of right answers"]
    return {name: asdict(result) for name, result in found.items()}


def said():
    """What test-time methods ask of a model."""
    run = whole(Chance())
    tools = Texts(run, 0.8, run.learners[REWARD_MODEL].module)
    texts = ["ab", "c", "dd", "a", "cb"]
    return {"sample": tools.sample(texts, 3), "step": tools.step(texts, 3),
            "greedy": tools.greedy(texts), "confidence": tools.confidence(texts, texts[::-1]),
            "verified": tools.verified(texts, texts[::-1]), "value": tools.value(texts),
            "tokens": tools.tokens}


def paired():
    """Pairs and comparisons of a step."""
    run = whole(Listed())
    found = {}
    for name, source in (("file", run), ("sampled", whole())):
        data = preferences.StepPairs(source, CASES["dpo"].config(), preferences.by_reward)
        pairs, refs = data.draw()
        found |= {f"{name} {k}": x for k, x in enumerate(
            (pairs.chosen.tokens, pairs.rejected.tokens, *refs))}
    places, wins = preferences.draw_comparisons(whole(), 5, 3, preferences.by_reward, 0.8)
    return found | {"wins": wins, "first": places[0].tokens}


def delayed():
    """Steps on answers of an older policy."""
    run, lines = whole(), []
    run.lag = 1
    learn = grpo.train(run, grpo.Config(steps=3, **ODD, lr=1e-2, correct="truncated"))
    for run.step in range(3):
        lines.append(next(learn))
    return {**flat(run), **run.parts["frozen/past"].state()[0], "lines": lines}


def broken():
    """A gradient that is not finite in one rank alone makes no update in any."""
    run = whole()
    run.policy.grad += float("nan") if parallel.rank() == parallel.world() - 1 else 1.0
    before = run.policy.flat.clone()
    run.policy.step(0.1)
    return {"moved": run.policy.flat - before, "skipped": run.policy.skipped}


HELPERS = {part.__name__: part for part in (staged, rounds, shared, measured, said, paired, delayed,
                                            broken)}


def everything():
    """How many ranks there are, and all that they made."""
    warnings.simplefilter("ignore")
    found = {name: stepped(case) for name, case in CASES.items()}
    return parallel.world(), found | {name: part() for name, part in HELPERS.items()}


def differ(one, two, name=""):
    """The places at which two nested results are not the same, {place: by how much}."""
    if isinstance(one, dict) or isinstance(two, dict):
        keys = one.keys() | two.keys()
        return {place: gap for key in keys for place, gap in
                differ(one.get(key), two.get(key), f"{name}/{key}").items()}
    if isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        return {place: gap for k, pair in enumerate(zip(one, two)) for place, gap in
                differ(*pair, f"{name}/{k}").items()}
    if torch.is_tensor(one) and torch.is_tensor(two) and one.shape == two.shape:
        gap = (one.double() - two.double()).abs().max().item() if one.numel() else 0.0
        size = max(1.0, one.double().abs().max().item()) if one.numel() else 1.0
        return {} if gap <= 1e-9 * size else {name: gap}
    if isinstance(one, float) and isinstance(two, (float, int)):
        same = abs(one - two) <= 1e-9 * max(1.0, abs(one)) or (one != one and two != two)
        return {} if same else {name: [one, two]}
    return {} if not torch.is_tensor(one) and one == two else {name: repr([one, two])[:200]}


if __name__ == "__main__":
    torch.set_num_threads(1)
    (one, alone), (two, together) = everything(), parallel.launch(everything, 2)
    assert (one, two) == (1, 2)
    print(json.dumps({name: differ(alone[name], together[name]) for name in alone}))
