"""The page of `llamalite serve`, used as a person would, in headless Chromium against a scripted server."""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import headless
import pytest
import toy
from scripted_server import Break, Refusal, ScriptedServer

HOSTILE = """<script>window.hacked = 1</script>
<img src=x onerror="window.hacked = 1"> <svg onload="window.hacked = 1"></svg>
<iframe srcdoc="<script>parent.hacked=1</script>">

[a](javascript:window.hacked=1) [b](JaVaScRiPt:window.hacked=1) [c](&#106;avascript:window.hacked=1)
[d](data:text/html,<script>window.hacked=1</script>) [e](vbscript:x) <javascript:window.hacked=1>
![f](http://127.0.0.1:9/x.png) [g](https://x.y/" onclick="window.hacked=1)

```html" onmouseover="window.hacked=1
</code></pre><script>window.hacked = 1</script>
```

| <b onclick="window.hacked=1">x</b> |
|---|
| <style>* { display: none }</style> |
"""
STORY: list[Any] = ["Once upon", *[0.05, " a time"] * 200]  # ten seconds of it
RICH = (
    "# A\n\n### B\n\n1. x\n   - y\n\n> q\n\n| a | b |\n|--|-:|\n| 1 | `2` |\n\n```py\nx = '"
    + "long " * 60
    + "'\n```\n\n"
)
RICH += "[link](https://x.y) and " + "unbroken" * 60


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with headless.chromium() as browser:
        yield browser


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer(headless.FOLDER) as server:
        yield server
        assert server.others == []  # the page asked for nothing that is not there


@pytest.fixture
def page(browser: Any, server: ScriptedServer) -> Iterator[Any]:
    yield from opened(browser, server.url, viewport={"width": 1280, "height": 800})


def opened(browser: Any, url: str, key: str = "", **options: Any) -> Generator[Any, None, None]:
    """A page in a browser that remembers nothing. A request to elsewhere, or an error in a script, fails the test."""
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"], **options)
    context.add_init_script(f"localStorage.setItem('llamalite.key', '{json.dumps(key)}')")
    page = context.new_page()
    page.set_default_timeout(20_000)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if "Content Security Policy" in said.text else None)
    page.on("request", lambda asked: None if asked.url.startswith((url, "blob:")) else wrong.append(asked.url))
    page.goto(url)
    page.wait_for_selector("#model option", state="attached")
    yield page
    context.close()
    assert wrong == []


def ask(page: Any, text: str) -> None:
    page.fill("#question", text)
    page.press("#question", "Enter")


def answered(page: Any, text: str, n: int = 1) -> None:
    """Wait until the `n`-th answer is finished and holds `text`."""
    answer = page.locator(".assistant").nth(n - 1)
    answer.locator("[data-action=again]").wait_for()
    assert text in answer.inner_text()


def shows(page: Any, selector: str, text: str | re.Pattern[str]) -> None:
    """Wait until an element that `selector` finds holds `text`."""
    page.locator(selector, has_text=text).wait_for()


def messages(page: Any) -> list[str]:
    texts: list[str] = page.locator(".message .text").all_inner_texts()
    return texts


def test_a_conversation_is_streamed_kept_and_continued(page: Any, server: ScriptedServer) -> None:
    server.script = ["Hel", "lo ", 0.4, "**there**."]
    ask(page, "Who are you?")
    shows(page, ".assistant .text", re.compile(r"^Hello\s*$"))  # before the end
    assert page.inner_text("#send") == "Stop"
    answered(page, "Hello there.")
    assert page.locator(".assistant strong").inner_text() == "there"
    figures = re.sub(r"0\.\d\d s", "0.00 s", page.inner_text(".assistant .row > .figures"))
    assert figures == "42.0 tokens/s · first token after 0.00 s · 3 tokens · prompt 21, 8 from the cache"
    assert page.title() == "Who are you? – llamalite"

    server.script = ["Fine."]
    ask(page, "And now?")
    answered(page, "Fine.", 2)
    sent = server.requests[-1]
    assert [(one["role"], one["content"]) for one in sent["messages"]] == [
        ("user", "Who are you?"),
        ("assistant", "Hello **there**."),
        ("user", "And now?"),
    ]
    assert sent["model"] == "toy-1B-Q4_K_M"
    before = messages(page)
    page.reload()
    page.wait_for_selector(".assistant")
    assert messages(page) == before
    assert page.inner_text("#conversations [aria-current=page]") == "Who are you?"


