"""The web page's files: all there, nothing from elsewhere, and no text of a model parsed into elements."""

import re

import pytest

from shoestring.serve.http.limits import Access, digest_of
from shoestring.serve.http.page import FOLDER, POLICY
from tests.serve.served import client_of, error_of, tiny_app

FILES = sorted(path.name for path in FOLDER.iterdir())


@pytest.fixture(scope="module")
def client():
    with client_of(tiny_app()) as client:
        yield client


def test_the_page_and_all_its_parts_are_sent_under_a_policy(client):
    index = client.get("/")
    assert index.headers["content-type"] == "text/html; charset=utf-8"
    assert index.headers["content-security-policy"] == POLICY
    for name in FILES:
        answer = client.get(f"/page/{name}")
        assert answer.status_code == 200 and answer.content == (FOLDER / name).read_bytes()
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert client.get("/page/main.js").headers["content-type"].startswith("text/javascript")


def test_what_the_page_names_is_there():
    index = (FOLDER / "index.html").read_text()
    named = re.findall(r'(?:src|href)="([^"#]+)"', index)
    assert named and {name.removeprefix("page/") for name in named} <= set(FILES)
    for name in FILES:
        if name.endswith(".js"):
            imported = re.findall(r'from "\./([^"]+)"', (FOLDER / name).read_text())
            assert set(imported) <= set(FILES)
    script = (FOLDER / "main.js").read_text()
    ids = set(re.findall(r'id="([^"]+)"', index))
    assert set(re.findall(r'byId\("([^"]+)"\)', script)) <= ids


@pytest.mark.parametrize("name", ["../app.py", "..%2fapp.py", "nothing.js", "page", "%2e%2e/app.py"])
def test_nothing_else_is_sent(client, name):
    error_of(client.get(f"/page/{name}"), 404)


def test_the_page_asks_nobody_for_a_key_and_the_api_does():
    with client_of(tiny_app(access=Access("127.0.0.1", (digest_of("a-long-key"),)))) as client:
        assert client.get("/").status_code == 200 and client.get("/page/main.js").status_code == 200
        assert client.get("/v1/models").status_code == 401


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith((".js", ".html", ".css"))])
def test_nothing_is_loaded_from_elsewhere_and_nothing_is_parsed_into_elements(name):
    text = (FOLDER / name).read_text()
    code = re.sub(r"(?s)/\*.*?\*/", "", re.sub(r"(?m)^\s*//.*$", "", text))
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "srcdoc"):
        assert word not in code
    assert not re.search(r"https?://(?!\[)[a-z]", code) and " onclick=" not in code and "javascript:" not in code
