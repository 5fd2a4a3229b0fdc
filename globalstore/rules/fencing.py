"""Fencing: the holder of what only one may have, until when, and in which generation.

A lease is on record: its holder, the token, the incarnation of the holder, the deadline and the
generation. The generation counts periods of ownership. It only grows, and since it outlives the
lease, a late write of an earlier holder is known by its number.

Times are microseconds of whatever clock the caller measures leases by. Deadlines are the caller's:
some leases may be shortened by an extension and some have a last deadline of their own.
"""

import enum

import attrs

Incarnation = tuple[int, ...]


def is_live(holder: str | None, expires_at_us: int, now_us: int) -> bool:
    """Tell whether a lease has a holder at this instant, for rows that are many."""
    return holder is not None and expires_at_us > now_us


@attrs.frozen
class Lease:
    """A lease as it is on record; without arguments, one that was never held.

    ``holder`` is None for a lease that was never held or that was released. ``incarnation`` is that
    in which the holder got it; of one holder a greater one is a later one, and the empty one is
    before all others. ``token`` is blank for leases that are held without one.
    """

    generation: int = 0
    holder: str | None = None
    token: str = ""
    incarnation: Incarnation = ()
    expires_at_us: int = 0

    def is_live(self, now_us: int) -> bool:
        """Tell whether the lease has a holder at this instant."""
        return is_live(self.holder, self.expires_at_us, now_us)


@attrs.frozen
class Application:
    """Somebody asks to be the holder, whether or not they are it already.

    ``incarnation`` is None when nothing is known of it, which tells no incarnations apart.
    ``new_token`` is that of the lease if it is granted anew.
    """

    holder: str
    incarnation: Incarnation | None = None
    new_token: str = ""


@attrs.frozen
class Proof:
    """Somebody claims to be the holder and shows by what; None is not shown and not compared."""

    token: str | None = None
    generation: int | None = None
    holder: str | None = None

    def is_of_holder(self, lease: Lease) -> bool:
        """Tell whether this is the last holder's, whether or not the lease is live."""
        if lease.holder is None:
            return False
        if self.holder is not None and self.holder != lease.holder:
            return False
        return self.token is None or (self.token != "" and self.token == lease.token)


class Verdict(enum.Enum):
    """What becomes of a claim."""

    GRANT = "the lease begins anew, in the next generation"
    EXTEND = "the lease is the claimant's own and live: it goes on, and so may what it guards"
    HELD = "somebody else has the lease"
    UNKNOWN = "the proof is not that of the last holder, or the lease was released"
    EXPIRED = "the lease ran out and nobody has it"
    STALE = "the claimant is an earlier incarnation, or names another generation"


@attrs.frozen
class Decision:
    """What becomes of a claim, and the lease as it is from then on; unchanged by a refusal."""

    verdict: Verdict
    lease: Lease


def decide(
    lease: Lease, claim: Application | Proof, now_us: int, until_us: int | None = None
) -> Decision:
    """Return what becomes of a claim at this instant.

    ``until_us`` is the deadline if the lease is granted or extended; None leaves that of a live
    lease as it is, for claims that only guard a write, and is refused for an Application by
    ValueError. An expired lease is never extended: it is granted anew, to any applicant.
    """
    if isinstance(claim, Proof):
        verdict = _of_proof(lease, claim, now_us)
    else:
        verdict = _of_application(lease, claim, now_us)
        if until_us is None:
            raise ValueError("an application for a lease names its deadline")
        if verdict is Verdict.GRANT:
            incarnation = claim.incarnation or ()
            generation = lease.generation + 1
            granted = Lease(generation, claim.holder, claim.new_token, incarnation, until_us)
            return Decision(verdict, granted)
    if verdict is Verdict.EXTEND and until_us is not None:
        # Not ``attrs.evolve``, which takes three times as long: keepalives come by the thousand.
        lease = Lease(lease.generation, lease.holder, lease.token, lease.incarnation, until_us)
    return Decision(verdict, lease)


def _of_application(lease: Lease, claim: Application, now_us: int) -> Verdict:
    live = lease.is_live(now_us)
    if claim.holder != lease.holder:
        return Verdict.HELD if live else Verdict.GRANT
    if claim.incarnation is not None and claim.incarnation < lease.incarnation:
        return Verdict.STALE
    same = claim.incarnation is None or claim.incarnation == lease.incarnation
    return Verdict.EXTEND if live and same else Verdict.GRANT


def _of_proof(lease: Lease, claim: Proof, now_us: int) -> Verdict:
    if not claim.is_of_holder(lease):
        return Verdict.UNKNOWN
    if not lease.is_live(now_us):
        return Verdict.EXPIRED
    if claim.generation is not None and claim.generation != lease.generation:
        return Verdict.STALE
    return Verdict.EXTEND


def released(lease: Lease, proof: Proof, now_us: int) -> Lease | None:
    """Return the lease as its last holder gives it up; None when the proof is not theirs.

    A lease that ran out can be given up as long as nobody else has got it.
    """
    if not proof.is_of_holder(lease) or proof.generation not in {None, lease.generation}:
        return None
    return Lease(lease.generation, expires_at_us=now_us)
