"""The report in Chromium, from a file and without a network: curves are drawn, values shown, and it fits a phone."""

import pytest

import shoestring
from tests.serve.browser import browser
from tests.train.report_runs import write_run
from tests.train.test_report import HOSTILE

pytestmark = pytest.mark.browser

WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def chromium():
    with browser() as running:
        yield running


@pytest.fixture
def opened(chromium):
    """-> a function that opens a file, and fails for what a report must not do: errors, requests, blocked styles."""
    contexts, wrong = [], []

    def open_file(file, **options):
        context = chromium.new_context(**{"viewport": WIDE, "offline": True, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(8000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: message.type == "error" and wrong.append(message.text))
        page.on("request", lambda request: request.url == file.as_uri() or wrong.append(request.url))
        page.goto(file.as_uri())
        return page

    yield open_file
    for context in contexts:
        context.close()
    assert not wrong


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Of one run that has everything, with more steps than a screen has points."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    stage = {"event": "stage", "step": 900, "stage": 2, "batch_tokens": 2048, "sequence_length": 64, "layers": 4}
    return shoestring.report(write_run(folder, steps=2000, extra=(stage,))).out


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    runs = [write_run(folder / name, steps, seed, rate) for name, steps, seed, rate in
            (("short-warmup", 300, 1, 3e-3), ("long-warmup", 400, 2, 1e-3))]  # fmt: skip
    return shoestring.report(runs, folder / "both.html").out


def points(page, chart, curve=0):
    """How many points the path of a curve has, and its box on the screen."""
    path = page.locator(".chart").nth(chart).locator("path.curve").nth(curve)
    return path.get_attribute("d").count("L") + 1, path.bounding_box()


def test_curves_are_drawn_from_a_file_and_nothing_is_fetched(opened, one):
    page = opened(one)
    titles = page.locator(".chart h3").all_inner_texts()
    assert titles == [
        "Loss", "Bits per byte", "Speed", "Memory", "Learning rate", "Gradient norm", "Share of the matrix peak",
    ]  # fmt: skip
    for chart in range(len(titles)):
        count, box = points(page, chart)
        svg = page.locator(".chart svg.plot").nth(chart).bounding_box()
        assert count >= 2 and box["width"] > 0.5 * svg["width"], titles[chart]
        assert svg["x"] <= box["x"] and box["x"] + box["width"] <= svg["x"] + svg["width"] + 1
    assert points(page, 0)[0] == 500 and page.locator(".chart").first.locator("path.band").count() == 1
    assert page.locator(".chart").nth(3).locator("svg.plot line.level").count() == 2
    assert page.locator(".chart").first.locator("line.mark").count() == 1
    assert "Loss: training ends at 2." in page.locator("svg.plot").first.get_attribute("aria-label")
    # The curve falls: its highest point is at the left.
    path = page.locator("path.curve").first.get_attribute("d")
    curve = [float(point.split(" ")[1]) for point in path[1:].split("L")]
    assert curve[0] < curve[len(curve) // 2] and curve[0] == min(curve)


def test_values_are_shown_under_the_pointer_by_keys_and_by_touch(opened, one):
    page = opened(one, has_touch=True)
    plot = page.locator("svg.plot").first
    values = page.locator(".values").first
    assert values.is_hidden()
    box = plot.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 100)
    text = values.inner_text()
    step = int(text.split("\n")[0].removeprefix("step ").replace(",", ""))
    assert 900 < step < 1100 and "training" in text and "held out, a sample" in text
    page.mouse.move(0, 0)
    assert values.is_hidden()
    plot.focus()
    page.keyboard.press("End")
    assert "step 2,000" in values.inner_text() and "held out, all" in values.inner_text()
    before = values.inner_text()
    page.keyboard.press("ArrowLeft")
    assert values.inner_text() != before
    page.keyboard.press("Escape")
    assert values.is_hidden()
    page.touchscreen.tap(box["x"] + box["width"] / 3, box["y"] + 100)
    assert values.is_visible()


def test_the_axis_below_and_a_logarithmic_one_are_chosen(opened, one):
    page = opened(one)

    def below():
        return page.locator("svg.plot").first.locator("text").all_text_contents()

    steps = below()
    page.get_by_label("over").select_option("tokens")
    assert below() != steps and any(text.endswith("M") for text in below())
    page.get_by_label("over").select_option("seconds")
    assert any(":" in text for text in below())
    height = points(page, 0)[1]["height"]
    page.get_by_label("logarithmic").check()
    assert points(page, 0)[1]["height"] != height
    assert page.locator(".chart").nth(2).locator("path.curve").count()  # of charts that have no such axis


def test_runs_are_laid_over_one_another_and_can_be_taken_out(opened, two):
    page = opened(two)
    curves = page.locator(".chart").first.locator("path.curve")
    both = curves.count()
    assert page.locator("#legend button").all_inner_texts() == ["short-warmup", "long-warmup"]
    colours = page.evaluate(
        "[...document.querySelectorAll('.chart')][2].querySelectorAll('path.curve:not(.raw)').length &&"
        " [...[...document.querySelectorAll('.chart')][2].querySelectorAll('path.curve:not(.raw)')]"
        ".map(one => getComputedStyle(one).stroke)"
    )
    assert len(set(colours)) == 2
    page.get_by_role("button", name="short-warmup").click()
    assert page.get_by_role("button", name="short-warmup").get_attribute("aria-pressed") == "false"
    assert curves.count() == both / 2
    page.get_by_role("button", name="long-warmup").click()
    assert curves.count() == 0
    page.get_by_role("button", name="short-warmup").click()
    assert curves.count() == both / 2


def test_nothing_of_a_hostile_run_runs(opened, tmp_path):
    run = write_run(tmp_path / HOSTILE.replace("/", "⁄"), steps=40, extra=(
        {"step": 40, "sample": HOSTILE, "prompt": HOSTILE}, {"step": 40, HOSTILE: 2.5},
        {"step": 40, "event": HOSTILE, "x": HOSTILE}, {"step": 41, "event": "rolled_back", "reason": HOSTILE},
    ))  # fmt: skip
    page = opened(shoestring.report([run, run], tmp_path / "page.html").out)
    page.locator("svg.plot").first.focus()
    page.keyboard.press("End")
    assert page.evaluate("window.hacked") is None
    assert page.locator(":is(img, iframe, object, embed)").count() == 0
    assert "<script>window.hacked = 1</script>" in page.locator(".sample").first.inner_text()


GROUNDS = {"light": "rgb(255, 255, 255)", "dark": "rgb(22, 24, 28)"}


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_it_fits_in_light_and_in_dark(opened, one, two, size):
    for file, scheme in ((one, "light"), (two, "dark")):
        page = opened(file, viewport=size, color_scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == GROUNDS[scheme]
        widths = [plot.bounding_box()["width"] for plot in page.locator("svg.plot").all()]
        assert min(widths) > 300 and max(widths) <= size["width"]


def test_no_fault_is_found_by_those_who_cannot_see_it(opened, two):
    from axe_playwright_python.sync_playwright import Axe

    page = opened(two)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    for scheme, size in (("light", WIDE), ("dark", PHONE)):
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size(size)
        found = Axe().run(page).response["violations"]
        assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in found] == []
