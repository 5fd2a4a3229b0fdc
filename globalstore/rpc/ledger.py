"""What clients make the process hold: one account for each address, and one sum over all.

Counted are calls that arrive, wait or run, their requests, and answers that were not sent yet;
connections are bounded by their number. An address that holds its share is refused what it asks for
next. When all of them together hold too much, the address that holds most pays: its largest calls
end first.
"""

import heapq
import ipaddress
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol

from globalstore.rpc.fair_slots import FairSlots
from globalstore.rpc.floods import Allowance
from globalstore.rpc.limits import Limits
from globalstore.rpc.streams import Stream

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# What all hold is brought this part of the bound below it: the next look at all that is held comes
# only after so much has arrived anew. Half a MiB of 512: thirty calls that wait.
_RELIEF_SHARE = 1024

# Calls that one look ends, which takes a few milliseconds. If that was not enough, the next one to
# ask for anything has more of them ended.
_ENDED_AT_ONCE = 64

# Addresses that left in debt for their heads, and are known when they come again.
_DEBTORS_MAX = 4096

# Large answers made at a time for a proxy's many clients.
_SHARED_TURNS = 4


class Holder(Protocol):
    """A connection, to the ledger."""

    streams: dict[int, Stream]


class Account:
    """What the clients of one address hold."""

    def __init__(self, ledger: "Ledger", address: str, limits: Limits, *, shared: bool) -> None:
        self.ledger = ledger
        self.address = address
        # Whether many clients come from here, so that no bounds of one address apply.
        self.shared = shared
        self.held_bytes = 0
        self.calls = 0
        self.connections = 0
        self.holders: set[Holder] = set()
        # Bytes of answers that wait for clients to take them, and what wakes who waits for that.
        self.unread_bytes = 0
        self.waiting_for_readers: set[Callable[[], None]] = set()
        unbounded = float("inf")
        self.bytes_max = unbounded if shared else limits.held_bytes_per_address_max
        self.calls_max = unbounded if shared else limits.calls_per_address_max
        self.connections_max = unbounded if shared else limits.connections_per_address_max
        self.unread_bytes_max = unbounded if shared else limits.unread_bytes_per_address_max
        # One large answer at a time is made for an address, or it would ask for many at once.
        self.answer_turn = FairSlots(_SHARED_TURNS if shared else 1)
        # Bytes of heads that had to be decoded; connections of a proxy have their own.
        self.heads = head_allowance(limits)

    @property
    def equal_calls(self) -> float:
        """An equal part of all calls: whoever has fewer is let in whatever others have open."""
        return self.ledger.calls_max / max(1, self.ledger.addresses)

    @property
    def is_full(self) -> bool:
        """Whether the clients of this address hold more than their share."""
        return self.held_bytes > self.bytes_max

    def has_room(self, size: int) -> bool:
        """Tell whether so many bytes more may be held."""
        return self.held_bytes + size <= self.bytes_max

    def hold(self, size: int) -> None:
        """Take in that so many bytes more are held, or fewer if negative."""
        self.held_bytes += size
        ledger = self.ledger
        ledger.held_bytes += size
        if ledger.held_bytes > ledger.bytes_max and size > 0:
            ledger.relieve()

    def unread(self, size: int) -> None:
        """Take in that so many bytes more wait for a client to take them, or fewer if negative."""
        self.unread_bytes += size
        if size < 0:
            for wake in self.waiting_for_readers:
                wake()


def head_allowance(limits: Limits) -> Allowance:
    """Return an allowance for bytes of heads that have to be decoded."""
    return Allowance(limits.head_bytes_max, limits.head_bytes_per_second, 0.0)


class Ledger:
    """The accounts of one listener's clients, and the unfinished messages of all."""

    def __init__(self, limits: Limits, proxy_networks: Sequence[Network] = ()) -> None:
        """Begin with nothing; the addresses of ``proxy_networks`` have no share of their own."""
        self.bytes_max = limits.held_bytes_max
        self.calls_max = limits.calls_max
        self.held_bytes = 0
        self.arriving_bytes = 0
        # Calls ended and refused because of what all clients held.
        self.relieved = 0
        self._limits = limits
        self._networks = tuple(proxy_networks)
        self._accounts: dict[str, Account] = {}
        self._arriving: dict[Stream, int] = {}
        self._debtors: OrderedDict[str, Allowance] = OrderedDict()

    def account(self, address: str) -> Account:
        """Return the account of an address."""
        account = self._accounts.get(address)
        if account is None:
            shared = self._is_shared(address)
            account = self._accounts[address] = Account(self, address, self._limits, shared=shared)
            account.heads = self._debtors.pop(address, account.heads)
        return account

    def tidy(self, account: Account) -> None:
        """Forget the account of an address without connections and calls."""
        if account.connections or account.calls:
            return
        if self._accounts.pop(account.address, None) and account.heads.tokens < account.heads.cap:
            self._debtors[account.address] = account.heads
            if len(self._debtors) > _DEBTORS_MAX:
                self._debtors.popitem(last=False)

    @property
    def largest_bytes(self) -> int:
        """What the address holds that holds most."""
        return max((each.held_bytes for each in self._accounts.values()), default=0)

    @property
    def addresses(self) -> int:
        """Addresses with connections or calls."""
        return len(self._accounts)

    def arriving(self, stream: Stream, size: int) -> None:
        """Take in that ``size`` bytes of a stream's unfinished message are there.

        Beyond the bound of them all the largest are refused.
        """
        self.arriving_bytes += size - self._arriving.get(stream, 0)
        self._arriving[stream] = size
        if self.arriving_bytes > self._limits.inbound_bytes_max:
            mark = _relieved(self._limits.inbound_bytes_max)
            sizes = self._arriving
            for largest in heapq.nlargest(_ENDED_AT_ONCE, sizes, key=sizes.__getitem__):
                if self.arriving_bytes <= mark:
                    break
                self.arrived(largest)
                self._end(largest)

    def arrived(self, stream: Stream) -> None:
        """Take in that a stream has no unfinished message any more."""
        if self._arriving:
            self.arriving_bytes -= self._arriving.pop(stream, 0)

    def relieve(self) -> None:
        """End the largest calls of whoever holds most, until less is held than may be."""
        mark = _relieved(self.bytes_max)
        account = max(self._accounts.values(), key=_held_bytes)
        streams = (each for holder in account.holders for each in holder.streams.values())
        for stream in heapq.nlargest(_ENDED_AT_ONCE, streams, key=_held_bytes):
            if self.held_bytes <= mark:
                break
            self._end(stream)

    def _end(self, stream: Stream) -> None:
        self.relieved += stream.owner.end_for_memory(stream)

    def _is_shared(self, address: str) -> bool:
        if not self._networks:
            return False
        try:
            ip = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(ip in network for network in self._networks)


def _relieved(bytes_max: int) -> int:
    return bytes_max - bytes_max // _RELIEF_SHARE


def _held_bytes(each: Account | Stream) -> int:
    return each.held_bytes
