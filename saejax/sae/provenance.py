"""Which model, hook and rows an SAE was trained on, and the refusal of any other."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saejax import artifacts
from saejax.activations.store import Store
from saejax.errors import InputError


def provenance(facts: Mapping[str, Any], hook: str) -> dict[str, Any]:
    """Say what an SAE belongs to that was trained on a store or a live source.

    Args:
        facts: what the manifest of the source says.
        hook: the hook that it reads.

    Returns:
        Facts for the manifest of the SAE's run.
    """
    return {
        "model": facts["model"],
        "model_fingerprint": facts["model_fingerprint"],
        "runtime": facts.get("runtime", "jax"),
        "hook": hook,
        "d_model": facts["hooks"][hook]["width"],
        "ledger_sha256": facts.get("ledger_sha256"),
    }


def require_store(folder: Path, store: Store) -> str:
    """Make sure that an SAE and a store belong together.

    Args:
        folder: run directory of the SAE.
        store: the store to encode.

    Returns:
        The hook that the SAE reads.

    Raises:
        InputError: the store is of another model or lacks the SAE's hook.
    """
    ours, theirs = artifacts.read_finished(folder, "sae")["facts"], store.manifest["facts"]
    if ours["model_fingerprint"] != theirs["model_fingerprint"] or ours["hook"] not in store.hooks:
        raise InputError(
            f"SAE {folder} reads {ours['hook']} of model {ours['model']} ({ours['model_fingerprint'][:12]}), "
            f"but store {store.path} holds {', '.join(store.hooks)} of model {theirs['model']} "
            f"({theirs['model_fingerprint'][:12]}); name a store of the SAE's model and hook"
        )
    return ours["hook"]
