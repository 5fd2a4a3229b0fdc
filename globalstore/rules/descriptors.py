"""What a client may say of an artifact, checked against the artifact's own id."""

from globalstore.rules import multihash
from globalstore.rules.artifact_ids import Scheme, check_cgid, parse_mi2, scheme_of, stored
from globalstore.rules.refusals import FailedPrecondition, InvalidArgument

# Numbers of the wire's ArtifactIdKind.
ID_KIND_MI2 = 1
ID_KIND_CGID = 2
_KINDS = {Scheme.MI2: ID_KIND_MI2, Scheme.CGID: ID_KIND_CGID}


def id_kind(artifact_id: str, given: int) -> int:
    """Return the kind of an id; a given kind must not contradict the prefix."""
    if given not in {0, ID_KIND_MI2, ID_KIND_CGID}:
        raise InvalidArgument(f"descriptor.id_kind is {given}, expected MI2, CGID or unspecified")
    derived = _KINDS.get(scheme_of(artifact_id), 0)
    if derived and given not in {0, derived}:
        raise InvalidArgument(f"descriptor.id_kind contradicts the prefix of {artifact_id[:80]!r}")
    return derived or given


def check(artifact_id: str, index_multihash: str, data_multihash: str) -> None:
    """Refuse an id outside its grammar and digests that are malformed or not those of the id."""
    stored("descriptor.artifact_id", artifact_id)
    scheme = scheme_of(artifact_id)
    if scheme is Scheme.CGID:
        check_cgid("descriptor.artifact_id", artifact_id)
        if data_multihash:
            raise InvalidArgument("descriptor.data_multihash is set, but a cgid id has none")
    if index_multihash:
        multihash.decode("descriptor.index_multihash", index_multihash)
    if data_multihash:
        multihash.decode("descriptor.data_multihash", data_multihash)
    if scheme is Scheme.MI2:
        of_index, of_data = parse_mi2("descriptor.artifact_id", artifact_id)
        for name, given, own in (
            ("index_multihash", index_multihash, of_index),
            ("data_multihash", data_multihash, of_data),
        ):
            if given and given != own:
                raise FailedPrecondition(f"descriptor.{name} is not that of the artifact id")
