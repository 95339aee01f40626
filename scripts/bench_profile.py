"""The part profile of BENCHMARKS.md: `python -m scripts.bench profile`.

Where one of two ranks spends its time in a GRPO step: one process of one thread does half of the
step's rows, while the other core is idle.  torch.profiler gives every operator's own time, and the
time that no operator accounts for is Python's.
"""

from statistics import median

from scripts.alternate import WARM
from scripts.bench_peer import (
    GROUP,
    LR,
    PROMPT_DIGITS,
    PROMPTS,
    Digits,
    follow,
    letter_share,
    main,
    own,
)
from scripts.bench_speed import parts_of, prepared
from scripts.pages import machine, table, write

RANKS = 2
PROFILED = 5  # steps with the profiler
PARTS = ("sampling", "training")
PYTHON = "Python, and starting operators"
KINDS = {
    "matrix products": "mm addmm addmm_ linear matmul _linear_pointwise",
    "batched products (attention)": "bmm baddbmm baddbmm_ "
    "_scaled_dot_product_flash_attention_for_cpu "
    "_scaled_dot_product_flash_attention_for_cpu_backward",
    "multiplications and sums": "mul mul_ add add_ sub sub_ div div_ addcmul addcmul_ addcdiv_ "
    "lerp_ pow sqrt sqrt_ rsqrt rsqrt_ square hypot hypot_ neg silu silu_ silu_backward sum mean "
    "minimum maximum clamp abs",
    "norms": "linalg_vector_norm norm _fused_rms_norm native_layer_norm rms_norm",
    "softmax and drawing tokens": "_softmax _softmax_backward_data _log_softmax "
    "_log_softmax_backward_data exp exp_ cumsum searchsorted nextafter argmax isin isnan any eq ne "
    "all bitwise_and bitwise_not __and__",
    "copies": "copy_ cat fill_ zero_ gather index index_select index_put_ _index_put_impl_ "
    "masked_fill_ masked_scatter_ masked_select embedding_dense_backward index_add_ scatter_ "
    "scatter_add_ roll nonzero _local_scalar_dense",
    "views and memory": "view slice select narrow transpose t expand as_strided unsqueeze squeeze "
    "split split_with_sizes chunk unbind reshape flatten unflatten _unsafe_view _reshape_alias "
    "empty empty_like empty_strided view_as_complex view_as_real resolve_conj resolve_neg detach "
    "alias clone contiguous to _to_copy zeros zeros_like new_zeros new_empty",
}
KIND = {name: kind for kind, names in KINDS.items() for name in names.split()}


def kind_of(name):
    """The kind of an event: an operator is aten::NAME or mkldnn::NAME, all else is Python's."""
    space, _, operator = name.partition("::")
    if space not in ("aten", "mkldnn"):
        return PYTHON
    return KIND.get(operator, "other operators")


def tally(events, walls, plain, steps=1):
    """{part: {kind: (seconds, calls)}} of a step.  The seconds of a part add up to plain[part].

    events: (name, part, own seconds) of so many steps, walls: {part: seconds} of these.
    plain: {part: seconds} of a step without the profiler, which makes every operator slower.  So
    all seconds are scaled by the same factor.
    """
    found = {part: {} for part in walls}
    for name, part, seconds in events:
        kind = kind_of(name)
        if kind != PYTHON:
            before = found[part].get(kind, (0.0, 0))
            found[part][kind] = (before[0] + seconds, before[1] + 1)
    for part, kinds in found.items():
        kinds[PYTHON] = (walls[part] - sum(seconds for seconds, _ in kinds.values()), 0)
        for kind, (seconds, calls) in kinds.items():
            kinds[kind] = (seconds / walls[part] * plain[part], calls / steps)
    return found


def own_profile(args):
    """`tally` of a step of one rank, and its seconds without the profiler."""
    from torch.profiler import ProfilerActivity, profile, record_function

    from minipost.methods import grpo

    cfg = grpo.Config(steps=args.steps, prompts=PROMPTS // RANKS, group_size=GROUP,
                      minibatch_size=PROMPTS * GROUP, beta=0.0, lr=LR)

    def work(run):
        learn = grpo.train(run, cfg)
        plain, complete = parts_of(follow(run, learn, args.steps)), run.complete

        def marked(*given, **options):
            with record_function("sampling"):
                return complete(*given, **options)

        run.complete = marked
        with profile(activities=[ProfilerActivity.CPU]) as profiler, record_function("steps"):
            follow(run, learn, PROFILED)
        events = profiler.events()
        ranges = [event.time_range for event in events if event.name == "sampling"]
        whole, = (event.time_range for event in events if event.name == "steps")

        def part(event):
            inside = any(r.start <= event.time_range.start < r.end for r in ranges)
            return "sampling" if inside else "training"

        sampling = sum(r.end - r.start for r in ranges) / 1e6
        walls = {"sampling": sampling, "training": (whole.end - whole.start) / 1e6 - sampling}
        found = tally([(event.name, part(event), event.self_cpu_time_total / 1e6)
                       for event in events if event.name not in ("sampling", "steps")],
                      walls, plain, PROFILED)
        return {"kinds": found, "plain": plain,
                "slower": sum(walls.values()) / PROFILED / sum(plain[part] for part in PARTS)}

    return own(work, args, Digits(PROMPT_DIGITS), letter_share, workers=1)


def lines(results):
    """The table's lines, medians over the results; a kind's share of its part in brackets."""
    rows = []
    for kind in [*KINDS, "other operators", PYTHON]:
        cells = [kind]
        for part in PARTS:
            seconds, calls = (median(result["kinds"][part].get(kind, (0.0, 0))[k]
                                     for result in results) for k in (0, 1))
            share = seconds / median(result["plain"][part] for result in results)
            cells += [f"{1000 * seconds:.1f} ms ({share:.0%})", f"{calls:,.0f}" if calls else ""]
        rows.append(cells)
    rows.append(["in all", *(cell for part in PARTS for cell in (
        f"{1000 * median(result['plain'][part] for result in results):.1f} ms", ""))])
    return rows


def profile(args):
    """Where the time of one rank's GRPO step goes."""
    with prepared(args, "own") as bench:
        if bench is None:
            return
        found = bench.rounds(3, own=lambda _: bench.job(
            "own", "profile", WARM + 1 if args.quick else 15, module="scripts.bench_profile",
            OMP_NUM_THREADS="1"))["own"]
    write(args.out, "profile", [
        "## Where a GRPO step spends its time", "", machine(), "",
        f"`python -m scripts.bench profile`: {PROMPTS // RANKS * GROUP} rows, the share of one of "
        f"{RANKS} ranks, in one process of one thread with the other core idle; otherwise the GRPO "
        "step of the part `speed`.", "",
        *table(["operators", "sampling", "calls", "training and update", "calls"], lines(found)),
        "",
        "The own time of each operator by torch.profiler, mean over "
        f"{PROFILED} steps.  The profiler makes a step "
        f"{median(result['slower'] for result in found):.2f} times as long, and short operators "
        "more than long ones.  All times of a part are scaled by the same factor, so that they "
        "add up to its time without the profiler.  So products err to the low side and Python to "
        "the high side.  Medians over 3 fresh processes.",
    ])


JOBS = {"own": {"profile": own_profile}}

if __name__ == "__main__":
    main(JOBS)
