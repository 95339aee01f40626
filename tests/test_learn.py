"""docs/learn.md: its code is that of the files, its exercises tell right from wrong."""

import re
from pathlib import Path

import pytest
import torch
from museum.exhibits import EXHIBITS
from museum.gallery import with_bug
from torch.nn.functional import logsigmoid

from minipost.errors import MinipostError
from minipost.measure.stats import pass_at_k
from minipost.ops import clipped_surrogate, gae, kl_k3, masked_sum, row_means, row_sums
from scripts import learn as package
from scripts.learn import __main__ as learn
from scripts.learn import exercises, page
from scripts.learn.differences import difference, read
from scripts.learn.exercises import EXERCISES, check

ROOT = Path(__file__).resolve().parents[1]
TEXT = page.PAGE.read_text(encoding="utf-8")


# ---- the page

def test_the_page_shows_the_code_as_it_is():
    assert page.fill(TEXT) == TEXT, "run `make learn`"
    assert TEXT.count("<!-- code: ") >= 10


def test_a_stale_or_empty_block_is_filled():
    mark = '<!-- code: minipost/measure/stats.py pass_at_k -->\n'
    whole = mark + "```python\ndef pass_at_k(n, c, k):\n" \
                   "    return 1.0 - math.comb(n - c, k) / math.comb(n, k)\n```"
    assert page.fill(f"a\n{mark}\nb") == f"a\n{whole}\n\nb"
    assert page.fill(f"{mark}```python\nold\n```\nb") == f"{whole}\nb"


def test_a_block_may_be_some_lines_without_their_indent():
    found = page.block('minipost/measure/stats.py vote from "for answer" to "+ weight"')
    assert found.startswith("for answer, weight in")
    assert found.splitlines()[-1].startswith("        total")
    found = page.block('minipost/ops.py whiten from "gap = " to "mask"')     # not an earlier "mask"
    assert found.startswith("gap = ") and len(found.splitlines()) == 1


@pytest.mark.parametrize("mark, said", [
    ("minipost/none.py f", "there is no file minipost/none.py"),
    ("minipost/ops.py none", "minipost/ops.py has no function or class none"),
    ('minipost/ops.py whiten from "count" to "nothing"', "whiten in minipost/ops.py has no such"),
])
def test_a_mark_of_what_is_not_there_is_told(mark, said):
    with pytest.raises(MinipostError, match=said):
        page.block(mark)


def test_the_page_and_the_folder_have_the_same_exercises():
    assert set(re.findall(r"make exercise-([\w-]+)", TEXT)) == set(EXERCISES)
    files = {path.stem.replace("_", "-") for path in (ROOT / "docs" / "exercises").glob("*.py")}
    assert files == set(EXERCISES)
    kinds = [bool(e.bug) for e in EXERCISES.values()]
    assert sum(kinds) >= 5 and len(kinds) - sum(kinds) >= 5


def test_the_pages_links_lead_somewhere():
    for link in re.findall(r"\]\(([^)#]+)", TEXT):
        assert link.startswith("https://") or (page.PAGE.parent / link).exists(), link


def test_the_page_shows_what_the_check_says():
    given = learn.answer("cut", learn.template("cut"), "loss")
    said = "".join(f"\n  {sentence}" for sentence in check(EXERCISES["cut"], given)[1])
    assert f"```\ncut: not yet.{said}\n```" in TEXT


def test_math_is_written_as_github_reads_it():
    """A formula ends on its line, dollars stand at its edges, and no sign of Markdown is in it."""
    for line in re.sub(r"```.*?```|`[^`\n]*`", "", TEXT, flags=re.S).splitlines():
        parts = line.split("$")
        assert len(parts) % 2, line
        for formula in parts[1::2]:
            assert formula == formula.strip(), line
            assert not re.search(r"[*|<~]|\\[,;{}|!]", formula), line


def test_the_package_says_what_its_files_are():
    files = {path.name for path in Path(package.__file__).parent.glob("*.py")} - {"__init__.py"}
    assert files == set(re.findall(r"^    (\w+\.py)", package.__doc__, re.M))


# ---- the exercises: a right answer

@pytest.mark.parametrize("name", EXERCISES)
def test_the_real_function_is_right(name):
    right, said = check(EXERCISES[name], EXERCISES[name].real)
    assert right and not [each for each in said if "differ" in each or "wrong" in each], said


@pytest.mark.parametrize("name", EXERCISES)
def test_what_the_learner_is_given_is_not_right_yet(name):
    given = learn.answer(name, learn.template(name), EXERCISES[name].function)
    right, said = check(EXERCISES[name], given)
    assert not right and said
    assert said[0].startswith("Nothing to check yet: write the body") == (not EXERCISES[name].bug)


