from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcpool import Config, ConfigError, sites
from hpcpool.launchers import usual_launcher
from hpcpool.providers import SSHProvider, option_checks
from hpcpool.providers.slurm import SlurmSystem
from hpcpool.providers.ssh.host_jobs import job_files
from tests.providers.answers import DATA, job
from tests.providers.test_batch_systems import SYSTEMS

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
FOLDER = "/home/me/.hpcpool/runs/hpcpool-x1/b1"

#: Each function with what a user must give, and something of what they may.
CONFIGS: dict[str, Config] = {
    "ad_hoc": sites.ad_hoc(["node1", "eve@node2:2222"], user="ada", identity="~/.ssh/cluster", workers_per_node=8),
    "cc_in2p3": sites.cc_in2p3(account="lsst", max_blocks=20),
    "cc_in2p3-hpc": sites.cc_in2p3(partition="hpc", nodes_per_block=2, licenses=None, scheduler_options="--hint=x"),
    "comet": sites.comet(account="abc123", nodes_per_block=2),
    "cooley": sites.cooley(project="proj", nodes_per_block=2),
    "cori": sites.cori(account="m1234", nodes_per_block=2),
    "cori-knl": sites.cori(account="m1234", constraint="knl", qos="debug", walltime="00:15:00"),
    "expanse": sites.expanse(account="abc123", nodes_per_block=2),
    "expanse-gpu": sites.expanse(account="abc123", partition="gpu", walltime="1-12:00:00"),
    "midway": sites.midway(account="pi-me", nodes_per_block=2),
    "open_science_pool": sites.open_science_pool(
        project="MyProject", image="/cvmfs/x.sif", job_dir="/tmp/hpcpool-me", max_blocks=10
    ),
    "perlmutter": sites.perlmutter(account="m1234", nodes_per_block=2),
    "perlmutter-gpu": sites.perlmutter(account="m1234", constraint="gpu", qos="debug", walltime="00:10:00"),
    "polaris": sites.polaris(account="proj", nodes_per_block=2),
    "polaris-prod": sites.polaris(
        account="proj", queue="prod", nodes_per_block=10, filesystems="home", scheduler_options=("-M me@x.org",)
    ),
    "stampede2": sites.stampede2(partition="skx-normal", nodes_per_block=2),
    "stampede3": sites.stampede3(partition="icx", account="proj", nodes_per_block=2),
    "swan": sites.swan(nodes_per_block=2),
    "theta": sites.theta(project="proj", nodes_per_block=8),
}
REQUIRED = {
    "ad_hoc": {"hosts": ["a", "b"]},
    "stampede2": {"partition": "p"},
    "stampede3": {"partition": "p"},
    "theta": {"project": "p"},
    "cooley": {"project": "p"},
    "open_science_pool": {"project": "p", "image": "i"},
    "swan": {},
    "cc_in2p3": {},
}
RETIRED = ("comet", "cooley", "cori", "stampede2", "swan", "theta")

of_each_site = pytest.mark.parametrize("name", sites.__all__)


def function(name: str) -> Callable[..., Config]:
    found: Callable[..., Config] = getattr(sites, name)
    return found


def script(config: Config) -> str:
    """The job script of a configuration; what the block itself runs is told, and how its nodes are reached."""
    (pool,) = config.node_pools
    nodes = pool.nodes_per_block
    if isinstance(pool.provider, SSHProvider):
        return on_each_machine(pool.provider)
    launcher = pool.launcher or usual_launcher(pool.provider, nodes)
    system = {**{kind: type(system) for kind, system in SYSTEMS.items()}, "slurm": SlurmSystem}[pool.provider.kind]
    folder = FOLDER if pool.provider.job_dir is None else f"{pool.provider.job_dir}/hpcpool-x1/b1"
    request = job(
        nodes=nodes,
        body=f"# A manager on each node, started by {launcher!r}.\n",
        cwd=folder,
        stdout=f"{folder}/job.out",
        stderr=f"{folder}/job.err",
        walltime_s=option_checks.walltime_of(pool.provider),
    )
    return system(pool.provider).script(request)


