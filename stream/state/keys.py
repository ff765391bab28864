"""Names of keys in the page store, made in one place.

    {namespace:spec_id:PARTITION}:head                  owner's epoch, W and owners of a partition
    {namespace:spec_id:PARTITION}:row:KIND:HASH         a row
    {namespace:spec_id:copies-X}:copy:KIND:HASH         the copies of one entity, a hash by partition
    {namespace:spec_id:copies-X}:epochs                 owners' epochs, a hash by partition

The part in braces is the hash tag: in a cluster, the head and the rows of a partition share one slot. The copies
are spread over sixteen tags (X is the first digit of the hash), so that many fit into one script call.
Every name begins with `{namespace:`, which is the pattern for an ACL.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from urllib.parse import quote

_HASH_BYTES = 16
_LONGEST_KEY = 64
_KNOWN_COPIES = 131_072
"""Names of copies that are kept: those of hot entities are asked for at every refresh and every flush."""


class KeyNames:
    """Pure: the same arguments give the same names in every process."""

    def __init__(self, namespace: str, spec_id: str, secret: bytes) -> None:
        # A group's name may hold braces, colons or glob characters; quoted, it cannot.
        self.prefix = b"{%b:" % quote(namespace, safe="").encode()
        self._stem = self.prefix + quote(spec_id, safe="").encode() + b":"
        key = secret if len(secret) <= _LONGEST_KEY else hashlib.blake2b(secret).digest()
        self._empty = hashlib.blake2b(digest_size=_HASH_BYTES, key=key)
        self._row_stems: dict[tuple[int, str], tuple[bytes, hashlib.blake2b]] = {}
        self.copies = lru_cache(_KNOWN_COPIES)(self._copies)
        """(kind, identity) to the name of an entity's hash of copies."""

    def row(self, partition: int, kind: str, identity: str) -> bytes:
        """The name of a row: `kind` is readable, the identity is a keyed hash."""
        cached = self._row_stems.get((partition, kind))
        if cached is None:
            stem = self.tag(partition) + b":row:" + quote(kind, safe="").encode() + b":"
            cached = self._row_stems[partition, kind] = (stem, self._hash_of_kind(kind))
        stem, hasher = cached
        hasher = hasher.copy()
        hasher.update(identity.encode("utf-8", "surrogatepass"))
        return stem + hasher.hexdigest().encode()

    def head(self, partition: int) -> bytes:
        return self.tag(partition) + b":head"

    def _copies(self, kind: str, identity: str) -> bytes:
        digest = self.row(0, kind, identity)[-2 * _HASH_BYTES :]
        return b"".join((self.copies_prefix, digest[:1], b"}:copy:", quote(kind, safe="").encode(), b":", digest))

    def tag(self, partition: int) -> bytes:
        """The hash tag of a partition, with its braces: all its names begin with it."""
        return b"%b%d}" % (self._stem, partition)

    @property
    def copies_prefix(self) -> bytes:
        """What the names of all copies begin with; one digit and a brace follow."""
        return self._stem + b"copies-"

    def copies_epochs(self) -> list[bytes]:
        """The names of the hashes of epochs, one for each tag of copies."""
        return [self.epochs_beside(b"%b%x}" % (self.copies_prefix, digit)) for digit in range(16)]

    @staticmethod
    def epochs_beside(name: bytes) -> bytes:
        """The hash of epochs with the same hash tag as a copy."""
        return KeyNames.tag_of(name) + b":epochs"

    def probe(self) -> tuple[bytes, bytes]:
        """A head and a row that nothing else uses, to try rights with."""
        return self._stem + b"probe}:head", self._stem + b"probe}:row:probe:probe"

    @staticmethod
    def tag_of(name: bytes) -> bytes:
        """The hash tag of a name."""
        return name[: name.index(b"}") + 1]

    def _hash_of_kind(self, kind: str) -> hashlib.blake2b:
        hasher = self._empty.copy()
        hasher.update(kind.encode() + b"\0")
        return hasher
