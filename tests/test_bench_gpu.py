"""The benchmark for a GPU, on a CPU at a tiny size: its jobs and its table."""

from argparse import Namespace
from dataclasses import replace

import pytest
import torch

from minipost.engine import decode_cuda
from minipost.gpt import GPT, GPTConfig
from scripts import bench_gpu
from scripts.bench_gpu import JOBS, NEEDS, Job, as_large_as_fits, even, halves, update_flops, words

SHAPE = GPTConfig(67, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                  num_attention_heads=4, num_key_value_heads=2, head_dim=4,
                  max_position_embeddings=64)
TINY = Job(SHAPE, device="cpu", dtype=torch.float32, prompts=2, group_size=4, prompt=4, new=6,
           many=16, steps=1, mixed=3, checked=12)
OURS = [name for name in JOBS if name not in NEEDS]


@pytest.fixture(autouse=True)
def decode_as_a_gpu_does(monkeypatch):
    monkeypatch.setattr(decode_cuda, "DEVICES", ("cpu",))


def noted(name, job=TINY):
    notes = {}
    JOBS[name](job, lambda **found: notes.update(found))
    return notes


def test_the_check_finds_that_the_static_step_is_right_and_that_it_is_wrong(monkeypatch):
    found = noted("check")
    assert found["whole"] < 1e-5 and found["eager"] < 1e-5 and found["equal"] == 1
    assert found["tokens"] > 100 and found["bfloat16"] > 1e-5
    rotate = decode_cuda.rotate
    monkeypatch.setattr(decode_cuda, "rotate", lambda x, cos, sin: rotate(x, cos, -sin))
    found = noted("check")
    assert min(found["whole"], found["eager"]) > 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_is_the_sum_of_its_parts(dtype):
    found = noted("step", replace(TINY, dtype=dtype))
    parts = [found[name] for name in ("sampling", "reward", "update")]
    assert found["step"] == pytest.approx(sum(parts) + found.get("recomputed", 0.0))
    assert ("recomputed" in found) == (dtype == torch.bfloat16)
    assert 0 < found["length"] <= 6 and found["micro_batch_size"] == 8


def test_sampling_notes_what_the_table_shows():
    found, keys = noted("sampling"), {"few", "many", "unrecorded"}
    assert found.keys() == keys and min(found.values()) > 0
    assert keys <= {key for _, job, key, *_ in bench_gpu.ROWS if job == "sampling"}


def test_a_micro_batch_that_does_not_fit_is_halved(monkeypatch):
    tried = []
    monkeypatch.setattr(bench_gpu, "forget", lambda: None)

    def work(size):
        tried.append(size)
        if size > 16:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return size

    assert halves(64) == [64, 32, 16, 8] and as_large_as_fits(halves(64), work) == 16
    assert tried == [64, 32, 16]
    with pytest.raises(RuntimeError, match="of 32 do not fit: CUDA out of memory"):
        as_large_as_fits([64, 32], work)


def test_floating_point_operations_are_counted_from_the_weights():
    """Six per weight and token, embedding rows looked up for nothing; and the causal half."""
    model = GPT(SHAPE)
    matrices = sum(p.numel() for name, p in model.named_parameters()
                   if p.dim() == 2 and "embed" not in name)
    read = 4 + 6 - 1
    attended = sum(range(1, read + 1)) * 2 * SHAPE.num_attention_heads * SHAPE.head_dim
    expected = 6 * (matrices * read + model.embed_tokens.weight.numel() * 6
                    + SHAPE.num_hidden_layers * attended)
    assert update_flops(SHAPE, 4, 6) == expected


def test_the_shapes_are_those_of_the_public_models():
    def size(c):
        heads = 2 * (c.num_attention_heads + c.num_key_value_heads) * c.head_dim
        layer = c.hidden_size * (heads + 3 * c.intermediate_size + 2)
        return c.hidden_size * (c.vocab_size + 1) + c.num_hidden_layers * layer

    assert size(SHAPE) == sum(p.numel() for p in GPT(SHAPE).parameters())
    assert {name: size(config) for name, config in bench_gpu.SHAPES.items()} == {
        "SmolLM2-135M": 134_515_008, "0.5B": 494_005_120}


