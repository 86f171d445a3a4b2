"""Text that arrives in pieces, broken between words at a terminal's edge.

A word is held back until it is whole, since only then is it known whether it fits. Wide letters, whose scripts do not
part words by spaces, may be parted anywhere.
"""

from __future__ import annotations

from collections.abc import Callable


class WordWrap:
    """write: where the text goes. width: columns of a line, which may change. Call `end` behind the last piece."""

    def __init__(self, write: Callable[[str], object], width: int):
        self._write, self.width = write, width
        self._column = 0
        self._word, self._word_cells, self._blank = "", 0, ""

    @property
    def _width(self) -> int:
        return max(self.width, 2)

    def add(self, piece: str) -> None:
        from rich.cells import cell_len

        for letter in piece:
            if letter == "\n":
                self._place()
                self._out(self._blank.rstrip(" ") + "\n")
                self._column, self._blank = 0, ""
            elif letter == "\t" or letter.isspace():
                self._place()
                self._blank += letter.expandtabs(4)
            else:
                cells = cell_len(letter)
                if cells == 2:
                    self._place()
                self._word, self._word_cells = self._word + letter, self._word_cells + cells
                if cells == 2 or self._word_cells >= self._width:  # no line holds it anyway
                    self._place()

    def end(self) -> None:
        """What was held back."""
        self._place()
        self._out(self._blank)
        self._blank = ""

    def _place(self) -> None:
        """The word, behind its blanks or at the beginning of the next line."""
        if not self._word:
            return
        if self._column and self._column + len(self._blank) + self._word_cells > self._width:
            self._out("\n")
            self._column, self._blank = 0, ""
        self._blank = self._blank[: max(self._width - self._word_cells, 0)] if not self._column else self._blank
        self._out(self._blank + self._word)
        self._column += len(self._blank) + self._word_cells
        self._word, self._word_cells, self._blank = "", 0, ""

    def _out(self, text: str) -> None:
        if text:
            self._write(text)
