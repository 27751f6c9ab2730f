"""A step on many devices is the step on one, to the rounding of float32."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("sharded_steps.py")


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run([sys.executable, SCRIPT], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("mesh", ["1x8", "2x4", "8x1"])
def test_a_spread_step_is_the_step_on_one_device(report: dict[str, Any], mesh: str) -> None:
    assert report[mesh]["worst"] < 2e-5
    assert report[mesh]["metrics"] < 1e-5


@pytest.mark.parametrize("kind", ["layer_norm", "zca"])
def test_a_spread_step_normalises_as_one_on_one_device(report: dict[str, Any], kind: str) -> None:
    assert report[kind] < 2e-5


@pytest.mark.parametrize("mesh", ["1x8", "2x4", "8x1"])
def test_ties_of_the_distributed_top_k_go_to_the_lowest_latents(report: dict[str, Any], mesh: str) -> None:
    assert report[mesh]["ties"]


@pytest.mark.parametrize("mesh", ["1x8", "2x4", "8x1"])
def test_the_recall_is_that_of_the_search_of_each_device(report: dict[str, Any], mesh: str) -> None:
    assert report[mesh]["recall"] < 1e-6


def test_more_were_dead_than_aux_k_takes_at_once(report: dict[str, Any]) -> None:
    """Else nothing is proved about AuxK on many devices, and about turns."""
    assert max(report["dead"]) > 48
    assert max(report["aux"]) > 0
