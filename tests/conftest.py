"""For all tests: what a failure shows, and that hypothesis judges no speed."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from logs import pytest_runtest_makereport  # noqa: F401

settings.register_profile("edged", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", settings.get_profile("edged"), max_examples=500)
settings.load_profile("edged")
