"""New random ids, of replicas and of transports."""

import os

# Ids whose random bytes are drawn at once. A request to the system releases the interpreter lock,
# and getting it back from a busy writer thread costs more than all else that an id needs.
_IDS_DRAWN = 256

_drawn: list[bytes] = []


def new_id() -> bytes:
    """Return the bytes of a new random replica or transport id (UUID version 4)."""
    if not _drawn:
        noise = os.urandom(16 * _IDS_DRAWN)
        _drawn.extend(noise[start : start + 16] for start in range(0, len(noise), 16))
    noise = _drawn.pop()
    version, variant = noise[6] & 0x0F | 0x40, noise[8] & 0x3F | 0x80
    return b"%b%c%b%c%b" % (noise[:6], version, noise[7:8], variant, noise[9:])
