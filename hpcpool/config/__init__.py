"""What a user can set, as frozen values; nothing here acts on them.

The same values come from Python, from a TOML file, and from JSON (which is how they reach the interchange). In all
three an option that is unknown, of the wrong type or impossible is a `ConfigError` that says where, what and why.
"""

from __future__ import annotations

from hpcpool.config.options import OptionError
from hpcpool.config.values import CONFIG_VARIABLE, Config, NodePool

__all__ = ["CONFIG_VARIABLE", "Config", "NodePool", "OptionError"]
