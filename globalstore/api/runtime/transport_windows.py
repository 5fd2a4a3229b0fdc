"""QueryTransportWindow."""

from google.protobuf.timestamp_pb2 import Timestamp

from globalstore.api.context import Handlers
from globalstore.api.encoding import timestamp
from globalstore.api.turns import in_turns
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.registry.runtime import transport_windows
from globalstore.registry.runtime.transport_ends import Outcome
from globalstore.registry.runtime.transport_windows import Recorded
from globalstore.rpc import Call
from globalstore.rules.refusals import InvalidArgument
from globalstore.rules.values import uuid_text

# Rows of one answer, from the contract: without a limit, and at most.
_ROWS = 200_000
_ROWS_MAX = 1_000_000

# Rows of one query: some milliseconds of a reader, which then serves others in between.
_ROWS_PER_READ = 2000
# Rows that are made before other calls get a turn: less than a millisecond of the event loop.
_ROWS_PER_TURN = 50

# The wire's timestamps are from year 1 to 9999; what is stored begins 1970.
_SECONDS_MIN, _SECONDS_MAX = -62_135_596_800, 253_402_300_799

_OUTCOMES: dict[int, str] = {
    Outcome.IN_PROGRESS: "",
    Outcome.SUCCESS: "success",
    Outcome.FAILED: "failed",
    Outcome.EXPIRED: "expired",
    Outcome.CANCELLED: "cancelled",
}


class TransportWindowHandlers(Handlers):
    """The audit of transports."""

    async def QueryTransportWindow(
        self, message: wire.QueryTransportWindowRequest, request: Call
    ) -> wire.QueryTransportWindowResponse:
        """List what was granted between two times, both included, oldest first."""
        for field in ("created_at_start", "created_at_end"):
            if not message.HasField(field):
                raise InvalidArgument(f"{field} is required")
        start = _nanoseconds("created_at_start", message.created_at_start)
        end = _nanoseconds("created_at_end", message.created_at_end)
        if end < start:
            raise InvalidArgument("created_at_end is before created_at_start")
        left = min(message.limit or _ROWS, _ROWS_MAX)
        response = wire.QueryTransportWindowResponse(status=wire.STATUS_OK)
        # A caller that sets a limit has asked for as many.
        room = self.context.list_room(
            "ask for a shorter time, or set limit", is_asked_for=message.limit > 0
        )
        after = -(-start // 1000), b""
        while left > 0:
            size = min(left, _ROWS_PER_READ)
            rows = await self.context.read(transport_windows.window, after, end // 1000, size)
            async for turn in in_turns(rows, _ROWS_PER_TURN):
                made = list(map(_row, turn))
                room.take(made)
                response.rows.extend(made)
            if len(rows) < size:
                break
            left -= size
            after = rows[-1].created_us, rows[-1].transport_id
        return response


def _nanoseconds(field: str, stamp: Timestamp) -> int:
    if not (_SECONDS_MIN <= stamp.seconds <= _SECONDS_MAX and 0 <= stamp.nanos < 1_000_000_000):
        raise InvalidArgument(f"{field} is not a time between the years 1 and 9999")
    return stamp.seconds * 1_000_000_000 + stamp.nanos


def _row(each: Recorded) -> wire.TransportWindowRow:
    in_progress = each.outcome == Outcome.IN_PROGRESS
    return wire.TransportWindowRow(
        transport_id=uuid_text(each.transport_id),
        replica_id=uuid_text(each.replica_id),
        artifact_id=each.artifact_id,
        status="in_progress" if in_progress else "completed",
        completion_outcome=_OUTCOMES[each.outcome],
        request_id=each.request_id,
        requester_worker_id=each.requester_worker_id,
        group_id=each.group_id,
        group_kind=each.group_kind,
        group_part_id=each.group_part_id,
        group_total_parts=each.group_total_parts,
        created_at=timestamp(each.created_us),
        completed_at=None if each.completed_us is None else timestamp(each.completed_us),
        replica_memory_size_bytes=each.replica_memory_size,
    )
