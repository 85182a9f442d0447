from __future__ import annotations

import io
import re
import zipfile
from importlib import metadata
from pathlib import Path

from hpcpool.providers.ssh.wheel import REQUIREMENTS, build_wheel, own_wheel
from hpcpool.wire.version import VERSION

ROOT = Path(__file__).resolve().parents[3]


def test_a_wheel_has_its_files_what_it_needs_and_a_record_of_all():
    wheel = build_wheel("name", "1.0", {"name/__init__.py": b"x = 1\n"}, {"other": "2.0"})
    assert wheel.name == "name-1.0-py3-none-any.whl"
    with zipfile.ZipFile(io.BytesIO(wheel.content)) as archive:
        assert archive.read("name/__init__.py") == b"x = 1\n"
        assert b"Requires-Dist: other==2.0\n" in archive.read("name-1.0.dist-info/METADATA")
        recorded = [line.split(",")[0] for line in archive.read("name-1.0.dist-info/RECORD").decode().splitlines()]
        assert sorted(recorded) == sorted(archive.namelist())


def test_the_same_files_make_the_same_wheel_and_others_another():
    one, same, other = (build_wheel("n", "1", {"n.py": text}, {}) for text in (b"a", b"a", b"b"))
    assert one == same
    assert one.digest != other.digest


def test_the_wheel_of_this_package_has_all_of_its_modules_and_pins_what_is_here():
    wheel = own_wheel()
    assert wheel.name == f"hpcpool-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(io.BytesIO(wheel.content)) as archive:
        packed = {name for name in archive.namelist() if name.startswith("hpcpool/")}
        pins = archive.read(f"hpcpool-{VERSION}.dist-info/METADATA").decode()
    there = {str(path.relative_to(ROOT)) for path in (ROOT / "hpcpool").rglob("*.py")}
    assert there <= packed
    assert f"Requires-Dist: cloudpickle=={metadata.version('cloudpickle')}\n" in pins


def test_nodes_get_all_that_the_package_needs_but_what_only_the_interchange_uses():
    section = re.search(r"\ndependencies = \[(.*?)\n\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL)
    assert section is not None
    declared = set(re.findall(r'"([a-z-]+)', section[1]))
    assert set(REQUIREMENTS) == declared - {"paramiko", "cryptography"}
