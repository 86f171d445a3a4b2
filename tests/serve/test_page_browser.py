"""The web page as people use it, in Chromium: conversations, what is stopped, changed and asked again, two models
beside each other, hostile answers, and the page by keyboard and for screen readers."""

import json
import re

import pytest
import torch

from shoestring.serve.http.app import make_app
from shoestring.serve.http.catalog import open_catalog, with_adapters
from shoestring.serve.http.limits import Access, digest_of
from tests.generate.tiny import END, tiny_model
from tests.serve.browser import browser
from tests.serve.served import Slow, listening

pytestmark = pytest.mark.browser

WIDE, PHONE = {"width": 1200, "height": 800}, {"width": 360, "height": 740}
HOSTILE = b"""<script>window.hacked = 1</script><img src=x onerror="window.hacked = 2">
[click](javascript:window.hacked=3) [data](data:text/html,<script>window.hacked=4</script>)
![picture](data:image/svg+xml,<svg onload=alert(1)>) ![far](https://example.org/spy.png)
<a href="https://example.org" onmouseover="window.hacked = 5">hover</a> <iframe srcdoc="<script>1</script>"></iframe>
`<b>code</b>` <https://example.org/auto> [good](https://example.org/good "title")

```html
<script>window.hacked = 6</script>
```

| a | b |
|---|---|
| <img src=x onerror=alert(1)> | **bold** |
"""


class Replies(torch.nn.Module):
    """A head that says these one after another, the last for ever."""

    def __init__(self, model, *replies):
        super().__init__()
        self.replies, self._left = [[*reply, END] for reply in replies], []
        model.decoder.head = self

    def forward(self, hidden_BD):
        if not self._left:
            self._left = list(self.replies.pop(0) if len(self.replies) > 1 else self.replies[0])
        logits = torch.zeros(hidden_BD.shape[0], 260)
        logits[:, self._left.pop(0)] = 100.0
        return logits


def app_of(*replies, access=None, template=True):
    """A server of models called one, two, ..., each with a head that says its replies, or Slow where there are none."""
    models = []
    for name, said in zip(("one", "two"), replies, strict=False):
        model = tiny_model(context=2000) if template else tiny_model(context=2000, chat_template=None)
        Replies(model, *said) if said else Slow(model, 0.01)
        models.append((name, model))
    return make_app(open_catalog(with_adapters(models, ()), slots=4), access)


@pytest.fixture(scope="module")
def chromium():
    with browser() as running:
        yield running


@pytest.fixture(scope="module")
def open_page(chromium):
    """A page that nothing has been asked of yet."""
    with listening(app_of([b"A."])) as address:
        page = chromium.new_page()
        page.goto(address)
        yield page
        page.close()


