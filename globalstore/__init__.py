"""The Global Store: control plane of a cluster that serves ML artifacts."""

from importlib.metadata import PackageNotFoundError, version

import h2.events

# purerpc names an event that h2 4 renamed; without this its import fails. It stands here because
# this module is imported before any other of the package.
if not hasattr(h2.events, "PingAcknowledged"):
    h2.events.PingAcknowledged = h2.events.PingAckReceived  # type: ignore[attr-defined]

try:
    __version__ = version("globalstore")
except PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "0+unknown"
