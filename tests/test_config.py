from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from hpcpool.config import CONFIG_VARIABLE, Config, NodePool, OptionError
from hpcpool.containers import Container
from hpcpool.errors import ConfigError
from hpcpool.launchers import MpiRunLauncher, SrunLauncher, SSHLauncher, WrappedLauncher
from hpcpool.providers import LocalProvider, SlurmProvider, provider_class
from tests.providers.plugin import QUEUE_PROVIDER, install
from tests.providers.test_base import PaperProvider

MANY = 1_000_000

#: Configurations in which each option is once other than usual.
CONFIGS = [
    Config(),
    Config(NodePool(workers_per_node=4)),
    Config(NodePool(name="a-1_b.c", init_blocks=2, min_blocks=1, max_blocks=3), NodePool(name="other", init_blocks=0)),
    Config(NodePool(cores_per_worker=4, memory_per_worker="4GB", accelerators=2, cpu_affinity="block")),
    Config(NodePool(accelerators=("0,1", "2,3"), cpu_affinity="alternating")),
    Config(NodePool(worker_init="module load 'x'\nexport A=\"ä\"", env={"A": "it's", "B": ""}, python="/env/python")),
    Config(NodePool(launcher=SSHLauncher("-p 2222"), container=Container("a.sif", "podman", ("-x",), ("/data",)))),
    Config(NodePool(parallelism=0.5, max_idle_time=None, walltime="01:30:00", labels=("bigmem", "ib"))),
    Config(heartbeat_period_s=0.5, heartbeat_timeout_s=2, crash_limit=2, loss_limit=0, rerun_lost=False),
    Config(start_failure_limit=1, start_timeout_s=1e9, start_warning_s=0.1, run_dir="/scratch/ä b"),
    Config(addresses=["login1.cluster", "10.0.0.1", "[fe00::1]"], ports="50000-50100"),
]


@pytest.fixture
def toml(tmp_path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "cluster.toml"
        path.write_text(text, encoding="utf-8", newline="")
        return path

    return write


@pytest.fixture
def queue_provider(monkeypatch, tmp_path):
    """The class of a provider with options that another package offers."""
    folder = tmp_path / "site"
    folder.mkdir()
    install(monkeypatch, folder, QUEUE_PROVIDER, queue="QueueProvider")
    return provider_class("queue")


# Values


def test_the_default_is_one_block_that_is_this_machine():
    (pool,) = Config().node_pools
    assert pool == NodePool(LocalProvider())
    assert (pool.name, pool.workers_per_node, pool.nodes_per_block) == ("default", None, 1)
    assert (pool.init_blocks, pool.min_blocks, pool.max_blocks) == (1, 0, 1)


def test_values_are_frozen_equal_by_content_and_can_be_keys():
    config = Config(NodePool(workers_per_node=2))
    assert config == Config(NodePool(LocalProvider(), workers_per_node=2))
    assert config != Config(NodePool(workers_per_node=3))
    assert len({config, Config(NodePool(workers_per_node=2)), Config()}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.crash_limit = 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.node_pools[0].max_blocks = 2


@pytest.mark.parametrize("config", CONFIGS, ids=repr)
@pytest.mark.parametrize(
    "again",
    [
        lambda config: Config.from_json(config.to_json()),
        lambda config: Config.from_dict(config.to_dict()),
        lambda config: eval(repr(config)),
        lambda config: pickle.loads(pickle.dumps(config)),
        copy.deepcopy,
        Config.replace,
        Config.load,
    ],
    ids=["json", "dict", "repr", "pickle", "deepcopy", "replace", "load"],
)
def test_a_configuration_survives_the_way_there_and_back(config, again):
    assert again(config) == config
    assert hash(again(config)) == hash(config)


def test_each_option_is_once_other_than_usual_above():
    pools = [pool for config in CONFIGS for pool in config.node_pools]
    for values, usual, unlike in [(CONFIGS, Config(), ()), (pools, NodePool(), ("provider", "nodes_per_block"))]:
        for option in dataclasses.fields(usual):
            if option.name not in unlike:
                seen = [getattr(value, option.name) for value in values]
                assert any(value != getattr(usual, option.name) for value in seen), option.name


def test_the_repr_shows_what_is_not_as_usual():
    config = Config(NodePool(LocalProvider(), workers_per_node=4), crash_limit=2)
    assert repr(config) == "Config(NodePool(LocalProvider(), workers_per_node=4), crash_limit=2)"
    assert repr(Config()) == "Config(NodePool(LocalProvider()))"


def test_a_configuration_can_be_changed_into_another():
    config = Config(NodePool(workers_per_node=2), crash_limit=2)
    pool = config.node_pools[0].replace(max_blocks=3)
    changed = config.replace(node_pools=(pool,), loss_limit=5)
    assert changed == Config(NodePool(workers_per_node=2, max_blocks=3), crash_limit=2, loss_limit=5)
    assert config == Config(NodePool(workers_per_node=2), crash_limit=2)
    with pytest.raises(ConfigError, match=r"NodePool\.init_blocks is 1; it must be in the range"):
        pool.replace(min_blocks=2)
    with pytest.raises(ConfigError, match=r"Config\.crash_limit is 0"):
        config.replace(crash_limit=0)
    with pytest.raises(TypeError, match="crash_limt"):
        config.replace(crash_limt=1)


@pytest.mark.skipif(sys.version_info < (3, 13), reason="copy.replace is new in Python 3.13")
def test_copy_replace_knows_configurations():
    assert copy.replace(Config(), crash_limit=3) == Config(crash_limit=3)
    assert copy.replace(NodePool(), max_blocks=3) == NodePool(max_blocks=3)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"heartbeat_period_s": 1}, 1.0),
        ({"heartbeat_period_s": np.float32(0.5)}, 0.5),
        ({"heartbeat_period_s": Fraction(1, 4)}, 0.25),
        ({"crash_limit": np.int64(7)}, 7),
        ({"crash_limit": MANY}, MANY),
        ({"loss_limit": 0}, 0),
        ({"run_dir": Path("/scratch/x/../y")}, "/scratch/y"),
    ],
)
def test_numbers_and_paths_of_other_types_are_kept_as_plain_ones(given, kept):
    ((name, _),) = given.items()
    value = getattr(Config(**given), name)
    assert value == kept
    assert type(value) is type(kept)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"walltime": "01:30:00"}, 5400.0),
        ({"walltime": "2-00:00:01"}, 172801.0),
        ({"walltime": "100:00:00"}, 360000.0),
        ({"walltime": 90}, 90.0),
        ({"labels": ["a", "b", "a"]}, ("a", "b")),
        ({"parallelism": 0}, 0.0),
        ({"max_idle_time": 1}, 1.0),
    ],
)
def test_options_of_a_node_pool_are_kept_in_one_form(given, kept):
    ((name, _),) = given.items()
    value = getattr(NodePool(**given), name)
    assert value == kept
    assert type(value) is type(kept)