@pytest.mark.parametrize("name", [e.name for e in EXERCISES.values() if e.bug])
def test_a_bug_to_find_is_the_museums(name):
    exercise = EXERCISES[name]
    bug = next(each for each in EXHIBITS if each.name == exercise.bug)
    assert bug.where == exercise.solution
    ours = learn.answer(name, learn.template(name), exercise.function)
    assert difference(ours, with_bug(exercise.real, bug.bug), exercise.cases(), exercise.returns,
                      exercise.learnt) == ""


# ---- and wrong ones

def pg(logp, adv, mask, *, count):
    return -masked_sum(adv[:, None] * logp, mask) / count


def gradient(w=1.0, side=1.0, pull=1.0, m=1.0):
    """Of the reward model's loss, with parts of it changed."""
    def f(score_w, score_l, *, margin, center, count):
        push = torch.sigmoid(m * margin - score_w + score_l)
        both = pull * 2 * center * (score_w + score_l)
        return {"score_w": w * (both - push) / count, "score_l": w * (both + side * push) / count}
    return f


def of_pairs(sums=row_sums, sign=1, ref=1, masked=True):
    def f(logp_w, logp_l, ref_w, ref_l, mask_w, mask_l, *, beta, count):
        if not masked:
            mask_w, mask_l = torch.ones_like(mask_w), torch.ones_like(mask_l)
        gap = sums(logp_w - ref * ref_w, mask_w) - sums(logp_l - ref * ref_l, mask_l)
        return -logsigmoid(sign * beta * gap).sum() / count
    return f


def group_mean(reward, group_size):
    group = reward.view(-1, group_size)
    return (group - group.mean(1, keepdim=True)).flatten()


def search(good):
    def f(evaluate, old, step, delta, shrink, tries):
        for k in range(tries):
            weights = old + shrink**k * step
            gain, kl = evaluate(weights)
            if good(gain, kl, delta):
                return weights, k, gain, kl
        return old, tries, 0.0, 0.0
    return f


def residuals(*given):
    return EXERCISES["oreo"].real(*given)


def paid_twice(logp, value, logp_held, value_held, logp_ref, reward, mask, starts, beta):
    return residuals(logp, value, logp_held, value_held, logp_ref, 2 * reward, mask, starts, beta)


def paid_for_kl(logp, value, logp_held, value_held, logp_ref, reward, mask, starts, beta):
    return residuals(logp, value, logp_held, value_held, logp_ref, reward, mask, starts, -beta)


def by_hand(real, **changed):
    """The real function for other arguments."""
    return lambda **given: real(**{**given, **{k: f(given) for k, f in changed.items()}})


WRONG = [
    ("cut", lambda logp, mask, *, count: masked_sum(logp, mask) / count, "has the wrong sign"),
    ("cut", lambda logp, mask, *, count: -logp.sum() / count,
     "wrong only off the mask, that is on the prompt and on padding"),
    ("cut", lambda logp, mask, *, count: -row_means(logp, mask).sum() / len(mask),
     "divides by the number of rows times each answer's length where the equation divides by "
     "`count`"),
    ("reinforce", lambda logp, adv, mask, *, count: -pg(logp, adv, mask, count=count),
     "has the wrong sign"),
    ("reinforce", lambda logp, adv, mask, *, count: -(adv[:, None] * logp).sum() / count,
     "wrong only off the mask"),
    ("reinforce", lambda logp, adv, mask, *, count: pg(logp, adv, mask, count=len(mask)),
     "divides by the number of rows where the equation divides by `count`"),
    ("reinforce", lambda logp, adv, mask, *, count: pg(logp, adv.abs(), mask, count=count),
     "wrong only on answers with A below 0"),
    ("reinforce", lambda logp, adv, mask, *, count: pg(logp.exp(), adv, mask, count=count),
     "differs from the oracle's, most at"),
    ("reinforce", lambda logp, adv, mask, *, count: pg(logp.detach(), adv, mask, count=count),
     "has no gradient"),
    ("rloo", group_mean, "divides by G where the equation divides by G - 1"),
    ("rloo", group_mean, "is 0.500 times the exact gradient"),
    ("rloo", lambda reward, group_size: EXERCISES["rloo"].real(reward, len(reward)),
     "if `group_size` were the number of all rows"),
    ("rloo", lambda reward, group_size: reward.view(-1, group_size), "has shape (3, 2); expected"),
    ("kl", lambda logp, logp_ref: kl_k3(logp_ref, logp), "changed places"),
    ("kl", lambda logp, logp_ref: (logp - logp_ref).square() / 2, "differs from the oracle's"),
    ("kl", lambda logp, logp_ref: kl_k3(logp, logp_ref).detach(), "has no gradient"),
    ("clip", lambda logp, logp_old, adv, low, high: (logp - logp_old).exp() * adv,
     "wrong only where the clip must stop the gain"),
    ("clip", lambda logp, logp_old, adv, low, high:
        (logp - logp_old).exp().clamp(1 - low, 1 + high) * adv,
     "outside the clip but moving back would be a gain"),
    ("clip", lambda logp, logp_old, adv, low, high: clipped_surrogate(
        logp, logp_old, adv, low, low), "does not change with `high`"),
    ("gae", lambda reward, value, mask, gamma, lam: (reward - value).where(mask, 0.0),
     "on tokens that are not the last of their answer"),
    ("gae", by_hand(gae, lam=lambda given: 1.0), "does not change with `lam`"),
    ("gae", by_hand(gae, gamma=lambda given: 1.0), "does not change with `gamma`"),
    ("gae", by_hand(gae, mask=lambda given: torch.ones_like(given["mask"])),
     "if `mask` were true everywhere"),
    ("trust", search(lambda gain, kl, delta: kl <= delta), "differs"),
    ("trust", search(lambda gain, kl, delta: gain > 0 or kl <= delta), "over delta"),
    ("preference", gradient(w=-1.0), "has the wrong sign"),
    ("preference", gradient(m=0.0), "if `margin` were 0"),
    ("preference", gradient(pull=0.0), "if `center` were 0"),
    ("preference", gradient(side=-1.0), "Score_w is right"),
    ("dpo", of_pairs(sums=row_means), "if every sum over an answer's tokens were a mean"),
    ("dpo", of_pairs(sign=-1), "if the preferred answer and the other one changed places"),
    ("dpo", of_pairs(ref=0), "does not change with `ref_w` and `ref_l`"),
    ("dpo", of_pairs(masked=False), "does not change with `mask_w` and `mask_l`"),
    ("oreo", paid_twice, "differs from the oracle's"),
    ("oreo", paid_for_kl, "if `beta` had the other sign"),
    ("pass-at-k", lambda n, c, k: 1 - (1 - c / n) ** k, "differs from the oracle's"),
    ("pass-at-k", lambda n, c, k: 1 - pass_at_k(n, c, k), "differs from the oracle's"),
    ("pass-at-k", lambda n, c, k: c / n, "if `k` were 1"),
]


