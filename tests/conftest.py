"""For all tests: what a failure shows, and that hypothesis judges no speed.

The examples are the same at each run, so that a test that turns red was turned by a change. The profile `searching`
looks for new ones.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from logs import pytest_runtest_makereport  # noqa: F401

settings.register_profile("edged", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", settings.get_profile("edged"), max_examples=500)
settings.register_profile("searching", settings.get_profile("thorough"), derandomize=False, print_blob=True)
settings.load_profile("edged")