def test_the_walltime_is_known_in_seconds():
    assert NodePool(walltime="00:01:30").walltime_s == 90.0
    assert NodePool().walltime_s is None


def test_the_walltime_of_the_provider_counts_where_the_pool_has_none():
    provider = SlurmProvider(walltime="00:30:00")
    assert NodePool(provider).walltime_s == 1800.0
    assert NodePool(provider, walltime=60).walltime_s == 60.0
    assert NodePool(SlurmProvider()).walltime_s is None


def test_a_relative_run_dir_stays_where_it_is_when_the_program_goes_elsewhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/ada")
    config = Config(run_dir="runs")
    monkeypatch.chdir("/")
    assert config.run_dir == str(tmp_path / "runs")
    assert Config(run_dir="~/runs").run_dir == "/home/ada/runs"


@pytest.mark.parametrize(
    ("given", "ports"),
    [(0, (0, 0)), (5000, (5000, 5000)), ("5000", (5000, 5000)), ("5000-5010", (5000, 5010)), ([1, 2], (1, 2))],
)
def test_ports_are_a_number_a_range_in_words_or_two_numbers(given, ports):
    assert Config(ports=given).ports == ports


def test_one_address_needs_no_list():
    assert Config(addresses="login1").addresses == ("login1",)


@pytest.mark.parametrize(
    ("given", "count"),
    [
        (1, 1),
        ("4GB", 4 * 10**9),
        ("4 gb", 4 * 10**9),
        ("512MiB", 512 * 2**20),
        ("1.5GiB", 3 * 2**29),
        ("2kB", 2000),
        ("10B", 10),
        ("1TB", 10**12),
    ],
)
def test_memory_is_kept_as_bytes(given, count):
    assert NodePool(memory_per_worker=given).memory_per_worker_bytes == count


def test_ids_of_accelerators_may_be_a_list():
    assert NodePool(accelerators=["0", "GPU-5f1c"]).accelerators == ("0", "GPU-5f1c")


COUNT_FROM_1 = ("from 1 to 1000000", [0, -1, MANY + 1, 10**30, 1.0, math.nan, "1", True, [1], b"1"])
COUNT_FROM_0 = ("from 0 to 1000000", [-1, MANY + 1, 0.0, "0", False])
SECONDS = ("a number of seconds above 0", [0, -1, 0.0, math.inf, math.nan, 10**400, "5", True, None, [5], 1j])
NAME = ("up to 64 letters", ["", "a/b", "a b", "-a", ".a", "ä", "a" * 65, "a\n", b"a", 3, None])
FOLDER = ("the path of a folder, or None", ["", "a\0b", b"/scratch", 3, True, ["/scratch"], "/scratch/\udcff"])
ADDRESSES = ("host names or IP addresses (IPv6 in brackets), or None", [(), "", "a b", ("a", 1), 3, "fe00::1", b"a"])
PORTS = ("a port, or a range", [-1, 65536, "a", "5-1", "1-2-3", (1,), (0, 5), 1.5, None, True, [1, 2, 3], b"1"])
NONE = ("", [None])
SHARE = ("a number from 0 to 1", [-0.1, 1.1, math.nan, math.inf, "1", True, None, 1j])
IDLE = ("a number of seconds above 0, or None", [0, -1, math.inf, math.nan, "120", True])
WALLTIME = (
    "'HH:MM:SS', 'DAYS-HH:MM:SS', or seconds as a number",
    [0, -1, math.inf, "", "90", "1:30", "1:60:00", "01:30:00 ", "00:00:00", "1d", True, [1]],
)
LABELS = ("names, each up to 64 letters", ["bigmem", 3, None, [""], ["a b"], [3]])

