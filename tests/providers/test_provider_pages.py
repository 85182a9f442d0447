"""The pages of docs/providers tell of each provider what is so: its options, an example, and the script of that."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from hpcpool import Config, providers
from hpcpool.providers import (
    FluxProvider,
    GridEngineProvider,
    LocalProvider,
    OARProvider,
    SlurmProvider,
    SSHProvider,
    option_checks,
)
from hpcpool.providers.flux import FluxSystem
from hpcpool.providers.gridengine import GridEngineSystem
from hpcpool.providers.oar import OARSystem
from hpcpool.providers.slurm import SlurmSystem
from tests.providers.answers import job
from tests.providers.test_batch_systems import PROVIDERS, SYSTEMS

PAGES = Path(__file__).resolve().parent.parent.parent / "docs" / "providers"
FOLDER = "/home/me/.hpcpool/runs/hpcpool-x1/b1"

#: Those whose pages have another form: the options' table has the words of the batch system, too, and the script ends
#: where its directives do.
OTHERS = {
    SlurmProvider: SlurmSystem,
    GridEngineProvider: GridEngineSystem,
    OARProvider: OARSystem,
    FluxProvider: FluxSystem,
}
#: Without a batch system: there is no script.
BARE = (SSHProvider, LocalProvider)

of_each_provider = pytest.mark.parametrize("provider", PROVIDERS, ids=lambda provider: provider.kind)


def page(provider) -> str:
    return (PAGES / f"{provider.kind}.md").read_text(encoding="utf-8")


def block(text: str, language: str) -> str:
    """The first block of a page in a language."""
    found = re.search(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert found, f"the page has no {language} block"
    return found[1]


def example(provider) -> Config:
    names: dict[str, Config] = {}
    exec(block(page(provider), "python"), names)
    return names["config"]


@of_each_provider
def test_a_page_lists_every_option_with_its_default(provider):
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \| .+ \|$", page(provider), re.MULTILINE)
    defaults = [(option.name, repr(option.default).replace("'", '"')) for option in fields(provider)]
    assert rows == defaults


@of_each_provider
def test_the_example_in_python_and_that_in_a_file_are_the_same(provider, tmp_path):
    (tmp_path / "cluster.toml").write_text(block(page(provider), "toml"), encoding="utf-8")
    assert Config.from_toml(tmp_path / "cluster.toml") == example(provider)


@of_each_provider
def test_the_script_of_a_page_is_that_of_its_example(provider):
    (pool,) = example(provider).node_pools
    request = job(
        nodes=pool.nodes_per_block,
        body="# What the block runs: it starts a manager on each node.\n",
        cwd=FOLDER,
        stdout=f"{FOLDER}/job.out",
        stderr=f"{FOLDER}/job.err",
        walltime_s=option_checks.walltime_of(pool.provider),
    )
    assert block(page(provider), "bash") == type(SYSTEMS[provider.kind])(pool.provider).script(request)


@of_each_provider
def test_a_page_says_what_goes_wrong(provider):
    assert "## What goes wrong" in page(provider)


@pytest.mark.parametrize("provider", [*OTHERS, LocalProvider], ids=lambda provider: provider.kind)
def test_every_other_page_lists_every_option_with_its_default_too(provider):
    rows = re.findall(r"^\| `(\w+)` \| `?([^`|]+?)`? \|", page(provider), re.MULTILINE)
    defaults = {
        option.name: "none" if option.default in ((), "") else f"{option.default}" for option in fields(provider)
    }
    assert dict(rows) == defaults


@pytest.mark.parametrize("provider", OTHERS, ids=lambda provider: provider.kind)
def test_the_directives_of_every_other_page_are_those_of_its_example(provider):
    (pool,) = example(provider).node_pools
    folder = "/home/me/.hpcpool/runs/hpcpool-x1f3/default-0"
    request = job(
        name="hpcpool-x1f3-default-0",
        nodes=pool.nodes_per_block,
        cwd=folder,
        stdout=f"{folder}/job.out",
        stderr=f"{folder}/job.err",
        walltime_s=option_checks.walltime_of(pool.provider),
    )
    script = OTHERS[provider](pool.provider).script(request)
    assert block(page(provider), "bash") == script.partition("\n\n")[0] + "\n"
    assert "## What goes wrong" in page(provider)


def test_the_page_of_machines_over_ssh_lists_every_option():
    listed = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`[^|]+) \|", page(SSHProvider), re.MULTILINE))))
    assert {option.name for option in fields(SSHProvider)} <= listed


def test_every_provider_has_a_page_that_the_overview_names():
    known = {name for name in providers.__all__ if name.endswith("Provider") and name != "Provider"}
    assert known == {type(provider).__name__ for provider in PROVIDERS} | {cls.__name__ for cls in (*OTHERS, *BARE)}
    overview = (PAGES / "index.md").read_text(encoding="utf-8")
    for kind in (provider.kind for provider in (*PROVIDERS, *OTHERS, *BARE)):
        assert (PAGES / f"{kind}.md").exists()
        assert f"]({kind}.md)" in overview
        assert f"| `{kind}` |" in overview
