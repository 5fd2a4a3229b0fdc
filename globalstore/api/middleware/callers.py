"""Who makes a call, by its token and by its client's certificate."""

from globalstore.api.middleware.refused_callers import RefusedCallers
from globalstore.api.middleware.tokens import Tokens
from globalstore.rpc import Call


class KnownCallers:
    """The callers of a server that asks for tokens, for certificates with names, or for both.

    Without tokens a certificate's names are the daemons that its client may act for. With tokens, a
    full one is the whole cluster whatever the certificate, and one of a daemon acts for those of
    its daemons that the certificate names.
    """

    def __init__(
        self, tokens: Tokens | None, refused: RefusedCallers, *, by_certificate: bool
    ) -> None:
        self._tokens = tokens
        self._refused = refused
        self._by_certificate = by_certificate

    @property
    def are_asked(self) -> bool:
        """Whether anything tells one caller from another."""
        return self._by_certificate or self._tokens is not None

    def daemon_ids(self, call: Call) -> frozenset[str] | None:
        """Return the daemons that a call may act for, None for any."""
        if self._tokens is None:
            return call.peer_names
        daemon_ids = self._tokens.daemon_ids(call)
        if daemon_ids is None or not self._by_certificate:
            return daemon_ids
        return daemon_ids & call.peer_names

    def stranger(self, call: Call) -> None:
        """Take in that a call was refused because it named what belongs to another daemon."""
        self._refused.note(call, "daemon")
