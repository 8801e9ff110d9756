"""The Markdown of the page, in the browser: what it makes of a text, and what it never makes of any text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import headless
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripted_server import ScriptedServer

TAGS = set("div span button p h3 h4 h5 h6 hr blockquote ul ol li pre table thead tbody tr th td".split())
TAGS |= set("strong em del code br a".split())
ATTRIBUTES = {"class", "href", "title", "target", "rel", "start", "tabindex", "type", "data-action", "aria-label"}
RENDER = """async ([text, open]) => {
    const { MarkdownView } = await import("./render.js");
    const element = document.createElement("div");
    new MarkdownView(element).update(text, open);
    return element.innerHTML;
}"""
# Every letter of the text, but none of the page's own ("Copy", a language); and every element, attribute and address.
INSPECT = """async ([text, open]) => {
    const { MarkdownView } = await import("./render.js");
    const element = document.createElement("div");
    new MarkdownView(element).update(text, open);
    const all = [...element.querySelectorAll("*")];
    const said = element.cloneNode(true);
    said.querySelectorAll(".bar").forEach((bar) => bar.remove());
    return {
        tags: all.map((one) => one.localName),
        attributes: all.flatMap((one) => one.getAttributeNames()),
        schemes: [...element.querySelectorAll("a")].map((one) => new URL(one.href).protocol),
        text: said.textContent,
    };
}"""


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    with ScriptedServer(headless.FOLDER) as server, headless.chromium() as browser:
        page = browser.new_page()
        page.goto(server.url)
        yield page


def render(page: Any, text: str, growing: bool = False) -> str:
    """The HTML that `text` becomes, without the attributes that only make it usable."""
    html: str = page.evaluate(RENDER, [text, growing])
    html = re.sub(r'<div class="code">.*?<pre[^>]*>(.*?)</pre></div>', r"<pre>\1</pre>", html, flags=re.DOTALL)
    return re.sub(r' (?:title|target|rel|tabindex)="[^"]*"', "", html)


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("a\nb\n\nc", "<p>a<br>b</p><p>c</p>"),
        ("**a** _b_ ***c*** ~~d~~ `e*f*`", None),
        ("snake_case_name and 2 * 3 * 4", "<p>snake_case_name and 2 * 3 * 4</p>"),
        ("# One\n### Two ##", '<h3 class="level-1">One</h3><h4 class="level-3">Two</h4>'),
        ("#not a heading", "<p>#not a heading</p>"),
        ("- a\n  - b\n    - c\n- d", "<ul><li>a<ul><li>b<ul><li>c</li></ul></li></ul></li><li>d</li></ul>"),
        ("1. a\n  - b\n2. c", "<ol><li>a<ul><li>b</li></ul></li><li>c</li></ol>"),
        ("3. a\n\n   b\n\n4. c", '<ol start="3"><li>a<p>b</p></li><li>c</li></ol>'),
        ("- [ ] a\n- [x] b", "<ul><li>☐ a</li><li>☑ b</li></ul>"),
        ("text\n---\nmore", "<p>text</p><hr><p>more</p>"),
        ("> a\n> > b\n\nc", "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote><p>c</p>"),
        ("```py\nx = '<b>'\n\n  y\n```\nz", "<pre><code>x = '&lt;b&gt;'\n\n  y</code></pre><p>z</p>"),
        ("~~~\n```\n~~~", "<pre><code>```</code></pre>"),
        ("- a\n  ```\n  x\n    y\n  ```", "<ul><li>a<pre><code>x\n  y</code></pre></li></ul>"),
        ("a\n2. b", "<p>a<br>2. b</p>"),
        ("[a](https://x.y/z_(1) 'title')", '<p><a href="https://x.y/z_(1)">a</a></p>'),
        ("see https://x.y/a_b_c. Yes", '<p>see <a href="https://x.y/a_b_c">https://x.y/a_b_c</a>. Yes</p>'),
        ("![alt](https://x.y/z.png)", '<p><a href="https://x.y/z.png">alt</a></p>'),
        ("[a](javascript:alert(1))", "<p>[a](javascript:alert(1))</p>"),
        ("[a](java\tscript:alert(1)) [b](/etc/passwd)", "<p>[a](java\tscript:alert(1)) [b](/etc/passwd)</p>"),
        ("[a](data:text/html,x) <javascript:x>", "<p>[a](data:text/html,x) &lt;javascript:x&gt;</p>"),
        ("<b onclick=x>&lt;", "<p>&lt;b onclick=x&gt;&amp;lt;</p>"),
    ],
)
def test_what_is_written_is_what_is_shown(page: Any, text: str, html: str | None) -> None:
    expected = "<p><strong>a</strong> <em>b</em> <em><strong>c</strong></em> <del>d</del> <code>e*f*</code></p>"
    assert render(page, text) == (html or expected)


def test_a_table_has_the_columns_of_its_header(page: Any) -> None:
    html = render(page, "| a | b |\n|---|:-:|\n| `1` | x \\| y |\n| 2\n\nafter")
    head = '<thead><tr><th>a</th><th class="center">b</th></tr></thead>'
    rows = '<tr><td><code>1</code></td><td class="center">x | y</td></tr><tr><td>2</td><td class="center"></td></tr>'
    assert html == f'<div class="wide"><table>{head}<tbody>{rows}</tbody></table></div><p>after</p>'


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("```py\nx = 1\n", "<pre><code>x = 1\n</code></pre>"),
        ("a **b", "<p>a <strong>b</strong></p>"),
        ("a **b*", "<p>a <strong>b</strong></p>"),
        ("a `b", "<p>a <code>b</code></p>"),
        ("- a\n- **b", "<ul><li>a</li><li><strong>b</strong></li></ul>"),
        ("**done** 5*3", "<p><strong>done</strong> 5*3</p>"),
        ("[a](https://x", '<p>[a](<a href="https://x/">https://x</a></p>'),
    ],
)
def test_what_is_not_finished_counts_as_closed_while_it_grows(page: Any, text: str, html: str) -> None:
    assert render(page, text, growing=True) == html


def test_a_growing_answer_keeps_the_blocks_that_do_not_change(page: Any) -> None:
    kept = page.evaluate("""async () => {
        const { MarkdownView } = await import("./render.js");
        const element = document.createElement("div");
        const view = new MarkdownView(element);
        view.update("# a\\n\\n```\\nb\\n```\\n\\nc", true);
        const before = [...element.children];
        const finished = view.update("# a\\n\\n```\\nb\\n```\\n\\nc and d", true);
        return [finished, ...before.map((one) => one.isConnected || element.contains(one))];
    }""")
    assert kept == [2, True, True, False]


MARKS = [
    *"ab *_~`#>-+|[]()!\\\n<:1.",
    "\n\n",
    "**",
    "```",
    "  ",
    "| - |\n",
    "1. ",
    "](",
    "\t",
    "\u00a0",
    "é",
    "🦙",
    "\x00",
]
WORDS = ["https://x.y/", "javascript:x", "data:text/html,x", "<script>", "<img src=x onerror=x>"]
MARKUP = st.lists(st.sampled_from([*MARKS, *WORDS]), max_size=40).map("".join)
MANY = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@MANY
@given(text=MARKUP, growing=st.booleans())
def test_no_text_makes_anything_but_harmless_elements(page: Any, text: str, growing: bool) -> None:
    made = page.evaluate(INSPECT, [text, growing])
    assert set(made["tags"]) <= TAGS
    assert set(made["attributes"]) <= ATTRIBUTES
    assert set(made["schemes"]) <= {"http:", "https:", "mailto:"}


@MANY
@given(text=MARKUP.filter(lambda text: not {"`", "~", "]"} & set(text)))
def test_no_letter_is_lost(page: Any, text: str) -> None:
    """Without code, whose language stands elsewhere, and links, whose address does."""
    made = page.evaluate(INSPECT, [text, False])
    kept = re.findall(r"[a-z🦙é]", made["text"])
    assert kept == re.findall(r"[a-z🦙é]", text.replace("<br", ""))


@MANY
@given(text=st.text(alphabet="ab *_`", max_size=24).map(lambda text: "x" + text))
def test_emphasis_and_code_are_those_of_commonmark(page: Any, text: str) -> None:
    markdown_it = pytest.importorskip("markdown_it", reason="needs markdown-it-py: pip install '.[browser]'")
    reference = markdown_it.MarkdownIt("commonmark").renderInline(text.strip())
    assert render(page, text) == f"<p>{reference}</p>"


def test_no_text_takes_more_than_linear_time(page: Any) -> None:
    """A hundred thousand characters of what makes careless parsers quadratic, or exhausts the stack."""
    patterns = ["*", "*a ", "a* ", "**a *b ", "*a **b ***c ", "a***b**c*", "_a_ *b* ", "~~a", "`", "` `` ", "<", "\\"]
    patterns += ["[", "[](", "![a](", "[a](b", "> ", "- ", "- a\n", "  - a\n", "- \n\n", "> - ", "1. ", "```\n", "\n"]
    patterns += ["|", "|a\n"]
    texts = [pattern * (100_000 // len(pattern)) for pattern in patterns]
    long = " " * 100_000
    texts += [f"-{long}x", f"#{long}#x", f"```{long}`", f"a|b\n-{long}x", "# a" + "#" * 100_000 + "x"]
    texts += ["https://a" + ")" * 100_000, "[a](" + "a" * 100_000, "|a|\n|-|\n" + "|" * 100_000]
    slow = page.evaluate(
        """async (texts) => {
            const { parse } = await import("./markdown.js");
            return texts.map((text) => {
                const start = performance.now();
                parse(text, false);
                parse(text, true);
                return [text.slice(0, 12), performance.now() - start];
            }).filter(([, ms]) => ms > 2000);
        }""",
        texts,
    )
    assert slow == []


def test_deep_nesting_stays_text(page: Any) -> None:
    deepest = page.evaluate(
        """async (texts) => {
            const { MarkdownView } = await import("./render.js");
            return texts.map((text) => {
                const element = document.createElement("div");
                new MarkdownView(element).update(text, false);
                let depth = 0;
                for (let at = [element]; at.length; depth += 1) at = at.flatMap((one) => [...one.children]);
                return depth;
            });
        }""",
        ["> " * 5000 + "a", "- " * 5000 + "a", "*a **b " * 3000 + "c** d*" * 3000],
    )
    assert max(deepest) < 60