LINES = ("text, lines for the shell", [None, 3, b"true", "a\0b", ["true"], "\udcff"])
PROGRAM = ("the name or path of a program, or None", ["", 3, b"python", "-c", "a\0b"])
VARIABLES = ('such as {"OMP_NUM_THREADS": "4"}', [None, "A=1", ["A"], {"A": 1}, {3: "x"}, {"A B": "x"}, {"": "x"}])
LAUNCHER = ("a launcher, such as SrunLauncher(), or None", ["srun", 3, SrunLauncher, LocalProvider()])
MEMORY = ("such as '4GB'", [0, -1, "4", "GB", "4 XB", "4G", "-4GB", "4GB4", 1.5, True, b"4GB", "1e9GB", "0GB", [4]])
ACCELERATORS = ("a tuple of their ids", [-1, "0", "0,1", (), ("0", 1), ("0,",), ("a b",), (",",), None, True, 1.5])
AFFINITY = ("'none' or 'block' or 'block-reverse' or 'alternating'", ["", "Block", None, 0, True])
CONTAINER = ('a container, such as Container("tools.sif"), or None', ["a.sif", 3, Container])

BAD_VALUES = [
    (NodePool, {"workers_per_node": COUNT_FROM_1, "nodes_per_block": COUNT_FROM_1, "max_blocks": COUNT_FROM_1}),
    (NodePool, {"init_blocks": COUNT_FROM_0, "min_blocks": COUNT_FROM_0, "name": NAME}),
    (NodePool, {"worker_init": LINES, "python": PROGRAM, "env": VARIABLES}),
    (NodePool, {"cores_per_worker": COUNT_FROM_1, "memory_per_worker": MEMORY}),
    (NodePool, {"accelerators": ACCELERATORS, "cpu_affinity": AFFINITY}),
    (NodePool, {"launcher": LAUNCHER, "container": CONTAINER}),
    (NodePool, {"nodes_per_block": NONE, "max_blocks": NONE, "init_blocks": NONE, "min_blocks": NONE}),
    (NodePool, {"parallelism": SHARE, "max_idle_time": IDLE, "walltime": WALLTIME, "labels": LABELS}),
    (NodePool, {"provider": ("a provider, such as LocalProvider()", ["local", None, LocalProvider, 3, NodePool()])}),
    (Config, {"crash_limit": COUNT_FROM_1, "start_failure_limit": COUNT_FROM_1, "loss_limit": COUNT_FROM_0}),
    (Config, {"heartbeat_period_s": SECONDS, "heartbeat_timeout_s": SECONDS}),
    (Config, {"start_timeout_s": SECONDS, "start_warning_s": SECONDS, "run_dir": FOLDER}),
    (Config, {"addresses": ADDRESSES, "ports": PORTS}),
    (Config, {"rerun_lost": ("true or false", [0, 1, "yes", None])}),
]


@pytest.mark.parametrize(
    ("owner", "name", "value", "valid"),
    [
        pytest.param(owner, name, value, valid, id=f"{name}={value!r:.20}")
        for owner, options in BAD_VALUES
        for name, (valid, values) in options.items()
        for value in values
    ],
)
def test_a_value_of_the_wrong_type_or_range_is_refused(owner, name, value, valid):
    with pytest.raises(ConfigError) as caught:
        owner(**{name: value})
    message = str(caught.value)
    assert message.startswith(f"{owner.__name__}.{name} is ")
    assert valid in message
    assert value is None or any(kind in message for kind in (type(value).__name__, "an array", "a table"))
    assert len(message) < 300
    assert isinstance(caught.value, ValueError), "it must also be caught as what the standard library raises"


def test_every_option_is_tried_with_bad_values():
    tried = {(owner, name) for owner, options in BAD_VALUES for name in options}
    for owner in (NodePool, Config):
        names = {option.name for option in dataclasses.fields(owner)} - {"node_pools"}
        assert names == {name for tried_owner, name in tried if tried_owner is owner}


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: NodePool(max_blocks="four"), "NodePool.max_blocks is 'four' (str); valid: a whole number from 1 to"),
        (lambda: NodePool(min_blocks=2), "NodePool.min_blocks is 2; it must not be more than max_blocks (1)"),
        (
            lambda: NodePool(init_blocks=5, max_blocks=4),
            "NodePool.init_blocks is 5; it must be in the range min_blocks (0) to max_blocks (4)",
        ),
        (
            lambda: NodePool(min_blocks=2, max_blocks=4),
            "NodePool.init_blocks is 1; it must be in the range min_blocks (2) to max_blocks (4)",
        ),
        (
            lambda: NodePool(LocalProvider(), nodes_per_block=2),
            "NodePool.nodes_per_block is 2; it must not be more than 1 with LocalProvider()",
        ),
        (
            lambda: Config(heartbeat_period_s=30),
            "Config.heartbeat_timeout_s is 30.0; it must be more than heartbeat_period_s (30.0)",
        ),
        (
            lambda: Config(NodePool(name="a"), NodePool(), NodePool(name="b"), NodePool()),
            "Config.node_pools[3].name is 'default', as in another node pool; give each a name of its own",
        ),
        (lambda: Config(LocalProvider()), "Config.node_pools is (LocalProvider(),) (tuple); valid: only node pools"),
    ],
)
def test_values_that_do_not_go_together_are_refused(make, problem):
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value).startswith(problem)


