"""Where a worker is in the sequence of its reconciles, and what an answer asks of it."""

import enum
from collections.abc import Iterable

import attrs

from globalstore.gen.tensorcast.common.v1 import common_pb2 as common
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire


class Then(enum.Enum):
    """What to do after a reconcile was answered."""

    GO_ON = "go on"
    SEND_AGAIN = "send again"
    REGISTER = "register"


_ACCEPTED = frozenset({wire.RECONCILE_RESULT_KIND_APPLIED, wire.RECONCILE_RESULT_KIND_NOOP})


@attrs.define
class Cursor:
    """``generation`` counts registrations, ``accepted`` the requests accepted in this one.

    ``state_version`` is the version of the store's view in the latest answer to this daemon.
    """

    generation: int = 0
    accepted: int = 0
    state_version: int = 1

    def registered(self, answer: wire.RegisterWorkerResponse) -> None:
        """Begin the generation of a registration."""
        self.generation = answer.reconcile_generation
        self.accepted = 0
        self.state_version = answer.expected_state_version

    def request(
        self, worker_id: str, daemon_id: str, inventory: Iterable[common.ReplicaInfo]
    ) -> wire.ReconcileWorkerStateRequest:
        """Return the request whose turn it is.

        It has the same number until it is accepted. If only its answer was lost, the store knows
        the number and changes nothing; what the inventory has gained since then it is told
        otherwise, or finds out by the next heartbeat's checksum.
        """
        return wire.ReconcileWorkerStateRequest(
            worker_id=worker_id,
            daemon_id=daemon_id,
            generation=self.generation,
            request_seq=self.accepted + 1,
            inventory=inventory,
            request_kind=wire.RECONCILE_REQUEST_KIND_SNAPSHOT,
        )

    def answered(self, answer: wire.ReconcileWorkerStateResponse) -> Then:
        """Take note of an answer to ``request``; return what it asks for."""
        if answer.result_kind in _ACCEPTED:
            self.accepted += 1
            self.state_version = answer.new_state_version
            return Then.GO_ON
        if answer.result_kind == wire.RECONCILE_RESULT_KIND_RETRY_LATER:
            return Then.SEND_AGAIN
        # REBASE_REQUIRED asks for it; after IGNORED_STALE somebody else has moved the cursor, and
        # so it is for a result that this program does not know.
        return Then.REGISTER
