import io

import pytest
from rich.console import Console

from saejax import progress as module
from saejax.progress import progress


def test_a_bar_within_another_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two would write over each other; afterwards the next is shown again."""
    written = io.StringIO()
    monkeypatch.setattr(module, "Console", lambda stderr: Console(file=written, force_terminal=True, width=120))
    with progress("outer", total=2) as advance:
        with progress("inner", total=5) as inner:
            inner(5)
        advance()
    with progress("next", total=1) as advance:
        advance()
    assert "outer" in written.getvalue()
    assert "next" in written.getvalue()
    assert "inner" not in written.getvalue()
