"""Pictures of a study: marks where the values are, and nothing that a page could stumble over."""

import math
import re
from xml.etree import ElementTree

from shoestring.search.charts import Axis, Column, Point, bars, parallel, scatter, ticks

SVG = re.compile(r"<svg.*</svg>", re.DOTALL)


def test_points_lie_in_the_order_of_their_values_and_the_text_is_escaped():
    points = [
        Point(n, 1.0 + n * n, f"<b>{n} & more", "best" if n == 2 else "pruned" if n == 1 else "complete")
        for n in range(4)
    ]
    tree = ElementTree.fromstring(
        scatter([*points, Point(9, math.nan, "none")], Axis("trial <1>"), Axis("loss", log=True))
    )
    marks = [mark for mark in tree.iter("circle") if mark.get("class") == "point"]
    across, down = ([float(mark.get(name)) for mark in marks] for name in ("cx", "cy"))
    assert len(marks) == 3 and across == sorted(across) and down == sorted(down, reverse=True)
    assert [title.text for title in tree.iter("title")] == [point.told for point in points]
    assert len([mark for mark in tree.iter("circle") if mark.get("class") == "ring"]) == 1
    assert len([mark for mark in tree.iter("path") if mark.get("class") == "pruned"]) == 1


def test_bars_are_as_long_as_their_shares():
    tree = ElementTree.fromstring(bars([("a", 0.6), ("b", 0.3), ("c", 0.0)], "importances"))
    widths = [float(bar.get("width")) for bar in tree.iter("rect")]
    assert widths[1] == widths[0] / 2 and widths[2] == 0


def test_a_line_of_parallel_coordinates_breaks_where_a_trial_has_no_value():
    columns = [Column(name, "0", "1") for name in "abc"]
    tree = ElementTree.fromstring(parallel(columns, [([0.0, None, 1.0], 0.5, "x"), ([0.0, 0.5, 1.0], 1.0, "y")], "p"))
    broken, whole = (path.get("d") for path in tree.iter("path"))
    assert broken.count("M") == 2 and whole.count("M") == 1 and whole.count("L") == 2


def test_nothing_to_draw_is_said():
    for empty in (scatter([], Axis("x"), Axis("y")), bars([], "b"), parallel([Column("a", "", "")], [], "p")):
        assert empty == "<p>nothing to draw yet</p>"


def test_ticks_are_round_and_inside():
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10] and ticks(3, 3) == [3]
    assert ticks(0.1, 97, log=True)[0] == 0.1 and all(0.1 <= tick <= 97 for tick in ticks(0.1, 97, log=True))
    assert ticks(0, 3, whole=True) == [0, 1, 2, 3]