def test_a_provider_without_a_limit_can_have_large_blocks():
    assert NodePool(PaperProvider(), nodes_per_block=1000).nodes_per_block == 1000


def test_the_error_of_an_option_survives_pickling():
    with pytest.raises(OptionError) as caught:
        Config(heartbeat_period_s=40)
    error = pickle.loads(pickle.dumps(caught.value))
    assert str(error) == str(caught.value)
    assert error.path == ("heartbeat_timeout_s",)
    assert error.related == (("heartbeat_period_s",),)
    assert error.problem == "is 30.0; it must be more than heartbeat_period_s (40.0)"


def test_the_environment_of_a_pool_cannot_be_changed():
    given = {"A": "1"}
    pool = NodePool(env=given)
    given["A"] = "2"
    assert (pool.env, dict(pool.env)) == ({"A": "1"}, {"A": "1"})
    with pytest.raises(TypeError):
        pool.env["A"] = "2"


@pytest.mark.parametrize(
    ("pool", "prepares"),
    [
        (NodePool(), False),
        (NodePool(workers_per_node=2), False),
        (NodePool(worker_init="true"), True),
        (NodePool(env={"A": "1"}), True),
        (NodePool(python="python3"), True),
        (NodePool(launcher=SrunLauncher()), True),
        (NodePool(container=Container("a.sif")), True),
    ],
)
def test_a_pool_knows_whether_its_nodes_need_more_than_a_manager(pool, prepares):
    assert pool.prepares_nodes is prepares


# Where a configuration comes from


def test_load_takes_what_an_executor_takes(toml):
    pool = NodePool(workers_per_node=3)
    config = Config(pool)
    path = toml("[[node_pools]]\nworkers_per_node = 3")
    assert Config.load(config) is config
    assert Config.load(pool) == config
    assert Config.load(LocalProvider()) == Config()
    assert Config.load(path) == config
    assert Config.load(str(path)) == config
    assert Config.load(None) == Config.load() == Config()


@pytest.mark.parametrize("source", [3, True, b"cluster.toml", ["cluster.toml"], {}, object(), Config])
def test_load_refuses_what_it_does_not_know(source):
    with pytest.raises(ConfigError, match=r"config is .*; valid: a Config, a NodePool, a provider, or the path of a"):
        Config.load(source)


def test_the_environment_names_a_file_where_nothing_is_given(monkeypatch, toml):
    monkeypatch.setenv(CONFIG_VARIABLE, str(toml("crash_limit = 5")))
    assert Config.load() == Config(crash_limit=5)
    assert Config.load(Config()) == Config()
    monkeypatch.setenv(CONFIG_VARIABLE, "")
    assert Config.load() == Config()


def test_an_error_in_the_file_of_the_environment_names_the_variable(monkeypatch, toml):
    path = toml("crash_limit = 0")
    monkeypatch.setenv(CONFIG_VARIABLE, str(path))
    with pytest.raises(ConfigError) as caught:
        Config.load()
    assert str(caught.value).startswith(f"{path} (named by $HPCPOOL_CONFIG), line 1: crash_limit is 0 (int)")
    monkeypatch.setenv(CONFIG_VARIABLE, "/no/such.toml")
    with pytest.raises(ConfigError) as caught:
        Config.load()
    assert str(caught.value) == "/no/such.toml (named by $HPCPOOL_CONFIG): cannot be read: No such file or directory"


# TOML


@pytest.mark.parametrize(
    ("text", "config"),
    [
        ("", Config()),
        ("# nothing\n\n", Config()),
        ("\N{BYTE ORDER MARK}crash_limit = 2\r\n", Config(crash_limit=2)),
        ("[[node_pools]]", Config()),
        ("[[node_pools]]\nprovider = 'local'", Config()),
        ("[[node_pools]]\nprovider = {kind = 'local'}", Config()),
        ("[[node_pools]]\n[node_pools.provider]\nkind = 'local'", Config()),
        ("node_pools = [{name = 'a'}, {name = 'b'}]", Config(NodePool(name="a"), NodePool(name="b"))),
        (
            "heartbeat_period_s = 1\nheartbeat_timeout_s = 1.5\ncrash_limit = 2\nloss_limit = 0\nrerun_lost = false\n"
            "start_failure_limit = 4\nstart_timeout_s = 60\nstart_warning_s = 5\nrun_dir = '/scratch'\n",
            Config(
                heartbeat_period_s=1,
                heartbeat_timeout_s=1.5,
                crash_limit=2,
                loss_limit=0,
                rerun_lost=False,
                start_failure_limit=4,
                start_timeout_s=60,
                start_warning_s=5,
                run_dir="/scratch",
            ),
        ),
        (
            "[[node_pools]]\ncores_per_worker = 8\nmemory_per_worker = '16GiB'\naccelerators = ['0', '1']\n"
            "cpu_affinity = 'block'",
            Config(
                NodePool(cores_per_worker=8, memory_per_worker=2**34, accelerators=("0", "1"), cpu_affinity="block")
            ),
        ),
        (
            "[[node_pools]]\nname = 'a'\nworkers_per_node = 2\nnodes_per_block = 1\ninit_blocks = 2\nmin_blocks = 1\n"
            "max_blocks = 3\n[[node_pools]]\nname = 'b'",
            Config(
                NodePool(name="a", workers_per_node=2, init_blocks=2, min_blocks=1, max_blocks=3), NodePool(name="b")
            ),
        ),
    ],
)
def test_a_file_says_the_same_as_python(toml, text, config):
    assert Config.from_toml(toml(text)) == config


