"""Which batches a way to run a network is fastest in. Pure: no torch."""

from __future__ import annotations

import math
from typing import NamedTuple


class Passes(NamedTuple):
    """As far as it was measured. Tokens are rows x longest, as a forward pass pays for them.

    Attributes:
        batch_tokens: the most of a batch; beyond, it gets slower.
        large_from: from here on a batch is large, and run by what is fastest in large ones.
        padding, small_padding: tokens of padding, in a large batch and in a small one, beyond which two passes are
            faster.
    """

    batch_tokens: float = math.inf
    large_from: float = 0
    padding: float = math.inf
    small_padding: float = math.inf


ANY = Passes()
