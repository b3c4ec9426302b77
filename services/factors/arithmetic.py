"""Prime factorisations by FLINT, and the divisors that follow from them. No I/O; may take a minute of a core."""

from __future__ import annotations

import math
from collections.abc import Sequence

from flint import fmpz

Powers = Sequence[tuple[int, int]]
"""(prime, power), by prime, without repetition."""


def prime_powers(number: int) -> list[tuple[int, int]]:
    """The prime factorisation of a number of at least 1; that of 1 is empty."""
    return sorted((int(prime), int(power)) for prime, power in fmpz(number).factor())


def count_of_divisors(powers: Powers) -> int:
    """How many divisors the product has, 1 and itself among them."""
    return math.prod(power + 1 for _, power in powers)


def divisors_of(powers: Powers) -> list[int]:
    """All of them, the least first: as many as `count_of_divisors` says."""
    found = [1]
    for prime, power in powers:
        found = [divisor * prime**taken for divisor in found for taken in range(power + 1)]
    return sorted(found)
