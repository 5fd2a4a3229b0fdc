"""A method of a service, as dispatch, calls and metrics name it."""

import attrs
from purerpc import Cardinality


@attrs.frozen
class Method:
    """A method as its service declares it."""

    path: str
    service: str
    name: str
    cardinality: Cardinality = Cardinality.UNARY_UNARY
    # False for the one method that stands for every path that no service has.
    known: bool = True

    @property
    def streams_requests(self) -> bool:
        """Whether the client may send other than one message."""
        return self.cardinality in (Cardinality.STREAM_UNARY, Cardinality.STREAM_STREAM)


# Stands for made-up paths, so that clients cannot mint names for metrics and logs.
UNKNOWN = Method(path="unknown", service="unknown", name="unknown", known=False)