def test_the_real_server_is_understood(browser: Any, tmp_path: Path) -> None:
    """Its policy, models, stream, figures, stop and errors; the toy model generates noise."""
    pytest.importorskip("starlette", reason="needs the extra `serve`: pip install '.[serve]'")
    from live_server import LiveServer

    from llamalite.server.settings import ServerSettings

    path = toy.write_toy(tmp_path / "toy.gguf", chat_template=toy.CHATML, n_ctx_train=512)
    settings = ServerSettings(api_keys=("secret",), sampling={"max_tokens": 16})
    with LiveServer({"toy": path}, settings) as server:
        for page in opened(browser, f"{server.url}/", key="secret"):
            ask(page, "Tell me a story")
            answered(page, "tokens/s · first token after")
            ask(page, "word " * 800)
            shows(page, ".problem p", "Start a new conversation")


def test_stop_ends_the_request_and_keeps_what_came(page: Any, server: ScriptedServer) -> None:
    server.script = STORY
    for by_key in (True, False):
        server.left.clear()
        ask(page, "Tell me a story")
        shows(page, ".message:last-child .text", "time")
        if by_key:
            page.keyboard.press("Escape")
        else:
            page.click("#send")
        assert server.left.wait(20)
        page.wait_for_selector(".assistant:last-child .note")
    assert page.locator(".note").all_inner_texts() == ["Stopped.", "Stopped."]
    assert "Once upon a time" in messages(page)[1]


def test_reload_in_the_middle_keeps_what_came(page: Any, server: ScriptedServer) -> None:
    server.script = STORY
    ask(page, "Tell me a story")
    shows(page, ".assistant .text", "time")
    page.reload()
    page.wait_for_selector(".note")
    assert page.inner_text(".note") == "Stopped."
    assert "Once upon a time" in messages(page)[1]
    assert server.left.wait(20)


def test_a_conversation_that_is_deleted_while_it_is_answered_stays_deleted(page: Any, server: ScriptedServer) -> None:
    server.script = STORY
    ask(page, "Tell me a story")
    shows(page, ".assistant .text", "time")
    page.click("[data-action=delete]")
    assert server.left.wait(20)
    page.wait_for_timeout(1200)  # longer than from one saving to the next
    page.reload()
    page.wait_for_selector("#model option", state="attached")
    assert page.locator("#conversations a").count() == 0


def test_nothing_that_a_model_says_runs_or_loads(page: Any, server: ScriptedServer) -> None:
    server.script = [*HOSTILE]  # character by character, through every unfinished state
    ask(page, HOSTILE)
    page.locator("[data-action=again]").wait_for(timeout=60_000)
    page.reload()
    page.wait_for_selector(".assistant .code")
    for selector in ("script", "img", "svg", "iframe", "style", "b"):
        assert page.locator(f".message {selector}").count() == 0, selector
    page.locator(".message a").evaluate_all("links => links.forEach(link => link.removeAttribute('target'))")
    hrefs = page.locator(".message a").evaluate_all("links => links.map(link => link.protocol)")
    assert set(hrefs) <= {"http:", "https:", "mailto:"}
    page.hover(".code .bar")
    assert page.evaluate("window.hacked") is None
    assert "<script>window.hacked = 1</script>" in page.inner_text(".assistant .text")


