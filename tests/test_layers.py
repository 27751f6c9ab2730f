"""Who may import whom: the layers of the house, read from the source of every module."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BASE = {"errors", "types", "rng", "progress", "preemption", "storage", "claim", "artifacts", "mesh"}
GROUND = {"errors", "types", "rng"}
MAY_IMPORT = {
    "errors": set(),
    "types": set(),
    "rng": set(),
    "progress": set(),
    "preemption": {"errors"},
    "storage": {"errors"},
    "claim": {"errors", "storage"},
    "artifacts": GROUND | {"storage"},
    "mesh": GROUND,
    "text": BASE,
    "models": BASE,
    "activations.store": BASE,
    "activations.writer": BASE,
    "activations": BASE | {"text", "models"},
    "sae": BASE | {"activations", "kernels"},
    "features": BASE | {"activations", "sae"},
    "interventions": BASE | {"text", "models", "activations", "sae"},
    "similarity": GROUND | {"kernels"},
    "nulls": BASE | {"similarity", "kernels"},
    "pretraining": BASE | {"text", "models", "report"},
    "universality": BASE | {"features", "nulls"},
    "report": BASE | {"text", "activations", "features"},
    "demo": BASE | {"text", "activations", "sae", "features", "universality", "report"},
    "sweep": BASE | {"sae", "report"},
    "stats": BASE | {"activations", "report"},
    "cli": {"errors"},
}


def modules() -> list[tuple[str, Path]]:
    files = sorted((ROOT / "saejax").rglob("*.py"))
    return [(".".join(file.relative_to(ROOT / "saejax").with_suffix("").parts), file) for file in files]


def room_of(module: str) -> str:
    return module if module in MAY_IMPORT else module.partition(".")[0]


def imported(file: Path) -> set[str]:
    """Return our modules that a file imports anywhere in it, without the leading `saejax.`."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    ours = {name.removeprefix("saejax.") for name in found if name.startswith("saejax.")}
    return ours | {"kernels" for name in found if name.startswith("saejax_kernels")}


@pytest.mark.parametrize(("module", "file"), modules(), ids=[name for name, _ in modules()])
def test_a_module_imports_only_what_its_room_may(module: str, file: Path) -> None:
    room = room_of(module)
    if room == "__init__":
        return
    rooms = {room_of(name) for name in imported(file)} - {room, room.partition(".")[0]}
    allowed = MAY_IMPORT[room]
    assert rooms <= allowed, f"{module} imports {sorted(rooms - allowed)}"


def test_kernels_know_nothing_of_saejax() -> None:
    for file in (ROOT / "kernels").rglob("*.py"):
        assert not [name for name in imported(file) if name != "kernels"], file


def test_every_module_has_a_docstring() -> None:
    for name, file in modules():
        assert ast.get_docstring(ast.parse(file.read_text())), name