def test_the_made_up_words_are_one_token_each():
    run = bench_gpu.make_run(TINY)
    problem = run.task.sample(1)[0]
    ids = run.vocabulary.prompt(problem.prompt)
    assert len(ids) == TINY.prompt and [str(i) for i in ids[1:]] == problem.prompt.split()
    assert words(67).get_vocab_size() == 67 and run.vocabulary.decode([0, 1, 2, 5, 66]) == "5 66"
    assert even([], ["4 6 7 8", "", "5"]) == [0.75, 0.0, 0.0]


# ---- the part

@pytest.fixture
def part(monkeypatch, tmp_path):
    """Run the part with jobs in this process: its table.  Jobs may be given as functions."""
    def run(seconds=0.0, **jobs):
        jobs = {**{name: (lambda name=name: noted(name)) for name in OURS}, **jobs}
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(bench_gpu, "peak_memory", lambda: 1.5)
        monkeypatch.setattr(bench_gpu, "peak_flops", lambda: 1e9)
        monkeypatch.setattr(bench_gpu, "forget", lambda: None)
        monkeypatch.setattr(bench_gpu, "card", lambda: "a card, driver 1")
        monkeypatch.setattr(bench_gpu.time, "monotonic", iter(
            [0.0, *[0.0] * 3, *[seconds] * 20]).__next__)
        monkeypatch.setattr(bench_gpu, "run_job", lambda name, shape, limit: jobs[name]())
        monkeypatch.setattr(bench_gpu, "machine", lambda: "a machine")
        out = tmp_path / "report.md"
        bench_gpu.gpu(Namespace(out=out))
        return out.read_text()
    return run


def test_the_table_has_all_that_was_measured_and_why_the_rest_was_not(part, monkeypatch, capsys):
    monkeypatch.setattr(bench_gpu.importlib.util, "find_spec",
                        lambda name: None if name == "trl" else name)
    text = part(peer_sampling=lambda: {"few": 10.0, "many": 20.0, "transformers": "5",
                                       "failed": "an error | with a bar"})
    assert "a card, driver 1" in text and "transformers 5" in text
    lines = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    found = {(cells[0][2:], cells[1]): cells[2:] for cells in lines if len(cells) == 5}
    for shape in bench_gpu.SHAPES:
        own, peer, ratio = found[shape, "sampling, 512 rows: tokens/s"]
        assert float(ratio.rstrip("| ")) == pytest.approx(float(own.replace(",", "")) / 20, 0.01)
        assert found[shape, "update, model FLOPs utilisation"][0].endswith("%")
        assert found[shape, "peak memory of GRPO steps, GiB"][0] == "1.5"
        assert (shape, "peer_step: skipped, trl cannot be imported here") in found
    assert ("SmolLM2-135M", "peer_sampling: an error / with a bar") in found
    assert "largest difference of log-probs from the whole pass | " in text
    assert "peer_step" not in [line.split(",")[0] for line in capsys.readouterr().out.splitlines()]


def test_no_job_begins_after_the_time_is_up(part):
    text = part(seconds=451.0)
    assert "step: left out, 7.5 minutes had passed" in text
    assert "check: left out" not in text and "tokens compared" in text


def test_what_was_measured_is_written_when_the_part_is_broken_off(part, tmp_path):
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        part(step=stop)
    text = (tmp_path / "report.md").read_text()
    assert "sampling, 64 rows: tokens/s" in text and "GRPO step |" not in text


def test_a_job_that_fails_keeps_what_it_had_noted(monkeypatch, tmp_path):
    """In a process of its own: an error, its last line, and what was noted before."""
    code = tmp_path / "scripts" / "bench_gpu.py"
    code.parent.mkdir()
    code.write_text("import sys, time\nopen(sys.argv[5], 'w').write('{\"few\": 1.0}')\n"
                    "time.sleep(60 if sys.argv[1] == 'check' else 0)\nraise ValueError('no')\n")
    monkeypatch.setattr(bench_gpu, "ROOT", tmp_path)
    assert bench_gpu.run_job("sampling", "0.5B", 60) == {"few": 1.0, "failed": "ValueError: no"}
    assert bench_gpu.run_job("check", "0.5B", 0.5)["failed"] == "it was ended after 0 s"


def test_without_a_gpu_the_part_says_so_and_writes_nothing(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    bench_gpu.gpu(Namespace(out=tmp_path / "report.md"))
    assert capsys.readouterr().out.count("no CUDA device\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_part_needs_no_parser_of_flags(python):
    """The machine that it is run on may lack what only the command lines need."""
    done = python("-c", "import sys\nsys.modules['tyro'] = None\nimport scripts.bench")
    assert done.returncode == 0, done.stderr
