"""How long the text of a stream is joined: as its caller says, else by how much there is to do."""

from __future__ import annotations

#: With so many streams open or fewer, nothing is joined: there is time for each token.
FEW_STREAMS = 4
#: About how many deltas a second all streams share by themselves: each takes some 100 µs of CPU
#: with gRPC's part, so that they leave most of a core to what is not counted here.
DELTAS_PER_S = 2000
#: The longest that text is joined for without its caller's wish, in seconds: some three tokens of a
#: model that gives 30 a second, and no pause that stops a reader.
MOST_S = 0.1
#: The same where nobody sees the answer before it is whole.
WHOLE_S = 0.02


class Joining:
    """The default for a server's streams, which widens with their number.

    A stream is never slowed by it whose tokens come further apart than that.

    Args:
        fixed_s: The same for every stream, in seconds; None: by load.
    """

    def __init__(self, fixed_s: float | None = None) -> None:
        self.fixed_s = fixed_s
        #: How many streams have begun to answer.
        self.open = 0

    @property
    def delay_s(self) -> float:
        """How long the text of a stream is joined now, in seconds."""
        if self.fixed_s is not None:
            return self.fixed_s
        if self.open <= FEW_STREAMS:
            return 0.0
        return min(MOST_S, self.open / DELTAS_PER_S)

    def of(self, max_delay_s: float) -> Join:
        """That of one stream, whose caller allows so much; 0: the default."""
        return Join(self, max_delay_s)


class Join:
    """How long the text of one stream is joined; it is asked after each delta.

    Args:
        joining: The default.
        max_delay_s: What the caller allows, in seconds; 0 where it says nothing.
    """

    __slots__ = ("_counted", "_joining", "_max_delay_s")

    def __init__(self, joining: Joining, max_delay_s: float) -> None:
        self._joining = joining
        self._max_delay_s = max_delay_s
        self._counted = False

    def __call__(self) -> float:
        """How long, in seconds; from now on the stream counts as open."""
        if not self._counted:
            self._counted = True
            self._joining.open += 1
        return self._max_delay_s or self._joining.delay_s

    def close(self) -> None:
        """Notes that the stream is over."""
        if self._counted:
            self._counted = False
            self._joining.open -= 1


def whole() -> float:
    """How long the text of an answer is joined that nobody sees before it is whole."""
    return WHOLE_S
