"""Several passes over old answers, or answers of a rounded sampler: which bound learns most?

Part one.  The thinker in a hurry learns six-term sums.  Each rollout, by the policy of the step
before (`--lag 1`), makes 16 updates: 4 passes in 4 minibatches.  So ratios are far from 1, and what
bounds them matters: GRPO's clip of each token's ratio, GSPO's clip of the answer's, CISPO's weight
of at most 5, SAPO's soft gate, or nothing (`--correct none`).  Learning rate, advantages, answers
and tokens are the same, and there is no KL.

Part two.  Rollouts are by the policy's weights rounded to 3 bits, each makes one update, and a
correction weighs tokens by the ratio of policy and sampler: not at all, clipped, truncated (TIS),
or masked by token or by answer (MIS).  Beside it stands the same run with its own sampler.

What decides is part one, by accuracy of sampled answers on held-out problems at the end:

reproduced      SAPO ends higher than GRPO and higher than GSPO, each beyond the 95% interval of the
                paired difference over seeds.
reversed        SAPO ends lower than GRPO and lower than GSPO, each beyond that interval.
not reproduced  Anything else.
"""

from minipost.measure.stats import Score
from scripts import looks
from scripts.compare import average, difference
from scripts.studies import Finding

PAPER = "arxiv.org/abs/2511.20347"
CLAIM = ("Gao et al. 2025 (SAPO): with each rollout split into four minibatches, a soft gate keeps "
         "training of a 30B mixture of experts stable for longer than GSPO and GRPO, and ends at "
         "higher accuracy in mathematics.")
LIMITS = ("What a nano model can tell: what each bound does to answers of thirty tokens that are "
          "up to 32 updates old, and what ratios mend of rounding to 3 bits. What it "
          "cannot: mixtures of experts, whose routing makes single ratios jump, and answers of "
          "thousands of tokens, for which GSPO and SAPO were made. Sixteen updates a rollout and 3 "
          "bits are further than large runs go, so that a difference has room.")
TRIED = ("GSPO's bounds are the best of three on the training rewards of one other seed, its "
         "paper's own being narrower than one step here; GRPO, CISPO and SAPO have their usual "
         "ones. The number of bits was chosen by how far log-probs differ. The rule has not "
         "changed.")
COMMON = ["--task", "arithmetic", "--hurried", "True", "--model", "checkpoints/thinker",
          "--prompts", "8", "--eval-n", "100", "--report", "False", "--workers", "1"]
PASSES = ["--steps", "8", "--lag", "1", "--epochs", "4", "--minibatch-size", "16", "--lr", "1e-4"]
ROUNDED = ["--steps", "20", "--lr", "2e-4"]
BITS = ["--sampler-bits", "3"]
BOUNDS = {
    "grpo": ["--algo", "grpo", "--beta", "0"],
    "gspo": ["--algo", "gspo", "--clip-low", "0.03", "--clip-high", "0.04"],
    "cispo": ["--algo", "cispo"],
    "sapo": ["--algo", "sapo"],
    "none": ["--algo", "grpo", "--beta", "0", "--correct", "none"],
}
CORRECTIONS = ("none", "clip", "truncated", "masked", "masked-answers")
OWN = "own-sampler"


def runs(seeds):
    made = {}
    for seed in seeds:
        made |= {f"passes-{name}-{seed}": [*given, *COMMON, *PASSES, "--seed", seed]
                 for name, given in BOUNDS.items()}
        grpo = [*BOUNDS["grpo"], *COMMON, *ROUNDED]
        made[f"rounded-{OWN}-{seed}"] = [*grpo, "--seed", seed]
        made |= {f"rounded-{name}-{seed}": [*grpo, *BITS, "--correct", name, "--seed", seed]
                 for name in CORRECTIONS}
    return made


def ends(made, part, name):
    """Held-out accuracy of sampled answers at the end, a Score of each seed."""
    return [Score(**made.summary(f"{part}-{name}-{seed}")["all"][
        "sampled, held-out"]["after"]) for seed in made.seeds]


def most(made, part, name):
    """The largest log-ratio at a first update, of any seed."""
    return max(line.get("sampling_logp_difference/max", 0.0) for seed in made.seeds
               for line in made.metrics(f"{part}-{name}-{seed}"))


def findings(made):
    rows, data = [], {}
    for part, names, against in (("passes", BOUNDS, "grpo"),
                                 ("rounded", (OWN, *CORRECTIONS), "none")):
        control = ends(made, part, against)
        for name in names:
            found = ends(made, part, name)
            lead = "" if name == against else f"{difference(found, control):+}"
            data[f"{part}: {name}"] = average(found)
            rows.append([part, name, f"{average(found)}", lead, f"{most(made, part, name):.2g}"])
    sapo = ends(made, "passes", "sapo")
    leads = {name: difference(sapo, ends(made, "passes", name)) for name in ("grpo", "gspo")}
    said = ", ".join(f"{lead:+} on {name.upper()}" for name, lead in leads.items())
    return Finding(
        ["part", "bound or correction", "sampled accuracy, held out", "lead on grpo, or on none",
         "largest log-ratio"], rows, judge(*leads.values()),
        f"After 16 updates a rollout SAPO leads by {said}.", data,
        [f"{len(made.seeds)} seeds, 100 held-out problems each; passes: 8 rollouts of 8 x 8 "
         "answers, 128 updates; rounded: 20 such rollouts, 20 updates. The largest log-ratio is "
         "between sampler and policy before a rollout's first update."])


def judge(on_grpo, on_gspo):
    """SAPO's leads, as Scores."""
    if on_grpo.low > 0 and on_gspo.low > 0:
        return "reproduced"
    return "reversed" if on_grpo.high < 0 and on_gspo.high < 0 else "not reproduced"


def draw(figure, found):
    parts = ("passes", "rounded")
    for axes, part in zip(figure.subplots(1, 2, sharey=True), parts):
        points = {name.partition(": ")[2]: score for name, score in found.data.items()
                  if name.startswith(part)}
        for k, (name, score) in enumerate(points.items()):
            axes.errorbar([k], [score.value], [[score.value - score.low],
                                               [score.high - score.value]], fmt="o", capsize=3,
                          color=looks.colour(name) if part == "passes" else looks.BLUE)
        axes.set_xticks(range(len(points)), list(points), rotation=30, ha="right")
        axes.set_xlabel("16 updates a rollout" if part == "passes" else "sampler of 3 bits")
    figure.axes[0].set_ylabel("sampled accuracy, held out [95%]")