def test_an_answer_is_made_again_and_a_question_changed_and_nothing_is_lost(page: Any, server: ScriptedServer) -> None:
    server.script = ["First."]
    ask(page, "Question")
    answered(page, "First.")
    server.script = ["Second."]
    page.click("[data-action=again]")
    answered(page, "Second.")
    assert server.requests[0]["messages"] == server.requests[1]["messages"]
    page.click(".assistant [data-action=previous]")
    assert messages(page) == ["Question", "First."]

    server.script = ["Third."]
    page.click("[data-action=edit]")
    page.fill(".editing", "Question, changed")
    page.press(".editing", "Enter")
    answered(page, "Third.")
    assert messages(page) == ["Question, changed", "Third."]
    assert server.requests[2]["messages"] == [{"role": "user", "content": "Question, changed"}]
    page.click(".user [data-action=previous]")
    assert messages(page)[0] == "Question"
    page.click("[data-action=edit]")
    page.press(".editing", "Escape")
    assert messages(page)[0] == "Question"


def test_conversations_are_named_deleted_exported_and_imported(
    page: Any, server: ScriptedServer, tmp_path: Path
) -> None:
    for name in ("One", "Two"):
        page.click("#new")
        ask(page, name)
        answered(page, "Hello.")
    page.fill("#title", "Renamed")
    page.press("#title", "Enter")
    titles = page.locator("#conversations a")
    assert titles.all_inner_texts() == ["Renamed", "One"]
    with page.expect_download() as download:
        page.click("#export")
    file = tmp_path / "exported.json"
    download.value.save_as(file)
    assert {one["title"] for one in json.loads(file.read_text(encoding="utf-8"))["conversations"]} == {"Renamed", "One"}

    page.click("[aria-label='Delete “Renamed”']")
    assert titles.all_inner_texts() == ["One"]
    page.click("text=Undo")
    page.wait_for_selector("#conversations a:has-text('Renamed')")
    page.click("[aria-label='Delete “Renamed”']")
    page.set_input_files("#file", file)
    page.wait_for_selector("#notice:has-text('Imported: 1.')")
    page.reload()
    page.wait_for_selector("#conversations a")
    assert titles.all_inner_texts() == ["Renamed", "One"]
    titles.first.click()
    page.wait_for_selector(".message")
    assert messages(page) == ["Two", "Hello."]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("not JSON", "This file is not JSON."),
        ("[]", "This file does not hold exported llamalite conversations."),
        (
            '{"format": "llamalite conversations", "version": 1, "conversations": [{"id": 1}]}',
            "Conversation 1 of this file is damaged",
        ),
    ],
)
def test_a_file_that_was_not_exported_here_is_refused(page: Any, tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "wrong.json"
    file.write_text(text)
    page.set_input_files("#file", file)
    page.wait_for_selector("#notice:not(:empty)")
    assert said in page.inner_text("#notice")
    assert page.locator("#conversations a").count() == 0


def test_settings_reach_the_server_and_the_next_conversation(page: Any, server: ScriptedServer) -> None:
    page.select_option("#model", "toy-8B-Q8_0")
    page.click("#settings-open")
    page.fill("#system", "Be brief.")
    page.fill("[name=temperature]", "0.2")
    page.fill("[name=seed]", "7")
    page.fill("[name=top_p]", "3")
    assert "Top p is a number from 0 to 1" in page.inner_text("#sampling-problem")
    page.keyboard.press("Escape")
    ask(page, "Hi")
    answered(page, "Hello.")
    sent = server.requests[0]
    assert sent["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (sent["model"], sent["temperature"], sent["seed"]) == ("toy-8B-Q8_0", 0.2, 7)
    assert not {"top_p", "top_k"} & set(sent)
    page.reload()
    page.wait_for_selector("#model option", state="attached")
    page.click("#new")
    ask(page, "Hi")
    answered(page, "Hello.")
    assert server.requests[1]["temperature"] == 0.2


def test_copying_gives_the_markdown_and_the_code(page: Any, server: ScriptedServer) -> None:
    server.script = ["**a**\n\n```py\nx = 1\n```\n"]
    ask(page, "Hi")
    answered(page, "x = 1")
    for button, text in (("copy-code", "x = 1"), ("copy", "**a**\n\n```py\nx = 1\n```\n")):
        page.click(f".assistant [data-action={button}]")
        page.wait_for_selector("text=Copied")
        assert page.evaluate("navigator.clipboard.readText()") == text
        page.wait_for_selector("text=Copied", state="detached")


OVERFLOW = {"error": {"message": "The context holds 2048 tokens.", "code": "context_length_exceeded"}}


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ([Refusal(400, OVERFLOW)], "The context holds 2048 tokens. Start a new conversation"),
        ([Refusal(500, {})], "The server answered 500"),
        (["Par", {"error": {"message": "The model failed."}}], "The model failed."),
        (["Par", Break], "The connection ended before the answer did."),
    ],
)
def test_an_error_is_said_plainly_and_the_answer_can_be_made_again(
    page: Any, server: ScriptedServer, script: list[Any], said: str
) -> None:
    server.script = script
    ask(page, "Hi")
    page.wait_for_selector(".problem p")
    assert said in page.inner_text(".problem p") or said in page.locator(".problem").last.inner_text()
    assert (script[0] == "Par") == ("Par" in page.inner_text(".assistant .text"))
    server.script = ["Hello."]
    page.click("[data-action=again]")
    answered(page, "Hello.")


