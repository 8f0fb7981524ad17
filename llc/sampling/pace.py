"""How many draws a compiled segment takes, so that it ends within about a second: Ctrl-C waits for its end."""

from dataclasses import dataclass

_SECONDS = 1.0  # that a segment should take
_GROWTH = 4  # most times by which a segment may be longer than the one before


@dataclass
class Pace:
    """The size of the next segment, from the time that the last one took.

    Attributes:
        limit: draws of a segment, at most.
        seconds: of a draw in the last segment; 0 before one was measured.
        count: draws of the last segment.
    """

    limit: int
    seconds: float = 0.0
    count: int = 0

    def next_size(self) -> int:
        """Draws of the next segment; one at first."""
        by_time = _SECONDS / self.seconds if self.seconds > 0 else 1.0
        return max(1, int(min(by_time, _GROWTH * self.count, self.limit)))

    def saw(self, count: int, seconds: float) -> None:
        """Takes in a segment. The time of the first one is that of its compilation, and says nothing."""
        self.seconds = seconds / count if self.count else 0.0
        self.count = count