ARRAY = """\
node_pools = [
  {name = "a"},
  {name = "b", max_blocks = "4"},
]
"""
FAR_DOWN = """\
# max_block is spelled so in this comment
run_dir = '''
/scratch/max_block = 3
'''

[[node_pools]]
name = "a"

[[node_pools]]   # the second
name = "b"
max_block = 3
"""


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        # keys
        ("crash_limt = 1", 1, "crash_limt is not an option; did you mean 'crash_limit'? (valid: node_pools, heartb"),
        ("\n\nCRASH-LIMIT = 1", 3, "CRASH-LIMIT is not an option; did you mean 'crash_limit'?"),
        ("zzz = 1", 1, "zzz is not an option (valid: node_pools, "),
        ("crash_limit = 1\n'a.b' = 1", 2, "'a.b' is not an option (valid: "),
        (
            "max_workers = 3",
            1,
            "max_workers is not an option; the number of workers is workers_per_node in [[node_pools]",
        ),
        (
            "workers = 3",
            1,
            "workers is not an option; the number of workers is workers_per_node in [[node_pools]] (val",
        ),
        ("retries = 2", 1, "retries is not an option; it is an option of single calls: HPCPoolExecutor(...).options(r"),
        ("timeout = 5", 1, "timeout is not an option; it is an option of single calls: HPCPoolExecutor(...).options(t"),
        (
            "[[node_pools]]\nmax_workers = 3",
            2,
            "node_pools[0].max_workers is not an option; the number of workers is workers_per_node in [[node_pools]]",
        ),
        ("[nodepools]\nx = 1", 1, "nodepools is not an option; did you mean 'node_pools'?"),
        (
            "[[node_pools]]\nmax_block = 1",
            2,
            "node_pools[0].max_block is not an option; did you mean 'max_blocks'? (va",
        ),
        (FAR_DOWN, 11, "node_pools[1].max_block is not an option; did you mean 'max_blocks'? (valid: provider, name, "),
        ("\nmax_blocks = 1", 2, "max_blocks is not an option here; it belongs to [[node_pools]] (valid: "),
        (
            "[[node_pools]]\nname = 'a'\ncrash_limit = 1",
            3,
            "node_pools[0].crash_limit is not an option here; it belongs to the top level, before any [[node_pools]] (",
        ),
        ("[[node_pools]]\n\n[node_pools.limits]\nmax = 3", 3, "node_pools[0].limits is not an option"),
        ("[[node_pools]]\nprovider.kind = 'local'\nprovider.x = 1", 3, "node_pools[0].provider.x is not an option"),
        # types and ranges
        ("crash_limit = '1'", 1, "crash_limit is '1' (str); valid: a whole number from 1 to 1000000"),
        ("crash_limit = 1.0", 1, "crash_limit is 1.0 (float); valid: a whole number from 1 to 1000000"),
        ("crash_limit = true", 1, "crash_limit is True (bool); valid: a whole number"),
        ("\r\ncrash_limit = 0\r\n", 2, "crash_limit is 0 (int); valid: a whole number"),
        ("# crash_limit = 1\r\n\r\ncrash_limit = 0\r\n", 3, "crash_limit is 0 (int); valid: a whole number"),
        ('"crash_limit"\t=\t0', 1, "crash_limit is 0 (int); valid: a whole number"),
        ("[crash_limit]\nx = 1", 1, "crash_limit is {'x': 1} (a table); valid: a whole number"),
        ("\nrerun_lost = 1", 2, "rerun_lost is 1 (int); valid: true or false"),
        ("start_timeout_s = inf", 1, "start_timeout_s is inf (float); valid: a number of seconds above 0"),
        ("start_timeout_s = 1979-05-27", 1, "start_timeout_s is datetime.date(1979, 5, 27) (date); valid: a number"),
        ("run_dir = ['/a',\n '/b']", 1, "run_dir is ['/a', '/b'] (an array); valid: the path of a folder"),
        ("[[node_pools]]\nname = 'a b'", 2, "node_pools[0].name is 'a b' (str); valid: up to 64 letters"),
        (ARRAY, 3, "node_pools[1].max_blocks is '4' (str); valid: a whole number"),
        # values that do not go together: the line is of what was written
        ("heartbeat_period_s = 50", 1, "heartbeat_timeout_s is 30.0; it must be more than heartbeat_period_s (50.0)"),
        ("heartbeat_period_s = 2\nheartbeat_timeout_s = 1", 2, "heartbeat_timeout_s is 1.0; it must be more than"),
        (
            "[[node_pools]]\nmin_blocks = 2\nmax_blocks = 5",
            2,
            "node_pools[0].init_blocks is 1; it must be in the range",
        ),
        ("[[node_pools]]\nnodes_per_block = 2", 2, "node_pools[0].nodes_per_block is 2; it must not be more than 1"),
        ("[[node_pools]]\nname='x'\n[[node_pools]]\nname='x'", 4, "node_pools[1].name is 'x', as in another node pool"),
        ("[[node_pools]]\n\n[[node_pools]]\n", 3, "node_pools[1].name is 'default', as in another node pool; give "),
        # the shape
        ("[node_pools]\nmax_blocks = 1", 1, "node_pools is {'max_blocks': 1} (a table); valid: at least one table, w"),
        ("\nnode_pools = []", 2, "node_pools is [] (an array); valid: at least one table, written [[node_pools]]"),
        ("node_pools = [{}, 3]", 1, "node_pools[1] is 3 (int); valid: a table of options"),
        ("[[node_pools]]\nprovider = 3", 2, "node_pools[0].provider is 3 (int); valid: a kind such as 'local', or a"),
        ("[[node_pools]]\n[node_pools.provider]", 2, "node_pools[0].provider has no kind; write for example kind"),
        ("[[node_pools]]\nprovider = {kind = 3}", 2, "node_pools[0].provider.kind is 3 (int); valid: the name of a p"),
        (
            "[[node_pools]]\nprovider = 'locl'",
            2,
            "node_pools[0].provider cannot be used: no provider of kind 'locl'; did you mean 'local'? (known: ",
        ),
        (
            "[[node_pools]]\n\n[node_pools.provider]\nkind = 'locl'",
            4,
            "node_pools[0].provider.kind cannot be used: no provider of kind 'locl'; did you mean 'local'?",
        ),
    ],
)
def test_an_error_in_a_file_names_file_line_path_and_what_is_valid(toml, text, line, problem):
    path = toml(text)
    with pytest.raises(ConfigError) as caught:
        Config.from_toml(path)
    assert str(caught.value).startswith(f"{path}, line {line}: {problem}")
    assert caught.value.__suppress_context__, "how the error was found would hide the error"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("crash_limit = 1\nx = = 2", r"not valid TOML: .*\(at line 2, column 5\)"),
        ("crash_limit = 1\ncrash_limit = 2", r"not valid TOML: .*\(at line 2, column 16\)"),
        ("x = '''", r"not valid TOML: .*\(at end of document\)"),
        ("{'json': 1}", r"not valid TOML: .*\(at line 1, column 1\)"),
        ("a\0b", r"not valid TOML: .*\(at line 1, column 2\)"),
    ],
)
def test_what_is_not_toml_is_refused_with_its_line(toml, text, problem):
    path = toml(text)
    with pytest.raises(ConfigError, match=rf"^{path}: {problem}$"):
        Config.from_toml(path)


