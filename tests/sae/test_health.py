import json
import math

import jax
import numpy as np
import pytest

from saejax.sae.health import health_table
from saejax.sae.initial import initial_sae
from saejax.sae.metrics import Measured
from saejax.sae.params import SAE, SAEConfig


def made(d_sae: int, d_model: int = 64) -> SAE:
    sample = np.random.default_rng(0).normal(size=(100, d_model)).astype(np.float32)
    return initial_sae(SAEConfig(d_model, d_sae, 8), sample, jax.random.key(0))


def measured(d_sae: int, density: float, dead: float, fvu: float = 0.2) -> Measured:
    rates = np.zeros(d_sae)
    rates[round(dead * d_sae) :] = density / (1 - dead)
    return Measured(1000, 0.5, fvu, density * d_sae, 0.9, 2.0, rates, np.zeros(64))


def rows_of(sae: SAE, found: Measured) -> dict[str, dict]:
    return {row["metric"]: row for row in health_table(sae, found)}


def test_every_number_has_its_row():
    rows = rows_of(made(2560), measured(2560, density=0.05, dead=0.1))
    assert list(rows) == [
        "mse", "fvu", "r2", "l0", "capped", "density", "dead_rate", "gini", "decoder_cosine_mean", "decoder_cosine_p95",
        "decoder_cosine_max", "mean_active",
    ]  # fmt: skip
    assert rows["r2"]["value"] == 1 - rows["fvu"]["value"]
    assert rows["l0"]["value"] == pytest.approx(128)
    assert rows["density"]["value"] == pytest.approx(0.05)
    assert rows["dead_rate"]["value"] == pytest.approx(0.1)
    assert "1,000 tokens" in rows["dead_rate"]["unit"]


def test_numbers_inside_the_ranges_are_healthy_and_those_outside_come_with_advice():
    rows = rows_of(made(2560), measured(2560, density=0.05, dead=0.1))
    assert rows["density"]["verdict"] == rows["dead_rate"]["verdict"] == "healthy"
    assert rows["decoder_cosine_mean"]["verdict"] == rows["decoder_cosine_p95"]["verdict"] == "healthy"
    assert rows["gini"]["verdict"] == "low"  # 10 % dead, the others equal: G = 0.1
    assert "lower k" in rows["gini"]["advice"]
    assert rows["density"]["advice"] is None
    assert rows["fvu"]["verdict"] is None

    rows = rows_of(made(2560, d_model=2), measured(2560, density=0.005, dead=0.4))
    assert (rows["density"]["verdict"], rows["dead_rate"]["verdict"]) == ("low", "high")
    assert "raise k" in rows["density"]["advice"]
    assert "dead_window" in rows["dead_rate"]["advice"]
    assert rows["decoder_cosine_mean"]["verdict"] == "high"


@pytest.mark.parametrize(("d_sae", "judged"), [(1279, False), (1280, True), (5120, True), (5121, False)])
def test_a_verdict_is_given_only_near_the_size_the_ranges_were_made_at(d_sae, judged):
    rows = health_table(made(d_sae), measured(d_sae, density=0.9, dead=0.9))
    assert any(row["verdict"] for row in rows) == judged
    assert any(row["advice"] for row in rows) == judged
    assert all(row["value"] is not None for row in rows)


def test_undefined_numbers_are_none_so_that_the_table_is_json():
    found = Measured(10, 0.0, math.nan, 0.0, 0.0, math.nan, np.zeros(1), np.zeros(64))
    sae = initial_sae(SAEConfig(3, 1, 1), np.eye(3, dtype=np.float32), jax.random.key(0))
    rows = {row["metric"]: row for row in json.loads(json.dumps(health_table(sae, found), allow_nan=False))}
    undefined = {name for name, row in rows.items() if row["value"] is None}
    assert undefined == {
        "fvu", "r2", "gini", "mean_active", "decoder_cosine_mean", "decoder_cosine_p95", "decoder_cosine_max",
    }  # fmt: skip
