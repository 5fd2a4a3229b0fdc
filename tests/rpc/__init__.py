"""Tests of the gRPC listener. Importing it first makes purerpc importable on h2 4."""

import globalstore.rpc  # noqa: F401
