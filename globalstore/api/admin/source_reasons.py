"""ExplainSources: how each replica would fare in the choice of a source."""

from globalstore.api.context import Handlers
from globalstore.api.room import add_page
from globalstore.gen.globalstore.admin.v1 import admin_pb2 as admin
from globalstore.registry.runtime import source_reasons
from globalstore.registry.runtime.source_reasons import ChoiceContext, Explained, Reason
from globalstore.rpc import Call
from globalstore.rules.artifact_ids import looked_up
from globalstore.rules.scoring import Mode
from globalstore.rules.transfer import ExportState
from globalstore.rules.values import existing_or_blank, uuid_text

# Reasons that do not keep a replica from ever being a source.
_PASSING = frozenset(Reason) - {Reason.PRESENCE_ONLY, Reason.EXPIRED}

# Reasons that a replica has until its daemon says how it is read.
_UNREADABLE = frozenset({Reason.PRESENCE_ONLY, Reason.SATURATED})

# Records that are made before other calls get a turn: less than a millisecond of the event loop.
_RECORDS_PER_TURN = 50


class SourceReasonHandlers(Handlers):
    """The operators' call about the choice of sources."""

    async def ExplainSources(
        self, message: admin.ExplainSourcesRequest, request: Call
    ) -> admin.ExplainSourcesResponse:
        """Show for every replica how it would fare, or what rules it out."""
        artifact_id = looked_up("artifact_id", message.artifact_id)
        view_id = existing_or_blank("view_id", message.view_id)
        requester = existing_or_blank("requester_worker_id", message.requester_worker_id)
        scoring, now_us = self.context.queues.scoring, self.context.clock.wall_us()
        by = ChoiceContext(scoring, self.context.workers.reachable(), now_us)
        explained, is_truncated = await self.context.read(
            source_reasons.explain, artifact_id, view_id, source_reasons.EXAMINED_MAX, by
        )
        waiting, of_requester = self.context.queues.waiting((artifact_id, view_id), requester)
        response = admin.ExplainSourcesResponse(
            mode=scoring.mode.value,
            verdict=_verdict(explained),
            waiting=waiting,
            waiting_of_requester=of_requester,
        )
        count = await add_page(
            response.sources,
            explained,
            lambda each: _message(each, by, requester),
            _RECORDS_PER_TURN,
        )
        response.is_truncated = is_truncated or count < len(explained)
        return response


def _message(explained: Explained, by: ChoiceContext, requester: str) -> admin.ExplainedSource:
    each, terms = explained.examined, explained.terms
    idle_s = None
    if each.last_assigned_us:
        idle_s = max(0, by.now_us - each.last_assigned_us) / 1_000_000
    return admin.ExplainedSource(
        rank=explained.rank,
        replica_id=uuid_text(each.replica_id),
        worker_id=each.worker_id,
        node_id=each.node_id,
        node_address=each.node_address,
        node_port=each.node_port,
        memory_type=each.memory_type,
        device_id=each.device_id,
        current_requests=each.load,
        max_concurrency=max(each.limit, each.load),
        worker_requests=each.worker_load,
        worker_capacity=each.worker_limit,
        idle_seconds=idle_s,
        replica_load=terms.replica_load,
        worker_load=terms.worker_load,
        recent=terms.recent,
        diffusion=terms.diffusion,
        score=terms.replica_load if by.scoring.mode is Mode.LEGACY else terms.score,
        reasons=[reason.value for reason in explained.reasons],
        is_own=bool(requester) and each.worker_id == requester,
    )


def _verdict(explained: list[Explained]) -> str:
    if not explained:
        return "no replica"
    if explained[0].rank:
        return "granted"
    if any(_PASSING.issuperset(each.reasons) for each in explained):
        return "busy"
    return "announced" if any(map(_is_announced, explained)) else "no source"


def _is_announced(explained: Explained) -> bool:
    is_draining = explained.examined.export_state == ExportState.DRAINING
    return _UNREADABLE.issuperset(explained.reasons) and not is_draining
