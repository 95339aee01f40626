"""Imports go only down: a file may import from lower floors and, where said, from its own."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1] / "minipost"

# Floor of each module or folder; the test fails for a file that has no floor.
FLOORS = {
    "errors": 0, "ops": 0, "parallel": 0, "stats": 0,
    "gpt": 1, "tokenizer": 1, "tasks": 1, "test_time": 1,
    "rollout": 2, "checkpoint": 2, "run": 2, "texts": 2.2, "preferences": 2.2, "trajectories": 2.4, "scorers": 2.4,
    "checkup": 2.5, "pairwise": 2.6, "checkup_data": 2.6,
    "methods": 3, "proof": 3.5,
    "console": 4, "session": 4, "train": 4, "inference": 4, "evaluate": 4, "solve": 4, "doctor": 4, "prove": 4,
}
# The pipelines, which are made of other methods: whom they may call.
STAGES = {"methods.ppo": ("sft", "reward"), "methods.rlaif": ("sft", "ppo", "dpo")}
SAME_FLOOR = {(0, "errors"), (2, "rollout"), (4, "console"), (4, "session"), (4, "train"),
              (4, "evaluate"), (4, "inference")}


def imports(path):
    """Modules of minipost that a file imports, anywhere in it, as dotted names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("minipost"):
            for alias in node.names:
                yield ".".join([*node.module.split(".")[1:], alias.name])
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.removeprefix("minipost.") if "minipost" in alias.name else \
                    f"!{alias.name}"
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield f"!{node.module}"


def floor_of(name):
    return FLOORS.get(name.split(".")[0])


def trespasses(path, names):
    """The imports of a file that go up, sideways without leave, or across two methods."""
    home = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
    for name in names:
        head = name.lstrip("!").split(".")[0]
        if name.startswith("!"):
            if head == "torch" and home.split(".")[0] in ("tasks", "test_time"):
                yield f"{home} imports torch"
        elif (floor := floor_of(name)) is not None:
            same = floor == floor_of(home)
            if floor > floor_of(home):
                yield f"{home} (floor {floor_of(home)}) imports {name} (floor {floor})"
            elif same and head in ("methods", "test_time") and home != head:
                if name.split(".")[1] not in STAGES.get(home, ()):
                    yield f"{home} imports {name}: methods do not import each other"
            elif same and head != home.split(".")[0] and (floor, head) not in SAME_FLOOR:
                yield f"{home} imports {name} of its own floor"


def test_imports_go_only_down():
    files = [p for p in ROOT.rglob("*.py") if p.name != "__init__.py"]
    assert len(files) > 10
    for path in files:
        assert floor_of(path.relative_to(ROOT).with_suffix("").parts[0]) is not None, path
    found = [t for path in files for t in trespasses(path, imports(path))]
    assert not found, "\n".join(found)


def test_the_check_sees_each_kind_of_trespass():
    for home, name in (("ops", "gpt"), ("tasks/facts", "rollout.load"), ("methods/sft",
                       "methods.grpo.loss"), ("tasks/facts", "!torch"), ("gpt", "tokenizer"),
                       ("rollout", "run.Run"), ("methods/sft", "train.main")):
        assert list(trespasses(ROOT / f"{home}.py", [name])), (home, name)
    for home, name in (("methods/sft", "ops.spread"), ("train", "console.Console"),
                       ("gpt", "!torch"), ("tasks/facts", "tasks.base.Problem")):
        assert not list(trespasses(ROOT / f"{home}.py", [name])), (home, name)


def test_nothing_is_ever_unpickled_or_evaluated():
    for path in [*ROOT.rglob("*.py"), *(ROOT.parent / "scripts").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "torch.load", "torch.save"), (path, called)
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names]
                assert "pickle" not in names and getattr(node, "module", "") != "pickle", path