def test_what_is_not_text_is_refused(toml):
    path = toml("")
    path.write_bytes(b"run_dir = '\xff'")
    with pytest.raises(ConfigError, match=rf"^{path}: not valid TOML: not UTF-8 \(byte 11\)$"):
        Config.from_toml(path)


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("/no/such/file.toml", "/no/such/file.toml: cannot be read: No such file or directory"),
        ("/", "/: cannot be read: Is a directory"),
        ("4", "4: cannot be read: No such file or directory (a number of workers is given as an int)"),
        ("/etc/passwd/x", "/etc/passwd/x: cannot be read: Not a directory"),
        ("", "'': cannot be read: No such file or directory"),
        ("a\0b", r"'a\x00b' is not a path: embedded null byte"),
        (Path("no-such.toml"), "no-such.toml: cannot be read: No such file or directory"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(path, problem):
    with pytest.raises(ConfigError) as caught:
        Config.from_toml(path)
    assert str(caught.value) == problem
    assert caught.value.__cause__ is not None


def test_a_home_folder_in_the_path_is_found(monkeypatch, toml):
    monkeypatch.setenv("HOME", str(toml("crash_limit = 2").parent))
    assert Config.from_toml("~/cluster.toml") == Config(crash_limit=2)


# Plain data and JSON


def test_plain_data_has_every_option_and_the_kind_of_each_provider():
    assert Config(NodePool(workers_per_node=2)).to_dict() == {
        "node_pools": [
            {
                "provider": {"kind": "local", "own_process": False},
                "name": "default",
                "workers_per_node": 2,
                "cores_per_worker": 1,
                "memory_per_worker": None,
                "accelerators": 0,
                "cpu_affinity": "none",
                "nodes_per_block": 1,
                "init_blocks": 1,
                "min_blocks": 0,
                "max_blocks": 1,
                "worker_init": "",
                "env": {},
                "python": None,
                "launcher": None,
                "container": None,
                "parallelism": 1.0,
                "max_idle_time": 120.0,
                "walltime": None,
                "labels": [],
            }
        ],
        "heartbeat_period_s": 5.0,
        "heartbeat_timeout_s": 30.0,
        "crash_limit": 1,
        "loss_limit": 3,
        "rerun_lost": True,
        "start_failure_limit": 3,
        "start_timeout_s": 120.0,
        "start_warning_s": 30.0,
        "run_dir": None,
        "addresses": None,
        "ports": [0, 0],
    }


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "not JSON: "),
        (b"{", "not JSON: "),
        (b"\xff", "not JSON: "),
        (b"[]", "the configuration is [] (an array); valid: a table of options"),
        (b"null", "the configuration is None; valid: a table of options"),
        (b'{"node_pools": null}', "node_pools is None; valid: at least one table"),
        (b'{"node_pools": {}}', "node_pools is {} (a table); valid: at least one table"),
        (b'{"node_pools": [null]}', "node_pools[0] is None; valid: a table of options"),
        (b'{"crash_limit": null}', "crash_limit is None; valid: a whole number"),
        (b'{"node_pools": [{"max_blocks": "4"}]}', "node_pools[0].max_blocks is '4' (str); valid: a whole number"),
        (b'{"crash": 1}', "crash is not an option; did you mean 'crash_limit'?"),
        (b'{"": 1}', "'' is not an option (valid: "),
    ],
)
def test_json_that_does_not_fit_is_refused(data, problem):
    with pytest.raises(ConfigError) as caught:
        Config.from_json(data)
    assert str(caught.value).startswith(problem)


