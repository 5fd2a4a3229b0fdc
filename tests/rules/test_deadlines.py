"""The next of many deadlines, against a plain dictionary."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from globalstore.rules.deadlines import Deadlines

KEYS = st.integers(0, 5)
TIMES = st.integers(0, 20).map(float)


class DeadlinesMachine(RuleBasedStateMachine):
    """Whatever is set, moved and removed: due is what the dictionary says, in its order."""

    def __init__(self) -> None:
        super().__init__()
        self.real: Deadlines[int] = Deadlines()
        self.model: dict[int, float] = {}

    @rule(key=KEYS, at=TIMES)
    def set(self, key: int, at: float) -> None:
        before = min(self.model.values(), default=float("inf"))
        self.model[key] = at
        woken = self.real.set(key, at)
        assert woken or min(self.model.values()) >= before or self.real.next() == before

    @rule(key=KEYS)
    def discard(self, key: int) -> None:
        self.model.pop(key, None)
        self.real.discard(key)

    @rule(seconds=st.integers(0, 5))
    def postpone(self, seconds: int) -> None:
        self.model = {key: at + seconds for key, at in self.model.items()}
        self.real.postpone_all(seconds)

    @rule(now=TIMES)
    def pop(self, now: float) -> None:
        due = list(self.real.pop_due(now))
        times = [self.model.pop(key) for key in due]
        assert times == sorted(times)
        assert all(at <= now for at in times)
        assert all(at > now for at in self.model.values())

    @invariant()
    def next_is_the_earliest(self) -> None:
        assert self.real.next() == min(self.model.values(), default=None)
        assert len(self.real) == len(self.model)


TestDeadlines = DeadlinesMachine.TestCase
