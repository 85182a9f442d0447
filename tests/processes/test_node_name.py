from __future__ import annotations

import pytest

from hpcpool.processes.node_name import node_name


@pytest.mark.parametrize(
    ("environment", "name"),
    [({"SLURMD_NODENAME": "n0412"}, "n0412"), ({"SLURMD_NODENAME": ""}, "host.cluster"), ({}, "host.cluster")],
)
def test_a_node_of_slurm_is_called_as_slurm_calls_it(environment, name):
    assert node_name(environment, "host.cluster") == name
