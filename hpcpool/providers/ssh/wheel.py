"""A wheel of the hpcpool that runs here, made from its own files, for machines that have none or another one.

The format is that of https://packaging.python.org/en/latest/specifications/binary-distribution-format/.
"""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from hpcpool.wire.version import VERSION

#: What a manager, its workers, and pools inside of calls import. They log in nowhere and issue no keys: neither
#: paramiko nor cryptography.
REQUIREMENTS = ("cloudpickle", "msgspec", "psutil", "tblib", "typing-extensions", "xxhash")

#: The same files make the same wheel, on any day.
_LONG_AGO = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel in memory."""

    name: str
    content: bytes

    @property
    def digest(self) -> str:
        """Tells wheels of one version apart."""
        return hashlib.sha256(self.content).hexdigest()[:12]


def own_wheel() -> Wheel:
    """The wheel of this very package, with the very versions of what it needs that are installed here: both sides must
    have the same pickles.
    """
    folder = Path(__file__).parents[2]
    files = {f"hpcpool/{path.relative_to(folder).as_posix()}": path.read_bytes() for path in _sources(folder)}
    pins = {name: metadata.version(name) for name in REQUIREMENTS}
    return build_wheel("hpcpool", VERSION, files, pins)


def _sources(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix == ".py" or path.name == "py.typed")


def build_wheel(name: str, version: str, files: Mapping[str, bytes], pins: Mapping[str, str]) -> Wheel:
    """A pure Python wheel.

    Args:
        files: what is in it, by path.
        pins: what it needs, with the exact version of each.
    """
    info = f"{name}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {needed}=={pin}\n" for needed, pin in pins.items())
    contents = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: hpcpool\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},sha256={_hash(content)},{len(content)}\n" for path, content in contents.items())
    contents[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in contents.items():
            archive.writestr(zipfile.ZipInfo(path, _LONG_AGO), content, zipfile.ZIP_DEFLATED)
    return Wheel(f"{name}-{version}-py3-none-any.whl", memory.getvalue())


def _hash(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
