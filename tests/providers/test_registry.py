from __future__ import annotations

import subprocess
import sys

import pytest

from hpcpool import providers
from hpcpool.errors import ConfigError
from hpcpool.providers import LocalProvider, Provider, provider_class
from tests.providers.plugin import QUEUE_PROVIDER, install


def test_the_local_provider_is_built_in():
    assert provider_class("local") is LocalProvider


#: What a provider cannot be without.
REQUIRED = {"ssh": {"hosts": ("node1",)}}


@pytest.mark.parametrize("kind", providers._BUILT_IN)
def test_what_is_built_in_is_found_by_its_kind_and_by_its_name(kind):
    found = provider_class(kind)
    assert found.kind == kind
    assert isinstance(found(**REQUIRED.get(kind, {})), Provider)
    assert getattr(providers, found.__name__) is found
    assert found.__name__ in providers.__all__


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'NoSuchProvider'"):
        providers.NoSuchProvider  # noqa: B018


def test_a_provider_that_is_not_used_is_not_loaded():
    code = "import hpcpool.providers, sys; print([m for m in sys.modules if m.startswith('hpcpool.providers.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = ["hpcpool.providers.base", "hpcpool.providers.local"]
    assert done.stdout.strip() == str(loaded)


@pytest.mark.parametrize(
    ("kind", "near"),
    [("locl", "; did you mean 'local'?"), ("Local", "; did you mean 'local'?"), ("zzz", ""), ("", "")],
)
def test_an_unknown_kind_names_the_known_ones_and_the_nearest(kind, near):
    with pytest.raises(ConfigError) as caught:
        provider_class(kind)
    assert str(caught.value).startswith(f"no provider of kind {kind!r}{near} (known: ")
    assert "local" in str(caught.value).partition("known: ")[2]


def test_another_package_s_provider_is_found_by_its_entry_point(monkeypatch, tmp_path):
    module = install(monkeypatch, tmp_path, QUEUE_PROVIDER, queue="QueueProvider")
    assert module not in sys.modules
    found = provider_class("queue")
    assert (found.__module__, found.__name__) == (module, "QueueProvider")
    assert provider_class("queue") is found


def test_another_package_s_kinds_are_among_the_known_ones(monkeypatch, tmp_path):
    module = install(monkeypatch, tmp_path, QUEUE_PROVIDER, queue="QueueProvider")
    with pytest.raises(ConfigError, match=r"did you mean 'queue'\? \(known: .*local.*queue.*\)"):
        provider_class("queu")
    assert module not in sys.modules, "a mistyped kind has imported a provider that nobody asked for"


def test_a_built_in_provider_cannot_be_replaced_by_another_package_s(monkeypatch, tmp_path):
    module = install(monkeypatch, tmp_path, "raise RuntimeError('imported')", local="LocalProvider")
    assert provider_class("local") is LocalProvider
    assert module not in sys.modules


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("import no_such_module_of_ours", "cannot be imported: ModuleNotFoundError(\"No module named 'no_such_mod"),
        ("1 / 0", "cannot be imported: ZeroDivisionError('division by zero')"),
        ("", "cannot be imported: AttributeError("),
        ("QueueProvider = 3", "is not a dataclass with kind = 'queue' and open()"),
        ("class QueueProvider:\n    kind = 'queue'\n    max_nodes_per_block = 1\n    open = id", "is not a dataclass"),
        (QUEUE_PROVIDER.replace("def open", "def close"), "is not a dataclass with kind = 'queue' and open()"),
        (QUEUE_PROVIDER.replace('"queue"', '"cue"'), "is not a dataclass with kind = 'queue' and open()"),
        (f"{QUEUE_PROVIDER}\nQueueProvider = QueueProvider('instance')", "is not a dataclass with kind = 'queue'"),
    ],
)
def test_a_provider_that_cannot_be_used_is_named_with_its_place(monkeypatch, tmp_path, text, problem):
    module = install(monkeypatch, tmp_path, text, queue="QueueProvider")
    with pytest.raises(ConfigError) as caught:
        provider_class("queue")
    assert str(caught.value).startswith(f"the provider 'queue' ({module}:QueueProvider) {problem}")
