"""What memory knows of sources and scheduling groups, so that a claim need not read it again.

All of it is learned from commits, in their order, and may be a moment behind when it is used: a
claim checks what it chooses. Whatever may add a source drops the list it belongs to.
"""

from bisect import bisect_left, insort
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping

import attrs

from globalstore.registry.runtime.sources import Shortlist, SourcesListed
from globalstore.registry.signals import (
    GroupCounted,
    GroupKey,
    SourceFreed,
    SourcesFreed,
    Space,
    TransportEnded,
    TransportGranted,
    TransportsForgotten,
    WorkerReplicasChanged,
)
from globalstore.rules.scoring import Candidate, GroupProgress, WorkerLoad

# Artifacts and views whose sources are kept; one takes up to 50 kB. The sources of any other are
# read at each claim.
_LISTS_MAX = 256

# Scheduling groups that are kept, each with a count for every source it used.
_GROUPS_MAX = 1024

# Claims from a list that leaves sources out, before it is made anew: reading it then costs a claim
# some microseconds, and what is left out waits for a fraction of a second.
_CLAIMS_PER_LIST = 64


@attrs.define
class _List:
    """The sources of one artifact and view, sorted, and by seq."""

    rows: list[Candidate]
    by_seq: dict[int, Candidate]
    workers: Counter[int]
    is_complete: bool
    claims: int = 0

    def put(self, row: Candidate) -> None:
        old = self.by_seq[row.seq]
        del self.rows[bisect_left(self.rows, old)]
        insort(self.rows, row)
        self.by_seq[row.seq] = row


class KnownSources:
    """The shortlists of the spaces claimed last, and the scheduling groups seen last."""

    def __init__(self) -> None:
        self._lists: OrderedDict[Space, _List] = OrderedDict()
        self._spaces: dict[int, set[Space]] = {}
        self._loads: dict[int, WorkerLoad] = {}
        self._groups: OrderedDict[GroupKey, GroupProgress] = OrderedDict()

    def __repr__(self) -> str:
        return f"<KnownSources [lists: {len(self._lists)}, groups: {len(self._groups)}]>"

    # For the passes.

    def shortlist(self, space: Space) -> Shortlist | None:
        """Return what is known of an artifact's and view's sources, None if nothing is."""
        known = self._lists.get(space)
        if known is None:
            return None
        self._lists.move_to_end(space)
        loads = {worker_key: self._loads[worker_key] for worker_key in known.workers}
        return Shortlist(known.rows.copy(), loads, known.is_complete)

    def groups(self, keys: Iterable[GroupKey]) -> Mapping[GroupKey, GroupProgress]:
        """Return those of the groups that are known."""
        found = {}
        for key in keys:
            progress = self._groups.get(key)
            if progress is not None:
                found[key] = progress
                self._groups.move_to_end(key)
        return found

    # Signals.

    def listed(self, signal: SourcesListed) -> None:
        """Take in the sources of an artifact and view as they were read."""
        space, shortlist = signal.space, signal.shortlist
        self._drop(space)
        if not shortlist.candidates:
            return
        while len(self._lists) >= _LISTS_MAX:
            self._drop(next(iter(self._lists)))
        rows = shortlist.candidates
        workers = Counter(row.worker_key for row in rows)
        self._lists[space] = _List(
            rows.copy(), {row.seq: row for row in rows}, workers, shortlist.is_complete
        )
        for worker_key in workers:
            self._spaces.setdefault(worker_key, set()).add(space)
        self._loads |= shortlist.loads

    def source_freed(self, signal: SourceFreed) -> None:
        """Take in that an artifact and view may have sources that are not known."""
        self._drop((signal.artifact_id, signal.view_id))

    def sources_freed(self, signal: SourcesFreed) -> None:
        """Do as ``source_freed`` for any number of artifacts and views."""
        spaces = signal.spaces
        if len(spaces) > len(self._lists):
            spaces = spaces.intersection(self._lists)
        for space in spaces:
            self._drop(space)

    def _drop(self, space: Space) -> None:
        known = self._lists.pop(space, None)
        if known is None:
            return
        for worker_key in known.workers:
            spaces = self._spaces[worker_key]
            spaces.remove(space)
            if not spaces:
                del self._spaces[worker_key]
                del self._loads[worker_key]

    def replicas_changed(self, signal: WorkerReplicasChanged) -> None:
        """Take in that what a worker holds changed, and so what it may be loaded with."""
        for space in list(self._spaces.get(signal.worker_key, ())):
            self._drop(space)

    def worker_routable(self, _: object = None) -> None:
        """Take in that some worker became a possible source of anything it holds."""
        self._lists.clear()
        self._spaces.clear()
        self._loads.clear()

    def granted(self, signal: TransportGranted) -> None:
        """Take in that a source serves one transport more."""
        self._load(signal.worker_key, 1)
        known = self._lists.get(signal.space)
        if known is not None:
            row = known.by_seq.get(signal.replica_seq)
            known.claims += 1
            if row is None or (not known.is_complete and known.claims >= _CLAIMS_PER_LIST):
                self._drop(signal.space)
            else:
                known.put(row.with_load(row.load + 1, signal.at_us))
        if signal.group is not None and signal.group in self._groups:
            progress = self._groups[signal.group]
            self._groups[signal.group] = progress.with_grant(signal.replica_id)

    def ended(self, signal: TransportEnded) -> None:
        """Take in that a transport ended; its source, if that is still there, serves one less."""
        if signal.worker_key is not None and signal.replica_seq is not None:
            self._load(signal.worker_key, -1)
            self._freed(signal.space, signal.replica_seq)
        if signal.succeeded and signal.group is not None and signal.group in self._groups:
            progress = self._groups[signal.group]
            self._groups[signal.group] = progress.with_success(signal.at_us)

    def _freed(self, space: Space, seq: int) -> None:
        known = self._lists.get(space)
        if known is None:
            return
        row = known.by_seq.get(seq)
        if row is not None:
            known.put(row.with_load(row.load - 1, row.last_assigned_us))
        elif known.is_complete:
            self._drop(space)  # it was saturated when the list was made, and is a source again

    def _load(self, worker_key: int, change: int) -> None:
        worker = self._loads.get(worker_key)
        if worker is not None:
            self._loads[worker_key] = WorkerLoad.of(worker.load + change, worker.limit)

    def group_counted(self, signal: GroupCounted) -> None:
        """Take in how far a scheduling group is."""
        self._groups[signal.group] = signal.progress
        self._groups.move_to_end(signal.group)
        while len(self._groups) > _GROUPS_MAX:
            self._groups.popitem(last=False)

    def transports_forgotten(self, _: TransportsForgotten) -> None:
        """Take in that transports were deleted: what was counted of groups may include them."""
        self._groups.clear()
