"""The Global Store: control plane of a cluster that serves ML artifacts."""

# The build reads it here: to ask what is installed would cost every start some 40 ms.
__version__ = "0.1.0"
