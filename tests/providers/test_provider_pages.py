"""The pages of docs/providers tell of each provider what is so: its options, an example, and the script of that."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from hpcpool import Config
from hpcpool.providers import option_checks
from tests.providers.answers import job
from tests.providers.test_batch_systems import PROVIDERS, SYSTEMS

PAGES = Path(__file__).resolve().parent.parent.parent / "docs" / "providers"
FOLDER = "/home/me/.hpcpool/runs/hpcpool-x1/b1"

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
