"""What makes a repeated request the same request."""

import hashlib
import json


def transport_request(
    *,
    artifact_id: str,
    view_id: str,
    node_id: str,
    address: str,
    port: int,
    requester_worker_id: str,
    group: tuple[str, str, int, str, int, int] | None,
) -> bytes:
    """Return the digest of all that identifies a request for a source.

    ``group`` is (kind, id, epoch, part, total parts, priority). How long the caller waits is
    not part of it: a retry may be more patient.
    """
    kind, group_id, epoch, part, total, priority = group or (None,) * 6
    text = json.dumps(
        {
            "artifact_id": artifact_id,
            "group_epoch": epoch,
            "group_id": group_id,
            "group_kind": kind,
            "group_part_id": part,
            "group_priority": priority,
            "group_total_parts": total,
            "requester_worker_id": requester_worker_id,
            "source_address": address,
            "source_node_id": node_id,
            "source_port": port,
            "view_id": view_id,
        },
        sort_keys=True,
        separators=(",", ":"),
    )
    return hashlib.sha256(text.encode()).digest()