def test_the_json_is_what_any_reader_understands():
    assert json.loads(Config(run_dir="/ä").to_json()) == Config(run_dir="/ä").to_dict()


def test_another_process_reads_the_same_from_the_json():
    config = Config(NodePool(workers_per_node=4, name="x"), heartbeat_period_s=0.1, run_dir="/scratch")
    code = "import sys; from hpcpool.config import Config; print(Config.from_json(sys.stdin.buffer.read()))"
    done = subprocess.run([sys.executable, "-c", code], input=config.to_json(), capture_output=True, check=True)
    assert done.stdout.decode().strip() == repr(config)


# What runs on the nodes


@pytest.mark.parametrize(
    ("text", "pool"),
    [
        ("worker_init = '''\nmodule load x\n'''", NodePool(worker_init="module load x\n")),
        ("env = {A = '1', B = ''}", NodePool(env={"A": "1", "B": ""})),
        ("[node_pools.env]\nA = '1'", NodePool(env={"A": "1"})),
        ("python = 'python3'", NodePool(python="python3")),
        ("launcher = 'srun'", NodePool(launcher=SrunLauncher())),
        ("launcher = {kind = 'mpirun', overrides = '-x A'}", NodePool(launcher=MpiRunLauncher("-x A"))),
        ("[node_pools.launcher]\nkind = 'wrapped'\nprepend = 'nice'", NodePool(launcher=WrappedLauncher("nice"))),
        ("container = 'a.sif'", NodePool(container=Container("a.sif"))),
        (
            "[node_pools.container]\nimage = 'a'\nruntime = 'docker'\noptions = ['--gpus', 'all']\nmounts = ['/data']",
            NodePool(container=Container("a", "docker", ("--gpus", "all"), ("/data",))),
        ),
    ],
)
def test_a_file_says_what_runs_on_the_nodes(toml, text, pool):
    config = Config.from_toml(toml(f"[[node_pools]]\n{text}"))
    assert config == Config(pool)
    assert Config.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("env = {A = 1}", 2, "env is {'A': 1} (a table); valid: environment variables with their texts"),
        (
            "launcher = 'srn'",
            2,
            "launcher cannot be used: no launcher of kind 'srn'; did you mean 'srun'? (known: single",
        ),
        ("launcher = 3", 2, "launcher is 3 (int); valid: a kind such as 'srun', or a table with kind and options"),
        ("launcher = {overrides = '-x'}", 2, "launcher has no kind; write for example kind = 'srun'"),
        ("launcher = {kind = 3}", 2, "launcher.kind is 3 (int); valid: the name of a launcher, such as 'srun'"),
        (
            "launcher = {kind = 'srun', override = ''}",
            2,
            "launcher.override is not an option; did you mean 'overrides'?",
        ),
        ("launcher = {kind = 'srun', overrides = 3}", 2, "launcher.overrides is 3 (int); valid: str"),
        ("launcher = 'wrapped'", 2, "launcher needs prepend as well"),
        (
            "launcher = {kind = 'srun', overrides = '\"'}",
            2,
            "launcher is refused: SrunLauncher.overrides is '\"'; it is",
        ),
        ("container = 3", 2, "container is 3 (int); valid: an image, or a table with image and other options"),
        ("container = {}", 2, "container needs image as well"),
        (
            "container = {image = 'a', kind = 'podman'}",
            2,
            "container.kind is not an option (valid: image, runtime, opti",
        ),
        ("container = {image = 'a', options = [1]}", 2, "container.options is [1] (an array); valid: tuple[str, ...]"),
        ("container = {image = 'a', runtime = 'x'}", 2, "container is refused: Container.runtime is 'x'; valid: appta"),
        ("python = ''", 2, "python is '' (str); valid: the name or path of a program, or None"),
    ],
)
def test_what_cannot_run_on_the_nodes_is_refused_with_its_line(toml, text, line, problem):
    path = toml(f"[[node_pools]]\n{text}")
    with pytest.raises(ConfigError) as caught:
        Config.from_toml(path)
    assert str(caught.value).startswith(f"{path}, line {line}: node_pools[0].{problem}")


