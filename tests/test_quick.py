"""`make quick`: which tests a change asks for."""

from pathlib import Path

import pytest

from scripts import quick


@pytest.mark.parametrize("files, codes, asked, code", [
    (["minipost/methods/dr_grpo.py", "minipost/methods/es.py"], [0, 1], "[dr_grpo] or [es]", 1),
    (["minipost/methods/es.py"], [0, quick.NO_TESTS], "[es]", 0),
    (["minipost/methods/dpo.py"], [1], None, 1),
    (["minipost/methods/__init__.py", "minipost/methods/gone.py", "minipost/ops.py"], [0], None, 0),
])
def test_a_changed_method_is_held_to_its_gradient(monkeypatch, files, codes, asked, code):
    calls, codes = [], iter(codes)
    monkeypatch.chdir(Path(__file__).parents[1])
    monkeypatch.setattr(quick, "changed", lambda since: list(map(Path, files)))
    monkeypatch.setattr(quick, "pytest", lambda *given: calls.append(given) or next(codes))
    assert quick.main([]) == code
    assert "tests/test_floors.py" in calls[0]
    assert calls[1:] == ([("tests/test_gradients.py", "-k", asked)] if asked else [])