def on_each_machine(provider: SSHProvider) -> str:
    """What is run on the machines of a list, and how they are logged in to."""
    folder = f"{provider.scratch}/hpcpool-x1/b1"
    files = job_files(folder, "/home/me/project", (), "# A manager.\n", {})
    logins = "".join(f"# {login!r}\n" for login in provider.logins())
    return logins + "".join(f"# -- {name}\n{content.decode()}" for name, content in files.items())


@pytest.mark.parametrize("name", CONFIGS)
def test_a_site_s_job_script_is_as_recorded(name):
    path = DATA / "sites" / f"{name}.sh"
    text = script(CONFIGS[name])
    assert path.exists(), f"{path} is not there; it would be:\n{text}"
    assert text == path.read_text(encoding="utf-8")


def test_every_script_is_of_a_configuration_and_every_site_has_one():
    assert {path.stem for path in (DATA / "sites").glob("*.sh")} == set(CONFIGS)
    assert {name.partition("-")[0] for name in CONFIGS} == set(sites.__all__)


@of_each_site
def test_a_site_takes_any_option_of_a_node_pool(name):
    arguments = REQUIRED.get(name, {"account": "a"})
    (pool,) = function(name)(**arguments, max_blocks=7, name="mine", worker_init="module load python").node_pools
    assert (pool.max_blocks, pool.name, pool.worker_init) == (7, "mine", "module load python")


@of_each_site
def test_a_site_s_configuration_travels(name):
    config = function(name)(**REQUIRED.get(name, {"account": "a"}))
    assert Config.from_json(config.to_json()) == config


@of_each_site
def test_what_must_be_given_is_asked_for(name):
    parameters = inspect.signature(function(name)).parameters.values()
    needed = {p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD}
    assert needed == set(REQUIRED.get(name, {"account": "a"}))


def test_the_ports_of_an_access_point_are_those_that_are_listened_to():
    assert sites.open_science_pool(project="p", image="i", ports="9000-9010").ports == (9000, 9010)


def test_an_ad_hoc_cluster_uses_all_its_machines_unless_it_is_told_otherwise():
    hosts = ["a", "b", "c", "d", "e"]
    assert sites.ad_hoc(hosts).node_pools[0].max_blocks == 5
    assert sites.ad_hoc(hosts, nodes_per_block=2).node_pools[0].max_blocks == 2
    assert sites.ad_hoc(hosts, max_blocks=3).node_pools[0].max_blocks == 3


@pytest.mark.parametrize("hosts", [[], "node1"])
def test_what_is_no_list_of_machines_is_refused(hosts):
    with pytest.raises(ConfigError, match="valid: a list of machines, at least one"):
        sites.ad_hoc(hosts)


def test_a_number_of_nodes_that_cannot_be_is_refused_as_of_any_node_pool():
    for wrong in (0, "two", 3):
        with pytest.raises(ConfigError, match="nodes_per_block"):
            sites.ad_hoc(["a", "b"], nodes_per_block=wrong)


def test_a_constraint_that_a_machine_does_not_have_is_refused():
    with pytest.raises(ConfigError, match="constraint is 'tpu'; valid: 'cpu', 'gpu'"):
        sites.perlmutter(account="m1", constraint="tpu")


@of_each_site
def test_a_site_names_its_source_and_tells_if_it_has_retired(name):
    text = inspect.getdoc(function(name))
    assert re.search(r"^Source: https://\S+$", text, re.MULTILINE)
    assert ("retired" in text.partition("Source:")[0]) is (name in RETIRED)
    assert (f"**{name}" in text.lower().replace(" ", "_")) is (name in RETIRED)


@of_each_site
def test_a_site_is_in_the_documentation_with_its_source(name):
    source = re.search(r"Source: (https://\S+)", inspect.getdoc(function(name)))[1]
    (row,) = [line for line in (DOCS / "sites.md").read_text().splitlines() if line.startswith(f"| `{name}` |")]
    assert source in row
    assert ("retired" in row) is (name in RETIRED)


def test_importing_the_package_does_not_import_the_sites():
    code = "import sys, hpcpool; hpcpool.Config; print([m for m in sys.modules if m.startswith('hpcpool.sites')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
