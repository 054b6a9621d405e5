"""How much a search by codes does: one table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Effort:
    """What one effort means.

    Attributes:
        probes: Centroids that each row of the query looks at.
        candidates: Documents that are scored exactly.
    """

    probes: int
    candidates: int

    def for_results(self, top_k: int) -> Effort:
        """The same where `top_k` documents are wanted."""
        return Effort(self.probes, max(self.candidates, _PER_RESULT * top_k))


EFFORTS = {
    1: Effort(32, 128),
    2: Effort(32, 256),
    3: Effort(64, 512),
    4: Effort(64, 1_024),
    5: Effort(128, 2_048),
}
"""From the quickest to the most thorough."""

# The hundredth best needs a wider net than the tenth.
_PER_RESULT = 5