@pytest.mark.parametrize("name, wrong, sentence", WRONG)
def test_a_wrong_function_is_told_what_it_does(name, wrong, sentence, monkeypatch):
    monkeypatch.setattr(exercises, "SIZE", (4, 1))
    right, said = check(EXERCISES[name], wrong)
    assert not right and sentence in " ".join(said), said
    assert all(each[0].isupper() and each.endswith(".") for each in said), said


def test_each_exercise_has_two_wrong_answers_here():
    names = [name for name, _, _ in WRONG]
    assert all(names.count(name) >= 2 for name in EXERCISES)


def test_a_nan_behind_the_mask_is_a_remark_and_no_fault():
    right, said = check(EXERCISES["cut"], lambda logp, mask, *, count: -(logp * mask).sum() / count)
    assert right and "A remark: where padding holds a NaN" in said[-1]


def test_a_right_number_with_another_slope_is_told():
    def held(logp, adv, mask, *, count):
        half = pg(logp, adv, mask, count=count) / 2
        return half + half.detach()
    _, said = check(EXERCISES["reinforce"], held)
    assert "is 0.5 times the oracle's" in said[0] and "The number itself is right" in said[0]


@pytest.mark.parametrize("f, said", [
    (lambda x: None, "returns None"), (lambda x: {"b": x}, "has no 'a'"),
    (lambda x: x / 0, "not a finite number"), (lambda x: y, "stopped in line"),  # noqa: F821
])
def test_what_cannot_be_compared_is_told(f, said):
    from scripts.learn.differences import Case
    case = Case({"x": torch.ones((), dtype=torch.float64)})
    assert said in difference(f, lambda x: x, [case], ("a",))
    assert read(lambda x: x, case.given, ("a",), ())["a"] == 1


# ---- the command

def test_an_answer_is_copied_checked_mended_and_checked_again(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert learn.main(["check", "trust"]) == 1
    said = capsys.readouterr().out
    assert "is copied to runs/exercises/trust.py" in said and "trust: not yet." in said
    file = tmp_path / "runs" / "exercises" / "trust.py"
    file.write_text(file.read_text().replace("gain > 0", "gain > 0 and kl <= delta"))
    assert learn.main(["check", "trust"]) == 0
    said = capsys.readouterr().out
    assert all(part in said for part in ("trust: right.", "minipost/methods/trpo.py",
                                         "joschu/modular_rl#29"))
    assert learn.main(["check", "trust", str(learn.template("trust"))]) == 1
    assert learn.main(["check"]) == 0
    assert "pass-at-k" in capsys.readouterr().out


@pytest.mark.parametrize("text, said", [
    ("def f(:", "SyntaxError"), ("x = 1", "does not define line_search()"), (None, "no file")])
def test_a_file_without_an_answer_is_told(tmp_path, text, said):
    file = tmp_path / "mine.py"
    if text:
        file.write_text(text)
    with pytest.raises(MinipostError, match=re.escape(said)):
        learn.main(["check", "trust", str(file)])
    with pytest.raises(MinipostError, match="no exercise 'x'; there are cut, reinforce"):
        learn.main(["check", "x"])
