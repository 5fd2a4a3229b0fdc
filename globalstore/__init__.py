"""The Global Store: control plane of a cluster that serves ML artifacts."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("globalstore")
except PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "0+unknown"
