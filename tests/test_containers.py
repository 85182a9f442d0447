"""Containers: the command for each runtime, and what is refused."""

from __future__ import annotations

import pytest

from hpcpool.containers import Container
from hpcpool.errors import ConfigError


def wrapped(container: Container) -> str:
    command = ("/bin/sh", "-c", "echo")
    return " ".join(container.wrap(command, visible=["/run/b", "/lib/py"], cwd="/run/b", variables=["A", "B"]))


@pytest.mark.parametrize(
    ("container", "words"),
    [
        (
            Container("a.sif", options=["--nv"], mounts=["/data", "/x:/y:ro", "/lib/py"]),
            "apptainer exec --bind /run/b:/run/b --bind /lib/py:/lib/py --bind /data:/data --bind /x:/y:ro "
            "--pwd /run/b --nv a.sif /bin/sh -c echo",
        ),
        (
            Container("docker://x", runtime="singularity"),
            "singularity exec --bind /run/b:/run/b --bind /lib/py:/lib/py --pwd /run/b docker://x /bin/sh -c echo",
        ),
        (
            Container("debian:12", runtime="podman", options=("--userns=keep-id",)),
            "podman run --rm --network=host --ipc=host --workdir /run/b --entrypoint /bin/sh --volume /run/b:/run/b "
            "--volume /lib/py:/lib/py --env A --env B --userns=keep-id debian:12 -c echo",
        ),
        (
            Container("debian:12", runtime="docker", options=("--gpus", "all")),
            "docker run --rm --network=host --ipc=host --workdir /run/b --entrypoint /bin/sh --volume /run/b:/run/b "
            "--volume /lib/py:/lib/py --env A --env B --gpus all debian:12 -c echo",
        ),
        (
            Container("docker:debian:12", runtime="shifter", mounts=("/data",)),
            "shifter --image=docker:debian:12 --workdir=/run/b --volume=/run/b:/run/b --volume=/lib/py:/lib/py "
            "--volume=/data:/data /bin/sh -c echo",
        ),
        (
            Container("/images/tools", runtime="charliecloud", options=("--write",)),
            "env -u TMPDIR ch-run --bind=/run/b:/run/b --bind=/lib/py:/lib/py --cd=/run/b --write "
            "/images/tools -- /bin/sh -c echo",
        ),
    ],
    ids=lambda value: getattr(value, "runtime", ""),
)
def test_each_runtime_runs_the_command_with_what_it_needs_to_see(container, words):
    assert wrapped(container) == words


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"image": ""}, "Container.image is ''; valid: the name or path of an image"),
        ({"image": "--privileged"}, "Container.image is '--privileged'; valid"),
        ({"image": 3}, "Container.image is 3; valid"),
        (
            {"runtime": "lxc"},
            "Container.runtime is 'lxc'; valid: apptainer, singularity, podman, docker, shifter, charliec",
        ),
        ({"runtime": ["podman"]}, "Container.runtime is ['podman']; valid: apptainer"),
        ({"options": "--nv"}, "Container.options is '--nv'; valid: a tuple of texts"),
        ({"options": ("a\0b",)}, "Container.options has a null character"),
        ({"mounts": [3]}, "Container.mounts is [3]; valid: a tuple of texts"),
        ({"mounts": ("data",)}, "Container.mounts has 'data'; valid: absolute paths"),
        ({"mounts": ("/a:b",)}, "Container.mounts has '/a:b'; valid: absolute paths"),
        ({"has_hpcpool": 1}, "Container.has_hpcpool is 1; valid: True or False"),
    ],
)
def test_what_cannot_be_is_refused(options, problem):
    with pytest.raises(ConfigError) as caught:
        Container(**{"image": "a.sif"} | options)
    assert str(caught.value).startswith(problem)


def test_charliecloud_is_not_asked_for_what_it_shows_anyway():
    def binds(*options: str) -> list[str]:
        container = Container("/image", runtime="charliecloud", options=options)
        words = container.wrap(("true",), visible=["/tmp/b", "/scratch"], cwd="/tmp/b")
        return [word for word in words if word.startswith("--bind")]

    assert binds() == ["--bind=/scratch:/scratch"]
    assert binds("--private-tmp") == ["--bind=/tmp/b:/tmp/b", "--bind=/scratch:/scratch"]


def test_it_can_be_a_key_whatever_its_options_were_given_as():
    assert {Container("a", options=["-x"]): 1} == {Container("a", options=("-x",)): 1}
