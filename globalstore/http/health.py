"""What the server knows of its own health; the server says it, probes read it."""

from typing import Final

import attrs

# An event loop this late serves no caller; a supervisor should replace the process.
LAG_SECONDS_MAX: Final = 5.0


@attrs.define
class Conditions:
    """Reasons of one kind that hold at present, each under a name."""

    _reasons: dict[str, str] = attrs.Factory(dict)

    def __bool__(self) -> bool:
        return bool(self._reasons)

    def set(self, name: str, reason: str) -> None:
        """Let a reason hold from now on.

        ``name`` says what it is about, such as "startup", "draining", "disk"; a closed set.
        ``reason`` is for an operator, and replaces an earlier one of the same name.
        """
        self._reasons[name] = reason

    def clear(self, name: str) -> None:
        """Let the reason of that name hold no longer; nothing happens if it did not."""
        self._reasons.pop(name, None)

    @property
    def reason(self) -> str:
        """All reasons in the order they came, "" if there is none."""
        return "; ".join(self._reasons.values())


def _starting() -> Conditions:
    return Conditions({"startup": "starting"})


@attrs.define
class HealthState:
    """The health of the server, changed and read on the event loop only.

    A new one is not ready: ``not_ready.clear("startup")`` when all listeners serve.
    """

    # Why no work should be sent here: starting, draining, a stale snapshot.
    not_ready: Conditions = attrs.Factory(_starting)
    # What does not work although the server runs: a database that cannot be read or written, a
    # background task that keeps failing.
    failing: Conditions = attrs.Factory(Conditions)
    # What works only in part, such as writes on a full disk.
    degraded: Conditions = attrs.Factory(Conditions)
    # How late the event loop was of late.
    lag_seconds: float = 0.0

    @property
    def ready(self) -> bool:
        """Whether work may be sent here."""
        return not self.not_ready

    def set_lag(self, seconds: float) -> None:
        """Tell how late the event loop was; in seconds."""
        self.lag_seconds = seconds


@attrs.frozen
class Verdict:
    """The answer to a probe: 200 or 503, a word, and the reason if it is not all well."""

    code: int
    status: str
    reason: str = ""


def health(state: HealthState) -> Verdict:
    """Tell whether the server does its work, in full or in part."""
    broken = "; ".join(filter(None, (state.not_ready.reason, state.failing.reason)))
    if broken:
        return Verdict(503, "unavailable", broken)
    if state.degraded:
        return Verdict(200, "degraded", state.degraded.reason)
    return Verdict(200, "ok")


def readiness(state: HealthState) -> Verdict:
    """Tell whether work may be sent here."""
    if state.ready:
        return Verdict(200, "ready")
    return Verdict(503, "not ready", state.not_ready.reason)


def liveness(state: HealthState) -> Verdict:
    """Tell whether the event loop turns.

    That says nothing of the database, which no restart would mend.
    """
    if state.lag_seconds <= LAG_SECONDS_MAX:
        return Verdict(200, "alive")
    return Verdict(503, "stalled", f"the event loop was {state.lag_seconds:.1f} s late")
