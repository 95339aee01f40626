"""Whether a method learns anything from the rows of a file.

Methods that learn from pairs or labels sample answers where the rows have none.  Something must
then say which answers are better: a reward function, or a reward model.  To compare them with the
rows' completions would nearly always tie, so a file without what the method reads is refused.
"""

from minipost.datasets.fitting import fitted
from minipost.datasets.rows import File, listed
from minipost.datasets.trajectories import stated
from minipost.errors import MinipostError

PAIR, LABEL, WORTH = "chosen and rejected", "completion and label", "completion and reward"


def for_method(run, name, reads, others=(), scored=False, compares=False):
    """The run's task, without the rows of a file that the method of this name cannot use.

    reads, compares: its READS and COMPARES.  others: as in `fitted`.  scored: whether a reward
    model scores its answers.
    MinipostError where the method cannot learn from such rows, or where there are too few.
    """
    paid = isinstance(getattr(run.reward, "__self__", None), File)
    pairs = "chosen" in reads and "completion" not in reads  # else `sampled` says what it takes
    task = fitted(run.task, run.policy.module, run.vocabulary, run.max_new_tokens, reads, others,
                  run.control_tokens, paid and (scored or not pairs))
    if isinstance(task, File):
        first = task.rows[0].problem()
        if compares and paid:
            raise MinipostError(
                f"{first.place}: {name} orders answers of the model by their rewards, which nearly "
                "always tie where an answer is right that equals the row's completion; name a "
                "--reward" + ("" if "chosen" not in first.columns else
                              f"; such rows are for {readers(first.columns)}"))
        if said := sampled(task.data, name, reads, first, paid and not scored):
            task.notes.append(said)
        if task.few:
            raise MinipostError(task.few)
    return task


def sampled(path, name, reads, first, paid):
    """The sentence on a method that samples answers, since rows like the first have none to read.

    "" where they have, or where it never reads such.  paid: whether nothing but the rows'
    completions says which answers are right.  MinipostError where it would learn nothing.
    """
    pair, label = "chosen" in reads, "label" in reads
    if pair and "completion" in reads and not label or not (pair or label):
        return ""  # it has its own judge of answers, or needs none
    if pair and "chosen" in first.columns or label and (
            stated(first) if "reward" in reads else isinstance(first.columns.get("label"), bool)):
        return ""
    wants = " or ".join(what for what, wanted in (
        (PAIR, pair), (LABEL, label), (WORTH, "reward" in reads)) if wanted)
    if paid and pair:
        raise MinipostError(
            f"{first.place}: the keys are {listed(['prompt', *first.columns])}, and {name} reads "
            f"{wants}; such rows are for {readers(first.columns)}, or name a --reward, by which "
            f"{name} compares answers of the model")
    judge = "an answer counts as right that equals the row's completion" if paid else \
        "the reward function or model says what they are worth"
    return f"no row of {path} has {wants}, so {name} samples answers: {judge}"


def readers(columns):
    """The methods that learn from rows with these columns, in words."""
    if "chosen" in columns:
        return "dpo, ipo, orpo, simpo, kto and reward"
    if isinstance(columns.get("label"), bool):
        return "kto, oreo and rft"
    if "reward" in columns and "completion" in columns:
        return "oreo and rft"
    return "sft" if "completion" in columns else "grpo and other RL methods with a --reward"
