"""Credits of offers: each is good once, and for some seconds by the clock of the member that offers."""

from __future__ import annotations

CREDIT_SECONDS = 20.0
"""How long a credit is good. A giver waits longer for an answer, so that no give is taken after it gave up."""
RENEW_SECONDS = 10.0
"""After which a standing offer gets a new credit."""
_MOST = 256


class Credits:
    """Those that are out. `now`: CLOCK_MONOTONIC seconds."""

    def __init__(self) -> None:
        self._out: dict[str, float] = {}

    def issue(self, credit: str, now: float) -> None:
        """Give out a credit."""
        self._out = {other: at for other, at in self._out.items() if now - at < CREDIT_SECONDS}
        while len(self._out) >= _MOST:
            del self._out[next(iter(self._out))]
        self._out[credit] = now

    def redeem(self, credit: str, now: float) -> bool:
        """Whether it is good; it is used then."""
        issued = self._out.pop(credit, None)
        return issued is not None and 0.0 <= now - issued < CREDIT_SECONDS
