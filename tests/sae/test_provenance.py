from pathlib import Path

import planted
import pytest

from saejax import artifacts
from saejax.errors import InputError
from saejax.sae.provenance import provenance, require_store


@pytest.fixture
def sae_folder(tmp_path) -> Path:
    store = planted.store_of(planted.activations(300, planted.atoms(4, 8), 2), tmp_path / "store", model="first")
    run = artifacts.begin(tmp_path / "sae", "sae", planted.PlantedConfig(1))
    run.finish(**provenance(store.manifest["facts"], planted.HOOK))
    return run.path


def test_facts_name_the_model_and_the_hook(sae_folder):
    facts = artifacts.read_manifest(sae_folder)["facts"]
    assert (facts["model"], facts["hook"], facts["d_model"]) == ("first", planted.HOOK, 4)
    assert len(facts["ledger_sha256"]) == 64


def test_another_store_of_the_same_model_and_hook_is_accepted(sae_folder, tmp_path):
    other = planted.store_of(planted.activations(200, planted.atoms(4, 8), 2), tmp_path / "other", model="first")
    assert require_store(sae_folder, other) == planted.HOOK


def test_a_store_of_another_model_is_refused_naming_both(sae_folder, tmp_path):
    other = planted.store_of(planted.activations(200, planted.atoms(4, 8), 2), tmp_path / "other", model="second")
    with pytest.raises(InputError) as refusal:
        require_store(sae_folder, other)
    message = str(refusal.value)
    assert "\n" not in message
    for part in (str(sae_folder), "of model first", str(other.path), "of model second", "name a store of"):
        assert part in message


def test_a_store_without_the_hook_is_refused(sae_folder, tmp_path):
    x = planted.activations(200, planted.atoms(4, 8), 2)
    other = planted.store_of(x, tmp_path / "other", model="first", hook="mlp_out.0")
    with pytest.raises(InputError, match=r"reads resid_post\.0 of model first .* holds mlp_out\.0"):
        require_store(sae_folder, other)
