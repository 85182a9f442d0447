"""Containers: the command that runs another one inside an image, for each runtime. Arguments in, arguments out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hpcpool.errors import ConfigError


@dataclass(frozen=True)
class Container:
    """The image that managers and workers run in.

    Inside, the block's folder and, unless `has_hpcpool`, hpcpool's own files with the libraries beside them are where
    they are outside. So an image needs no more than a Python of the same version as the program's.

    Args:
        image: what the runtime calls the image: a file, a folder, a name with a tag.
        runtime: "apptainer", "singularity", "podman", "docker", "shifter" or "charliecloud".
        options: more arguments for the runtime, each a word: ("--nv",), ("--gpus", "all").
        mounts: more paths to see inside, as "path" or "outside:inside", with ":ro" behind that where the runtime
            knows it.
        has_hpcpool: the image has an hpcpool of its own; then nothing of this machine's installation is shown inside.

    Raises:
        ConfigError: an option is of the wrong type or unknown.

    Example:
        NodePool(SlurmProvider(...), container=Container("tools.sif", options=("--nv",)))
    """

    image: str
    runtime: str = "apptainer"
    options: tuple[str, ...] = ()
    mounts: tuple[str, ...] = ()
    has_hpcpool: bool = False

    def __post_init__(self) -> None:
        if not _is_name(self.image):
            raise ConfigError(f"Container.image is {self.image!r}; valid: the name or path of an image")
        if self.runtime not in tuple(_RUNTIMES):  # a tuple: it need not be hashable
            raise ConfigError(f"Container.runtime is {self.runtime!r}; valid: {', '.join(_RUNTIMES)}")
        for name in ("options", "mounts"):
            object.__setattr__(self, name, _texts(name, getattr(self, name)))
        if wrong := [mount for mount in self.mounts if not re.fullmatch(r"/[^:]*(:/[^:]*(:[^:]+)?)?", mount)]:
            raise ConfigError(f"Container.mounts has {wrong[0]!r}; valid: absolute paths, 'path' or 'outside:inside'")
        if not isinstance(self.has_hpcpool, bool):
            raise ConfigError(f"Container.has_hpcpool is {self.has_hpcpool!r}; valid: True or False")

    def wrap(
        self, command: Sequence[str], *, visible: Sequence[str], cwd: str, variables: Iterable[str] = ()
    ) -> tuple[str, ...]:
        """Return the command that runs `command` in a container of its own, and ends with its exit code.

        Args:
            command: a program and its arguments.
            visible: absolute paths that must be the same inside as outside.
            cwd: where the command starts; visible, too.
            variables: names of environment variables to hand over, for runtimes that hand over none by themselves.
        """
        mounts = _mounts([*visible, *self.mounts])
        return _RUNTIMES[self.runtime](self, mounts, cwd, tuple(variables), tuple(command))


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value) and not value.startswith("-") and "\0" not in value


def _texts(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise ConfigError(f"Container.{name} is {value!r}; valid: a tuple of texts")
    if any("\0" in item for item in value):
        raise ConfigError(f"Container.{name} has a null character: {value!r}")
    return tuple(value)


def _mounts(paths: Iterable[str]) -> list[str]:
    """Each once, as "outside:inside"."""
    return list(dict.fromkeys(path if ":" in path else f"{path}:{path}" for path in paths))


_Words = tuple[str, ...]


def _apptainer(container: Container, mounts: list[str], cwd: str, variables: _Words, command: _Words) -> _Words:
    binds = [word for mount in mounts for word in ("--bind", mount)]
    # --pwd is what both Singularity and Apptainer know.
    return (container.runtime, "exec", *binds, "--pwd", cwd, *container.options, container.image, *command)


def _docker(container: Container, mounts: list[str], cwd: str, variables: _Words, command: _Words) -> _Words:
    volumes = [word for mount in mounts for word in ("--volume", mount)]
    handed_over = [word for name in variables for word in ("--env", name)]
    # The host's network, to reach the interchange; and its shared memory, since a container's own has 64 MB.
    surroundings = ("--rm", "--network=host", "--ipc=host", "--workdir", cwd, "--entrypoint", command[0])
    return (
        *(container.runtime, "run", *surroundings, *volumes, *handed_over, *container.options),
        *(container.image, *command[1:]),
    )


def _shifter(container: Container, mounts: list[str], cwd: str, variables: _Words, command: _Words) -> _Words:
    volumes = [f"--volume={mount}" for mount in mounts]
    return ("shifter", f"--image={container.image}", f"--workdir={cwd}", *volumes, *container.options, *command)


def _charliecloud(container: Container, mounts: list[str], cwd: str, variables: _Words, command: _Words) -> _Words:
    # It shows the host's /tmp inside (but $TMPDIR, if that is set), and refuses what is below it a second time.
    is_shared = not {"-t", "--private-tmp"} & {*container.options}
    binds = [f"--bind={mount}" for mount in mounts if not (is_shared and mount.startswith("/tmp/"))]
    return (
        "env",
        "-u",
        "TMPDIR",
        "ch-run",
        *binds,
        f"--cd={cwd}",
        *container.options,
        container.image,
        "--",
        *command,
    )


#: How each runtime is called. Sources: https://apptainer.org/docs/user/latest/cli/apptainer_exec.html,
#: https://docs.podman.io/en/latest/markdown/podman-run.1.html, https://docs.docker.com/reference/cli/docker/container/run/,
#: https://shifter.readthedocs.io/en/latest/, https://hpc.github.io/charliecloud/ch-run.html.
_RUNTIMES: Mapping[str, Callable[[Container, list[str], str, _Words, _Words], _Words]] = {
    "apptainer": _apptainer,
    "singularity": _apptainer,
    "podman": _docker,
    "docker": _docker,
    "shifter": _shifter,
    "charliecloud": _charliecloud,
}
