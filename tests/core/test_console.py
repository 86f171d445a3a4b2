import io

import pytest
from rich.console import Console

from shoestring.core import console

ROWS = [("a", "words " * 20), ("longer", "x")]


@pytest.mark.parametrize("stream", ["out", "err"])
def test_a_row_of_a_table_is_one_line_in_a_pipe_and_folded_on_a_terminal(monkeypatch, stream):
    for terminal, lines in ((False, 3), (True, 6)):
        shown = io.StringIO()
        made = Console(file=shown, force_terminal=terminal, width=40, no_color=True, soft_wrap=True)
        monkeypatch.setitem(console._consoles, stream, made)
        made.print(console.table(("name", "what"), ROWS, right=("name",), stream=stream))
        text = shown.getvalue()
        assert len(text.splitlines()) == lines, text
        if not terminal:
            assert text == "  name  what\n     a  " + ("words " * 20).rstrip() + "\nlonger  x\n"
        else:
            assert max(map(len, text.splitlines()[1:])) <= 40 and "wor\n" not in text