@dataclasses.dataclass(frozen=True)
class OurLauncher(SrunLauncher):
    """Says that it is another."""


def test_a_launcher_that_would_be_rebuilt_as_another_is_refused():
    with pytest.raises(
        ConfigError, match=r"OurLauncher\(.*\) cannot be rebuilt: its kind 'srun' is that of another class"
    ):
        Config(NodePool(launcher=OurLauncher())).to_json()


# Providers of other packages


QUEUE = "[[node_pools]]\nnodes_per_block = 8\n[node_pools.provider]\nkind = 'queue'\n"


def test_a_provider_s_options_come_from_the_file_and_survive_json(toml, queue_provider):
    text = f"{QUEUE}partition = 'debug'\nfactor = 2\nflags = ['-x', '-y']\nlogin = {{host = 'login1'}}"
    config = Config.from_toml(toml(text))
    provider = config.node_pools[0].provider
    login = type(provider.login)("login1", 22)
    assert provider == queue_provider("debug", factor=2.0, flags=("-x", "-y"), login=login)
    assert type(provider.factor) is float
    assert Config.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("options", "line", "problem"),
    [
        ("", 3, "provider needs partition as well"),
        ("partition = 1", 5, "provider.partition is 1 (int); valid: str"),
        ("partition = 'a'\npriority = '1'", 6, "provider.priority is '1' (str); valid: int | None"),
        ("partition = 'a'\nflags = [1]", 6, "provider.flags is [1] (an array); valid: tuple[str, ...]"),
        (
            "partition = 'a'\n[node_pools.provider.login]\nport = 1",
            6,
            "provider.login is {'port': 1} (a table); valid: ",
        ),
        (
            "partiton = 'a'",
            5,
            "provider.partiton is not an option; did you mean 'partition'? (valid: kind, partition, ",
        ),
        ("made = 'there'", 5, "provider.made is not an option"),
        ("partition = 'closed'", 3, "provider is refused: the partition 'closed' takes no jobs"),
    ],
)
def test_a_provider_s_option_that_does_not_fit_is_named(toml, queue_provider, options, line, problem):
    path = toml(QUEUE + options)
    with pytest.raises(ConfigError) as caught:
        Config.from_toml(path)
    assert str(caught.value).startswith(f"{path}, line {line}: node_pools[0].{problem}")


def test_a_broken_package_is_the_cause_of_the_error(toml, monkeypatch, tmp_path):
    install(monkeypatch, tmp_path, "1 / 0", broken="BrokenProvider")
    with pytest.raises(
        ConfigError, match=r"line 2: node_pools\[0\]\.provider cannot be used: .*ZeroDivision"
    ) as caught:
        Config.from_toml(toml("[[node_pools]]\nprovider = 'broken'"))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_provider_that_the_interchange_could_not_find_is_refused_before_it_starts():
    with pytest.raises(ConfigError, match="no provider of kind 'paper'"):
        Config(NodePool(PaperProvider())).to_json()


@dataclasses.dataclass(frozen=True)
class FalseLocalProvider(LocalProvider):
    """Says that it is another."""


def test_a_provider_that_would_be_rebuilt_as_another_is_refused():
    with pytest.raises(
        ConfigError, match=r"FalseLocalProvider\(.*\) cannot be rebuilt: its kind 'local' is that of ano"
    ):
        Config(NodePool(FalseLocalProvider())).to_json()


@pytest.mark.parametrize(
    ("value", "problem"), [(object(), "is not a plain value"), ("\udcff", "is not text"), (1j, "is not a plain value")]
)
def test_a_provider_s_option_that_cannot_travel_is_refused(queue_provider, value, problem):
    with pytest.raises(ConfigError, match=problem):
        Config(NodePool(queue_provider(value))).to_json()


def test_the_environment_of_the_tests_has_no_configuration():
    assert CONFIG_VARIABLE not in os.environ


@pytest.mark.parametrize(
    ("construct", "words"),
    [
        (lambda: Config(heartbeat_timeout=3), "Config() has no option 'heartbeat_timeout'; did you mean 'heartbeat_t"),
        (lambda: NodePool(workers=3), "NodePool() has no option 'workers'; did you mean 'workers_per_node'"),
        (lambda: NodePool(zzz=3), "NodePool() has no option 'zzz' (valid: "),
        (lambda: Config().replace(crash_limits=2), "did you mean 'crash_limit'"),
    ],
)
def test_an_option_that_does_not_exist_is_an_error_with_the_nearest(construct, words):
    with pytest.raises(TypeError) as caught:
        construct()
    assert words in str(caught.value)


@pytest.mark.parametrize("cls", [NodePool, Config])
def test_every_option_has_its_row_in_the_documentation(cls):
    page = (Path(__file__).resolve().parent.parent / "docs" / "configuration.md").read_text(encoding="utf-8")
    rows = {line.split("`")[1] for line in page.splitlines() if line.startswith("| `")}
    assert {option.name for option in dataclasses.fields(cls)} <= rows
