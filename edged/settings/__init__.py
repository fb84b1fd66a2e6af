"""Settings from a TOML file, rollouts, the environment and flags: checked, and traced back to where each came from."""

from edged.settings.errors import SettingsError
from edged.settings.fields import address
from edged.settings.model import Settings
from edged.settings.remote import Remotes
from edged.settings.show import describe, example_toml
from edged.settings.sources import DEFAULT_FILE, Loaded, load

__all__ = [
    "DEFAULT_FILE",
    "Loaded",
    "Remotes",
    "Settings",
    "SettingsError",
    "address",
    "describe",
    "example_toml",
    "load",
]