def test_a_busy_server_is_asked_again_when_it_says(page: Any, server: ScriptedServer) -> None:
    busy = Refusal(503, {"error": {"message": "The queue is full."}}, {"Retry-After": "1"})
    server.script = [busy, busy, "Hello."]
    ask(page, "Hi")
    page.wait_for_selector("text=The queue is full. Trying again in 1 s.")
    answered(page, "Hello.")
    assert len(server.requests) == 3


def test_a_server_that_is_gone_is_named(browser: Any) -> None:
    with ScriptedServer(headless.FOLDER) as server:
        opening = opened(browser, server.url)
        page = next(opening)
    ask(page, "Hi")
    page.wait_for_selector("text=The server does not answer.")
    opening.close()


def test_a_server_with_a_key_asks_for_it(browser: Any, server: ScriptedServer) -> None:
    server.key = "secret"
    page = browser.new_page()
    page.goto(server.url)
    page.click("text=Enter the key")
    assert page.evaluate("document.activeElement.id") == "key"
    page.keyboard.type("secret")
    page.keyboard.press("Escape")
    page.wait_for_selector("#model option", state="attached")
    ask(page, "Hi")
    answered(page, "Hello.")
    page.close()


@pytest.mark.parametrize("width", [320, 360])
def test_a_phone_scrolls_only_down(browser: Any, server: ScriptedServer, width: int) -> None:
    for page in opened(browser, server.url, viewport={"width": width, "height": 740}, has_touch=True, is_mobile=True):
        server.script = [RICH]
        ask_by_touch(page, "Hi " + "long" * 60)
        answered(page, "link")
        assert page.evaluate("document.documentElement.scrollWidth") == width
        page.tap("#settings-open")
        assert page.evaluate("document.querySelector('#settings').scrollWidth") <= width
        page.tap("#settings-close")
        page.tap("#menu")
        page.tap("#new")
        assert messages(page) == []
        assert not page.locator("#sidebar").is_visible()


def ask_by_touch(page: Any, text: str) -> None:
    page.fill("#question", text)
    page.press("#question", "Enter")  # a phone's keyboard has no Shift+Enter: this is a new line
    assert page.input_value("#question") == f"{text}\n"
    page.tap("#send")


