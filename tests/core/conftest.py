"""Examples that are the same in each run, on a machine of any speed."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("pure", deadline=None, derandomize=True)
settings.load_profile("pure")
