"""Gives back a name that h2 4 changed and that purerpc asks for when it is imported."""

import h2.events

if not hasattr(h2.events, "PingAcknowledged"):
    h2.events.PingAcknowledged = h2.events.PingAckReceived  # type: ignore[attr-defined]
