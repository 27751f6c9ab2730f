from pathlib import Path

from saejax.models.hook_table import EXAMPLES, tables

PAGE = Path(__file__).parents[2] / "saejax" / "models" / "hook_points.md"


def test_the_page_holds_the_tables_of_the_families() -> None:
    page = PAGE.read_text()
    assert tables() in page, "run python scripts/hook_points.py"
    for title in EXAMPLES:
        assert f"## {title}\n" in page


def test_the_last_hidden_state_is_told_apart() -> None:
    found = tables()
    assert "| `resid_post.L` | `hidden_states[L + 1]` | `bert.encoder.layer.L:output`" in found
    assert "| `resid_post.L` | `hidden_states[L + 1], L < n - 1` | `transformer.h.L:output`" in found
