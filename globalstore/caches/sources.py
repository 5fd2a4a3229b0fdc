"""What memory knows of sources and groups, so that a claim need not read it again.

All of it is learned from commits, in their order, and may be a moment behind when it is used: a
claim checks what it chooses. Whatever may add a source drops the list it belongs to.
"""

from bisect import bisect_left, insort
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping

import attrs

from globalstore.registry.runtime.sources import Shortlist
from globalstore.registry.signals import GroupKey, Space, TransportEnded, TransportGranted
from globalstore.rules.scoring import Candidate, GroupProgress, WorkerLoad

# Artifacts and views whose sources are kept in mind; one takes up to 50 kB. What is claimed beyond
# is read anew each time.
_LISTS_MAX = 256

# Groups that are kept in mind, each with a count for every source it used.
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
    """The shortlists of the artifacts and views that were claimed last, and groups likewise."""

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

    # What happened.

    def listed(self, space: Space, shortlist: Shortlist) -> None:
        """The sources of an artifact and view were read."""
        self.drop(space)
        if not shortlist.candidates:
            return
        while len(self._lists) >= _LISTS_MAX:
            self.drop(next(iter(self._lists)))
        rows = shortlist.candidates
        workers = Counter(row.worker_key for row in rows)
        self._lists[space] = _List(
            rows.copy(), {row.seq: row for row in rows}, workers, shortlist.is_complete
        )
        for worker_key in workers:
            self._spaces.setdefault(worker_key, set()).add(space)
        self._loads |= shortlist.loads

    def drop(self, space: Space) -> None:
        """What is known of an artifact's and view's sources may not be all there is any more."""
        known = self._lists.pop(space, None)
        if known is None:
            return
        for worker_key in known.workers:
            spaces = self._spaces[worker_key]
            spaces.remove(space)
            if not spaces:
                del self._spaces[worker_key]
                del self._loads[worker_key]

    def drop_many(self, spaces: set[Space]) -> None:
        """As ``drop``, for any number of them."""
        if len(spaces) > len(self._lists):
            spaces = spaces.intersection(self._lists)
        for space in spaces:
            self.drop(space)

    def worker_changed(self, worker_key: int) -> None:
        """What a worker holds, and so what it may be loaded with, changed."""
        for space in list(self._spaces.get(worker_key, ())):
            self.drop(space)

    def drop_all(self) -> None:
        """Some worker became a possible source of anything it holds."""
        self._lists.clear()
        self._spaces.clear()
        self._loads.clear()

    def granted(self, event: TransportGranted) -> None:
        """A source serves one transport more."""
        self._load(event.worker_key, 1)
        known = self._lists.get(event.space)
        if known is not None:
            row = known.by_seq.get(event.replica_seq)
            known.claims += 1
            if row is None or (not known.is_complete and known.claims >= _CLAIMS_PER_LIST):
                self.drop(event.space)
            else:
                known.put(row.with_load(row.load + 1, event.at_us))
        if event.group is not None and event.group in self._groups:
            progress = self._groups[event.group]
            self._groups[event.group] = progress.with_grant(event.replica_id)

    def ended(self, event: TransportEnded) -> None:
        """A transport ended; its source, if that is still there, serves one less."""
        if event.worker_key is not None and event.replica_seq is not None:
            self._load(event.worker_key, -1)
            self._freed(event.space, event.replica_seq)
        if event.succeeded and event.group is not None and event.group in self._groups:
            progress = self._groups[event.group]
            self._groups[event.group] = progress.with_success(event.at_us)

    def _freed(self, space: Space, seq: int) -> None:
        known = self._lists.get(space)
        if known is None:
            return
        row = known.by_seq.get(seq)
        if row is not None:
            known.put(row.with_load(row.load - 1, row.last_assigned_us))
        elif known.is_complete:
            self.drop(space)  # it was saturated when the list was made, and is a source again

    def _load(self, worker_key: int, change: int) -> None:
        worker = self._loads.get(worker_key)
        if worker is not None:
            self._loads[worker_key] = WorkerLoad.of(worker.load + change, worker.limit)

    def group_counted(self, group: GroupKey, progress: GroupProgress) -> None:
        """How far a group is was read."""
        self._groups[group] = progress
        self._groups.move_to_end(group)
        while len(self._groups) > _GROUPS_MAX:
            self._groups.popitem(last=False)

    def rows_purged(self) -> None:
        """Transports were forgotten: what was counted of groups may include them."""
        self._groups.clear()
