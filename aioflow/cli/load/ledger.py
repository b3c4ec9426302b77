"""The accepted jobs that are not accounted for yet: 24 bytes each, in the order of their receipts.

An id of 32 hexadecimal digits, as aioflow makes them, is kept as 16 bytes; another is kept as it is, beside them.
"""

from __future__ import annotations

from struct import Struct

ENTRY = Struct("<16sd")
MOST_ENTRIES = 10_000_000
"""240 MB; submitting ends there."""


class Ledger:
    """A line of (id, monotonic seconds at which its submit was to start)."""

    def __init__(self, most: int = MOST_ENTRIES) -> None:
        self._entries = bytearray()
        self._others: dict[bytes, str] = {}
        self._named = 0
        self._most = most

    def __len__(self) -> int:
        return len(self._entries) // ENTRY.size

    @property
    def full(self) -> bool:
        """Whether it holds as many as it may."""
        return len(self) >= self._most

    def add(self, job_id: str, began: float) -> None:
        """Put a job at the end."""
        self._entries += ENTRY.pack(self._packed(job_id), began)

    def first(self, count: int) -> list[tuple[str, float]]:
        """The first ones, which stay."""
        some = ENTRY.iter_unpack(self._entries[: count * ENTRY.size])
        return [(self._others.get(packed) or packed.hex(), began) for packed, began in some]

    def move(self, count: int, kept: list[tuple[str, float]]) -> None:
        """Take the first ones out, save those that are kept: they go to the end."""
        if self._others:
            for packed, _ in ENTRY.iter_unpack(self._entries[: count * ENTRY.size]):
                self._others.pop(packed, None)
        del self._entries[: count * ENTRY.size]
        for job_id, began in kept:
            self.add(job_id, began)

    def _packed(self, job_id: str) -> bytes:
        try:
            packed = bytes.fromhex(job_id)
        except ValueError:
            packed = b""
        if len(packed) == 16 and any(packed[:8]) and packed.hex() == job_id:
            return packed
        self._named += 1
        packed = self._named.to_bytes(16)
        self._others[packed] = job_id
        return packed
