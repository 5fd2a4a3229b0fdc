"""The services that gRPC itself has standards for."""

import globalstore.rpc  # noqa: F401  makes purerpc importable