@pytest.fixture
def opened(chromium):
    """-> a function that opens a server's page, and fails for what a page must not do: errors, requests elsewhere."""
    contexts, wrong = [], []

    def open_page(address, path="/", **options):
        context = chromium.new_context(**{"viewport": WIDE, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(8000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: request.url.startswith(address) or wrong.append(request.url))
        page.goto(address + path)
        page.wait_for_function(
            "() => document.querySelector('#model-0').options.length || !document.querySelector('#problem').hidden"
        )
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong


def ask(page, text):
    page.get_by_label("Your message").fill(text)
    page.keyboard.press("Enter")


def answered(page, count=1):
    """Wait for so many answers to be whole, and drawn -> their texts."""
    # Not innerText: of what is not on the screen and not drawn yet, Chromium has none.
    texts = page.wait_for_function(
        """count => {
            const texts = [...document.querySelectorAll('.answer .text')].map(one => one.textContent);
            const whole = document.querySelector('#stop').hidden && !document.querySelector('[aria-busy=true]');
            return whole && texts.length >= count && texts.every(Boolean) && texts;
        }""",
        arg=count,
    )
    return [text.strip() for text in texts.json_value()]


def bodies(page):
    """-> a list that the bodies of what the page asks for are put into."""
    found = []
    page.on("request", lambda request: request.method == "POST" and found.append(json.loads(request.post_data)))
    return found


def test_a_conversation_is_held_streamed_and_kept(opened):
    with listening(app_of([b"I am **well**.", b"It is `4`."])) as address:
        page = opened(address)
        asked = bodies(page)
        ask(page, "How are you?")
        assert answered(page) == ["I am well."]
        assert page.locator(".answer strong").inner_text() == "well"
        ask(page, "2 + 2?")
        assert answered(page, 2) == ["I am well.", "It is 4."]
        assert asked[0]["stream"] is True and "temperature" not in asked[0]
        assert [message["content"] for message in asked[1]["messages"]] == ["How are you?", "I am **well**.", "2 + 2?"]
        assert re.search(r"1\d tokens · [\d.]+ tokens/s", page.locator(".answer").first.inner_text())
        page.reload()
        assert answered(page, 2) == ["I am well.", "It is 4."]
        assert page.get_by_role("button", name="How are you?, a conversation").count() == 1
        page.get_by_role("button", name="New conversation").click()
        assert page.locator(".answer").count() == 0
        page.once("dialog", lambda dialog: dialog.accept())
        page.get_by_role("button", name="Delete How are you?").click()
        page.reload()
        assert page.locator("#list li").count() == 0


def test_an_answer_is_shown_as_it_comes_and_stopped(opened):
    app = app_of([])
    with listening(app) as address:
        page = opened(address)
        for way in ("button", "key"):
            ask(page, "Go on")
            texts = "[...document.querySelectorAll('.answer .text')]"
            page.wait_for_function(f"() => {texts}.at(-1).textContent.length > 10")
            page.get_by_role("button", name="Stop").click() if way == "button" else page.keyboard.press("Escape")
            page.wait_for_function("() => document.querySelector('#stop').hidden")
            figures = "[...document.querySelectorAll('.tools span')]"
            page.wait_for_function(f"() => {figures}.at(-1).textContent.includes('stopped')")
        front = app.state.front
        page.wait_for_timeout(100)
        assert all(not front.pending(lane) for lane in front.lanes) and front.metrics.left == 2
        assert set(answered(page, 2)[0]) == {"x"}


def test_an_answer_is_asked_for_again(opened):
    with listening(app_of([b"First.", b"Second."])) as address:
        page = opened(address)
        ask(page, "Say it")
        assert answered(page) == ["First."]
        page.get_by_role("button", name="Another answer by one").click()
        page.wait_for_function("() => document.querySelector('.answer .text').textContent.includes('Second.')")
        assert answered(page) == ["Second."]


def test_a_question_is_changed_when_the_change_is_sent_and_not_before(opened):
    with listening(app_of([b"A.", b"B.", b"C."])) as address:
        page = opened(address)
        asked = bodies(page)
        ask(page, "first")
        answered(page)
        ask(page, "second")
        answered(page, 2)
        page.get_by_role("button", name="Edit this message").first.click()
        assert page.get_by_label("Your message").input_value() == "first"
        page.get_by_role("button", name="Leave it as it is").click()
        assert answered(page, 2) == ["A.", "B."] and page.get_by_label("Your message").input_value() == ""
        page.get_by_role("button", name="Edit this message").first.click()
        ask(page, "changed")
        page.wait_for_function("() => document.querySelectorAll('.answer').length === 1")
        assert answered(page) == ["C."]
        assert [message["content"] for message in asked[-1]["messages"]] == ["changed"]
        assert page.locator("#editing").is_hidden()


def test_two_models_answer_side_by_side_and_keep_their_names(opened):
    with listening(app_of([b"I am one."], [b"I am two."])) as address:
        page = opened(address)
        page.get_by_label("Side by side").check()
        ask(page, "Who are you?")
        assert answered(page, 2) == ["I am one.", "I am two."]
        left, right = (one.bounding_box() for one in page.locator(".answer").all())
        assert left["x"] + left["width"] <= right["x"] and abs(left["y"] - right["y"]) < 2
        page.get_by_label("Side by side").uncheck()
        page.locator("#model-0").select_option("two")
        names = [one.inner_text() for one in page.locator(".answer h2").all()]
        assert names == ["one", "two"]
        page.set_viewport_size(PHONE)
        left, right = (one.bounding_box() for one in page.locator(".answer").all())
        assert left["y"] + left["height"] <= right["y"]


def test_nothing_in_a_hostile_answer_runs_or_is_loaded(opened):
    with listening(app_of([HOSTILE])) as address:
        page = opened(address)  # which fails for a request to anywhere else
        dialogs = []
        page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        ask(page, "<img src=x onerror='window.hacked = 7'>")
        answered(page)
        page.wait_for_timeout(200)
        assert page.evaluate("window.hacked") is None and not dialogs and page.url == f"{address}/"
        inside = "#log :is(script, img, iframe, svg, object, embed, form, input)"
        assert page.locator(inside).count() == 0
        links = [one.get_attribute("href") for one in page.locator("#log a").all()]
        names = ("/spy.png", "", "/auto", "/good")
        assert links == [f"https://example.org{name}" for name in names]  # and none of javascript: or data:
        assert all(one.get_attribute("rel") == "noopener noreferrer nofollow" for one in page.locator("#log a").all())
        assert "<script>window.hacked = 6</script>" in page.locator("#log pre").inner_text()
        assert page.locator("#log td strong").inner_text() == "bold"
        names = "[...document.querySelectorAll('#log *')].flatMap(one => one.getAttributeNames())"
        assert not [name for name in page.evaluate(names) if name.startswith("on")]


@pytest.mark.parametrize(
    "attempt",
    [
        "document.body.innerHTML = '<img src=x onerror=\"window.hacked = 1\">'",
        "document.body.setAttribute('onclick', 'window.hacked = 2')",
        "document.createElement('script').textContent = 'window.hacked = 3'",
    ],
)
def test_a_page_could_not_run_it_even_if_it_tried(open_page, attempt):
    """The policy under which the page is sent, against what it never does."""
    tried = f"() => {{ try {{ {attempt}; return null; }} catch (error) {{ return error.name; }} }}"
    refused = open_page.evaluate(tried)
    assert refused == "TypeError" and open_page.evaluate("window.hacked") is None



def test_a_model_that_only_continues_text_does_so(opened):
    with listening(app_of([b" and so on **"], template=False)) as address:
        page = opened(address)
        asked = bodies(page)
        assert page.get_by_placeholder("Begin a text, and the model goes on").count() == 1
        ask(page, "Once")
        assert answered(page) == ["and so on **"]
        assert asked[0]["prompt"] == "Once" and asked[0]["max_tokens"] == 256


def test_settings_are_sent_and_a_key_opens_the_server(opened):
    access = Access(keys=(digest_of("my-long-key"),))
    with listening(app_of([b"Yes."], access=access)) as address:
        page = opened(address)
        assert "a key is asked for" in page.get_by_role("alert").inner_text()
        asked = bodies(page)
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("API key").fill("my-long-key")
        page.get_by_label("System message").fill("Be brief.")
        page.get_by_label("Temperature").fill("0.5")
        page.get_by_label("Seed").fill("7")
        page.get_by_label("Appearance").select_option("dark")
        page.get_by_role("button", name="Done").click()
        page.wait_for_function("() => document.querySelector('#model-0').options.length === 1")
        ask(page, "Well?")
        assert answered(page) == ["Yes."]
        assert asked[0]["messages"][0] == {"role": "system", "content": "Be brief."}
        assert asked[0]["temperature"] == 0.5 and asked[0]["seed"] == 7 and "top_p" not in asked[0]
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 24, 28)"


def test_an_error_of_the_server_is_shown_where_the_answer_would_be(opened):
    with listening(app_of([b"Yes."])) as address:
        page = opened(address)
        ask(page, "x" * 3000)
        assert "the model's context is 2,000" in answered(page)[0]


def test_the_page_works_by_keyboard_alone(opened):
    with listening(app_of([b"Yes.", b"Again."], [b"No."])) as address:
        page = opened(address)
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the question"
        page.keyboard.press("Enter")
        page.keyboard.type("Hello?")
        page.keyboard.press("Enter")
        answered(page)
        reached = set()
        for _ in range(25):
            page.keyboard.press("Tab")
            reached.add(page.evaluate("document.activeElement.getAttribute('aria-label') || document.activeElement.id"))
            if page.evaluate("document.activeElement.className") == "again":
                page.keyboard.press("Space")
                page.wait_for_function("() => document.querySelector('.answer .text').textContent.includes('Again.')")
                answered(page)
        assert {"Edit this message", "Another answer by one", "model-0", "compare", "open-settings", "new"} <= reached
        page.get_by_role("button", name="Settings").focus()
        page.keyboard.press("Enter")
        assert page.evaluate("document.querySelector('#settings').open")
        assert page.evaluate("document.querySelector('#settings').contains(document.activeElement)")
        page.keyboard.press("Escape")
        assert page.evaluate("document.activeElement.id") == "open-settings"


def test_no_fault_is_found_by_those_who_cannot_see_the_page(opened):
    from axe_playwright_python.sync_playwright import Axe

    def faults():
        found = Axe().run(page).response["violations"]
        return [(one["id"], [node["html"] for node in one["nodes"]]) for one in found]

    with listening(app_of([HOSTILE], [b"- a\n- b\n\n> c"])) as address:
        page = opened(address)
        page.get_by_label("Side by side").check()
        ask(page, "Hello?")
        answered(page, 2)
        for scheme, size in (("light", WIDE), ("dark", WIDE), ("dark", PHONE), ("light", PHONE)):
            page.emulate_media(color_scheme=scheme)
            page.set_viewport_size(size)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            assert faults() == []
        page.get_by_role("button", name="Conversations").click()
        assert faults() == []
        page.keyboard.press("Escape")
        page.get_by_role("button", name="Settings").click()
        assert faults() == []
