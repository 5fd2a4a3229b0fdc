"""The configuration: its schema and a strict loader.

``load`` reads one file; nothing else is a source of settings. What it returns is immutable.
"""

from globalstore.config.advertise import (
    AddressSource,
    AdvertisedAddress,
    advertised_address,
    host_port,
)
from globalstore.config.checks import environment_warnings, warnings
from globalstore.config.file_access import access_warnings
from globalstore.config.kinds import (
    Duration,
    GroupPublishAuthorityMode,
    LogLevel,
    OTelProtocol,
    TransportSchedulerMode,
    format_duration,
)
from globalstore.config.loader import load
from globalstore.config.nodes import ConfigError, Problem
from globalstore.config.rendering import chosen, effective, not_built, without_effect
from globalstore.config.schema import GlobalStoreConfig

__all__ = [
    "AddressSource",
    "AdvertisedAddress",
    "ConfigError",
    "Duration",
    "GlobalStoreConfig",
    "GroupPublishAuthorityMode",
    "LogLevel",
    "OTelProtocol",
    "Problem",
    "TransportSchedulerMode",
    "access_warnings",
    "advertised_address",
    "chosen",
    "effective",
    "environment_warnings",
    "format_duration",
    "host_port",
    "load",
    "not_built",
    "warnings",
    "without_effect",
]