def test_the_keyboard_alone_is_enough(page: Any, server: ScriptedServer) -> None:
    page.keyboard.type("One")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    answered(page, "Hello.")
    assert messages(page)[0] == "One\ntwo"
    reached = {}
    for _ in range(40):
        page.keyboard.press("Tab")
        name, seen = page.evaluate("""() => {
            const it = document.activeElement;
            return [it.id || it.dataset.action || it.localName, getComputedStyle(it).outlineStyle !== "none"];
        }""")
        reached[name] = seen or name == "question"  # whose frame around it is drawn
    expected = {"skip", "new", "a", "delete", "export", "import", "title", "theme", "settings-open"}
    assert expected | {"copy", "edit", "again", "question", "model", "send"} <= set(reached)
    reached.pop("body", None)  # between the last and the first
    assert all(reached.values()), reached
    page.focus("#skip")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "question"

    page.focus("#settings-open")
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "settings-open"
    page.focus("[data-action=edit]")
    page.keyboard.press("Enter")
    page.keyboard.press("ControlOrMeta+A")
    page.keyboard.type("Three")
    page.keyboard.press("Enter")
    shows(page, ".user .text", re.compile("^Three$"))


def test_enter_that_ends_an_input_method_sends_nothing(page: Any, server: ScriptedServer) -> None:
    page.fill("#question", "にほん")
    page.dispatch_event("#question", "keydown", {"key": "Enter", "isComposing": True})
    assert messages(page) == []


def test_a_screen_reader_hears_whole_blocks(page: Any, server: ScriptedServer) -> None:
    page.evaluate("""() => {
        window.heard = [];
        const hear = (changes) => {
            for (const { addedNodes } of changes) addedNodes.forEach((node) => heard.push(node.textContent));
        };
        new MutationObserver(hear).observe(document.querySelector("#spoken"), { childList: true });
    }""")
    server.script = [*"First block.\n\n", 0.2, *"- second\n- block\n\n", 0.2, *"Third."]
    ask(page, "Hi")
    answered(page, "Third.")
    assert page.evaluate("heard") == ["First block.", "secondblock", "Third."]
    assert page.locator("[aria-live=assertive], [role=log]").count() == 0


def test_the_theme_is_the_systems_until_another_is_chosen(browser: Any, server: ScriptedServer) -> None:
    for page in opened(browser, server.url, color_scheme="dark"):
        background = "getComputedStyle(document.documentElement).backgroundColor"
        dark = page.evaluate(background)
        page.click("#theme")
        light = page.evaluate(background)
        assert light != dark
        page.reload()
        assert page.evaluate(background) == light
        assert page.get_attribute("#theme", "aria-pressed") == "false"


def test_two_tabs_show_the_same_conversations(page: Any, server: ScriptedServer) -> None:
    other = page.context.new_page()
    other.goto(server.url)
    ask(page, "Hi")
    answered(page, "Hello.")
    other.click("#conversations a")
    answered(other, "Hello.")
    page.click("[data-action=delete]")
    other.wait_for_selector(".empty")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_axe_finds_no_violation(browser: Any, server: ScriptedServer, scheme: str, width: int) -> None:
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="needs axe: pip install '.[browser]'"
    ).Axe()
    options: dict[str, Any] = {"viewport": {"width": width, "height": 740}, "color_scheme": scheme}

    def check() -> None:
        found = axe.run(page).response["violations"]
        assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in found] == []

    for page in opened(browser, server.url, **options):
        check()
        server.script = [RICH]
        ask(page, "Hi")
        answered(page, "link")
        page.click("[data-action=again]")
        answered(page, "link")
        check()
        page.click("[data-action=edit]")
        check()
        server.script = [Refusal(401, {"error": {"message": "Invalid API key."}})]
        ask(page, "Hi")
        page.wait_for_selector(".problem button")
        check()
        page.click("#settings-open")
        page.fill("[name=top_p]", "3")
        check()
        page.keyboard.press("Escape")
        if width < 800:
            page.click("#menu")
        page.click("[data-action=delete]")
        page.wait_for_selector("text=Undo", state="attached")
        check()
        page.keyboard.press("Escape")
