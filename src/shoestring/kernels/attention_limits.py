"""What the attention kernel takes, and into how many parts it cuts its work going backward. Torch-free, for plans."""

NARROWEST, WIDEST = 16, 256  # of a head; widths are multiples of 8
SHORTEST = 48  # rows: in shorter ones a call costs more than it saves
KEYS = 96  # of a block: see attention_tiles.h
_MOST_PARTS = 8


def takes_width(width: float) -> bool:
    """Of queries and keys, or of values."""
    return width % 8 == 0 and NARROWEST <= width <= WIDEST


def parts_of(heads: int, tokens: int, threads: int) -> int:
    """Into how many parts a document's keys are cut, so that threads seldom wait. heads: of keys, in all rows.

    Each part has a gradient of the queries of its own, float32, added up in the end.
    """
    most = min(_MOST_PARTS, -(-tokens // KEYS))
    for parts in range(1, most):
        turns = -(-heads * parts // threads)
        if 4 * turns * threads <= 5 * heads * parts:
            return parts
    return most
