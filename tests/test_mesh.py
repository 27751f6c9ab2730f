"""Which devices a process of a job takes, by what its launcher says."""

import os
import socket
import subprocess
import sys
from typing import Any

import jax
import pytest

from saejax import mesh
from saejax.errors import InputError

SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
PER_NODE, PER_DEVICE = {"SLURM_NTASKS": "4"}, {"SLURM_NTASKS": "32"}
OPEN_MPI = {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://127.0.0.1:34911", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}
FOUR_NODES = {**SLURM, "SLURM_STEP_NUM_NODES": "4"}
ALL_IT_SEES, JAX_CHOOSES = [], None

JOIN = 'import jax; from saejax import mesh; mesh.join(); print(jax.config.read("jax_cuda_visible_devices"))'


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away what a launcher that runs these tests may have said."""
    for name in os.environ:
        if name.startswith(("SLURM_", "OMPI_", "JAX_LOCAL_DEVICE_IDS", "KUBERNETES_")):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("environment", "devices"),
    [
        ({**FOUR_NODES, **PER_NODE}, ALL_IT_SEES),
        ({**FOUR_NODES, **PER_DEVICE}, JAX_CHOOSES),
        ({**FOUR_NODES, **PER_NODE, "JAX_LOCAL_DEVICE_IDS": "4,5"}, JAX_CHOOSES),
        ({**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, ALL_IT_SEES),
        ({**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "8"}, JAX_CHOOSES),
        ({**FOUR_NODES, **PER_NODE, **OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "8"}, JAX_CHOOSES),
        ({}, JAX_CHOOSES),
    ],
)
@pytest.mark.usefixtures("elsewhere")
def test_a_process_takes_all_devices_where_it_is_alone_on_its_node(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], devices: list[int] | None
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(jax.distributed, "initialize", given.update)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    mesh.join()
    assert given == {"local_device_ids": devices}


@pytest.mark.usefixtures("elsewhere")
def test_jax_takes_all_devices_of_a_process_that_slurm_started_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    alone = {**SLURM, "SLURM_NTASKS": "1", "SLURM_STEP_NUM_NODES": "1", "JAX_COORDINATOR_PORT": port}
    environment = {**os.environ, **alone, "JAX_PLATFORMS": "cpu"}
    joined = subprocess.run(
        [sys.executable, "-c", JOIN], env=environment, capture_output=True, text=True, timeout=100, check=True
    )
    assert joined.stdout == "all\n"


def test_a_process_that_nobody_started_is_told_who_can(monkeypatch: pytest.MonkeyPatch) -> None:
    def initialize(**_: Any) -> None:
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    with pytest.raises(InputError, match=r"\(coordinator_address should be defined\); .* leave multiprocess out"):
        mesh.join()
