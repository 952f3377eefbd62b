from __future__ import annotations

import json
import os
import signal
import time

import httpx
import pytest

from tests.serve.browser import Browser, browsing
from tests.serve.conftest import NAME, WITH_TOOLS, Served, end, serve, start
from tests.tiny import tiny_qwen2

pytestmark = [pytest.mark.slow, pytest.mark.browser]

OTHER = "magpie"
LONG = 400
HOSTILE = (
    "<script>window.broken = 1</script><img src=x onerror='window.broken = 1'> [x](javascript:window.broken=1) "
    "[safe](https://a.example/b) <a href='https://c.example'>d</a> **<b onclick=x>bold</b>** `<i>code</i>`\n\n"
    "```html\n<iframe src='https://e.example'></iframe>\n```\n"
)


@pytest.fixture(scope="module")
def server(run_dir, tmp_path_factory):
    """Two models behind one address."""
    other = tiny_qwen2(tmp_path_factory.mktemp("other") / OTHER, seed=3, template=WITH_TOOLS)
    served = serve(run_dir, other)
    yield served
    end(served)


@pytest.fixture(scope="module")
def window(server, tmp_path_factory):
    with browsing(server.url, tmp_path_factory.mktemp("downloads")) as found:
        yield found


@pytest.fixture
def page(window: Browser):
    """The page as it opens; afterwards, nothing was loaded from elsewhere, and the console is silent."""
    window.screen(1280, 800)
    window.open()
    window.complaints()
    yield window
    strangers = [url for url in window.requested() if not url.startswith((window.url, "data:", "blob:"))]
    assert strangers == []
    assert window.complaints() == []


def answer_of(server: Served, model: str, messages: list[dict], **sampling) -> str:
    body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": 32, **sampling}
    with server.client() as client:
        return client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]


def asked(*texts: str) -> list[dict]:
    roles = ("user", "assistant")
    return [{"role": roles[index % 2], "content": text} for index, text in enumerate(texts)]


def told(page: Browser) -> list[str]:
    """Returns the answers as they came, in the order of the page."""
    turns = page.run("return JSON.parse(sessionStorage.getItem('tunerun.chat')).turns")
    return [turn["answers"][name]["text"] for turn in turns for name in sorted(turn["answers"])]


def short(page: Browser) -> None:
    page.set("max_tokens", "32")
    page.click("#close-settings")


def test_the_served_models_can_be_chosen(page):
    assert page.driver.title == "tunerun chat"
    assert page.texts(".choice option") == [NAME, OTHER]
    assert not page.shown("#key-form")
    assert not page.shown("#health")


def test_an_answer_is_the_one_that_the_server_gives(page, server):
    short(page)
    page.ask("Who are you?")
    page.ask("fox")
    first = answer_of(server, NAME, asked("Who are you?"))
    assert told(page) == [first, answer_of(server, NAME, asked("Who are you?", first, "fox"))]
    assert "cut at the limit" in page.texts(".facts")[0] or len(first) < 32


def test_settings_reach_the_model(page, server):
    page.set("system", "It is two.")
    page.set("temperature", "1.2")
    page.set("top_p", "0.9")
    page.set("top_k", "40")
    page.set("seed", "7")
    page.set("max_tokens", "24")
    page.ask("fox")
    sampling = {"temperature": 1.2, "top_p": 0.9, "top_k": 40, "seed": 7, "max_tokens": 24}
    messages = [{"role": "system", "content": "It is two."}, *asked("fox")]
    (text,) = told(page)
    assert text == answer_of(server, NAME, messages, **sampling)
    page.set("stop", text[4:6])
    page.click("#new")
    page.ask("fox")
    assert told(page) == [text[: text.index(text[4:6])]]
    assert "seed 7" in page.one("#summary").text


def test_a_setting_that_cannot_be_is_shown_and_not_sent(page):
    page.set("temperature", "3")
    page.click("#close-settings")
    page.type("#question", "fox")
    page.click("#send")
    assert page.shown("#settings")
    assert page.all(".turn") == []
    assert page.one("#question").get_attribute("value") == "fox"


def test_an_answer_streams_and_can_be_stopped(page, server):
    page.set("max_tokens", str(LONG))
    page.click("#close-settings")
    page.type("#question", "fox")
    engines = server.engine_pids()
    try:
        signal_all(engines, signal.SIGSTOP)
        page.click("#send")
        # The engine goes on for moments only, so that it stands still in the middle of the answer, and what it wrote in
        # one of them has time to arrive before the next one.
        while not page.soon(lambda: any(page.texts(".body"))):
            signal_all(engines, signal.SIGCONT)
            time.sleep(0.01)
            signal_all(engines, signal.SIGSTOP)
        before = page.texts(".body")[0]
        assert page.all("[aria-busy=true]")
        assert page.one("#send").text == "Stop"
        page.click("#send")
        page.until_idle()
    finally:
        signal_all(engines, signal.SIGCONT)
    assert page.texts(".body")[0].startswith(before)
    assert "stopped by you" in page.texts(".facts")[0]
    page.click(".answer .tools button", "Ask again")
    page.until_idle()
    assert len(told(page)[0]) > len(before)


def signal_all(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        os.kill(pid, number)


def test_two_models_answer_side_by_side_each_from_its_own_past(page, server):
    short(page)
    page.click("#models .add")
    page.ask("fox")
    page.ask("dog")
    firsts = [answer_of(server, model, asked("fox")) for model in (NAME, OTHER)]
    seconds = [
        answer_of(server, model, asked("fox", first, "dog")) for model, first in zip((NAME, OTHER), firsts, strict=True)
    ]
    assert told(page) == [*firsts, *seconds]
    assert page.texts(".by") == [NAME, OTHER] * 2
    boxes = [element.rect for element in page.all(".turn:first-child .answer")]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]


def test_a_model_that_comes_later_can_catch_up(page, server):
    short(page)
    page.ask("fox")
    page.ask("dog")
    page.click("#models .add")
    page.click(".unasked button")
    page.until(lambda: not page.all(".unasked"))
    page.until_idle()
    first = answer_of(server, OTHER, asked("fox"))
    assert [told(page)[1], told(page)[3]] == [first, answer_of(server, OTHER, asked("fox", first, "dog"))]
    page.click(".choice button")
    assert len(page.all(".answer")) == 2


def test_another_model_can_go_on_with_a_conversation(page, server):
    short(page)
    page.ask("fox")
    page.one(".choice option:last-child").click()
    page.ask("dog")
    first = answer_of(server, NAME, asked("fox"))
    assert told(page) == [first, answer_of(server, OTHER, asked("fox", first, "dog"))]
    assert page.texts(".by") == [NAME, OTHER]


def test_enter_that_chooses_a_chinese_word_does_not_send(page):
    short(page)
    page.one("#question").click()
    page.devtools("Input.imeSetComposition", text="ni hao", selectionStart=6, selectionEnd=6)
    # Windows, macOS and Linux send code 229 with keys that the input method takes; Safari tells no more than that.
    page.devtools("Input.dispatchKeyEvent", type="rawKeyDown", key="Enter", code="Enter", windowsVirtualKeyCode=229)
    page.devtools("Input.dispatchKeyEvent", type="rawKeyDown", key="Enter", code="Enter", windowsVirtualKeyCode=13)
    assert page.all(".turn") == []
    page.devtools("Input.insertText", text="你好，世界")
    assert page.one("#question").get_attribute("value") == "你好，世界"
    page.type("#question", "\ue007")
    page.until_idle()
    assert page.texts(".bubble") == ["你好，世界"]


def test_a_question_can_be_edited_and_what_followed_is_given_back(page, server):
    short(page)
    for text in ("fox", "dog", "two"):
        page.ask(text)
    before = told(page)
    page.all(".question")[1].find_element("css selector", "[aria-label='Edit the question']").click()
    page.type(".editor textarea", "cat", instead=True)
    page.click(".editor button", "Ask again from here")
    page.until_idle()
    assert page.texts(".bubble") == ["fox", "cat"]
    assert told(page) == [before[0], answer_of(server, NAME, asked("fox", before[0], "cat"))]
    page.click("#toast button", "Undo")
    page.until(lambda: page.texts(".bubble") == ["fox", "dog", "two"])
    assert told(page) == before


def test_turns_and_answers_can_be_changed(page, server):
    short(page)
    for text in ("fox", "dog"):
        page.ask(text)
    page.click("[aria-label='Delete this turn']")
    assert page.texts(".bubble") == ["fox"]
    page.click("[aria-label='Edit the answer']")
    page.type(".editor textarea", "It is two.", instead=True)
    page.click(".editor button", "Keep")
    assert "edited" in page.texts(".facts")[0]
    page.ask("dog")
    assert told(page) == ["It is two.", answer_of(server, NAME, asked("fox", "It is two.", "dog"))]
    page.click("#new")
    assert page.all(".turn") == []
    page.click("#toast button", "Undo")
    page.until(lambda: len(page.all(".turn")) == 2)


def test_a_reload_keeps_the_conversation_and_nothing_is_left_outside_of_the_tab(page):
    short(page)
    page.ask("fox")
    before = told(page)
    page.load()
    assert told(page) == before
    assert page.texts(".bubble") == ["fox"]
    assert page.run("return [localStorage.length, document.cookie]") == [0, ""]


def test_a_saved_conversation_is_data_to_train_on(page, window, tmp_path):
    behavior = {"behavior": "allow", "downloadPath": str(tmp_path)}
    window.devtools("Browser.setDownloadBehavior", **behavior)
    page.set("system", "Be brief.")
    short(page)
    page.ask("fox")
    page.click("#save")
    page.until((tmp_path / "talk.jsonl").is_file)
    (line,) = (tmp_path / "talk.jsonl").read_text(encoding="utf-8").splitlines()
    messages = json.loads(line)["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant"]
    assert [message["content"] for message in messages[:2]] == ["Be brief.", "fox"]


def test_an_answer_can_be_copied(page):
    page.devtools("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    short(page)
    page.ask("fox")
    page.click(".answer .tools button", "Copy")
    page.until(lambda: "Copied" in page.texts(".answer .tools button"))
    assert page.run_async("return navigator.clipboard.readText()") == told(page)[0]


def rendered(page: Browser, text: str) -> str:
    script = "const { render } = await import('./page/markdown.js'); const box = document.createElement('div');"
    return page.run_async(f"{script} box.append(render(arguments[0])); return box.innerHTML", text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a **b *c* d** `e*f*`", "<p>a <strong>b <em>c</em> d</strong> <code>e*f*</code></p>"),
        ("**你好**世界", "<p><strong>你好</strong>世界</p>"),
        ("2 * 3 * 4 and snake_case_name", "<p>2 * 3 * 4 and snake_case_name</p>"),
        ("a\nb\n\nc", "<p>a\nb</p><p>c</p>"),
        ("- a\n- b\n  1. c\n- d", '<ul><li>a</li><li>b<ol start="1"><li>c</li></ol></li><li>d</li></ul>'),
        ("3. a\n\n4. b", '<ol start="3"><li>a</li><li>b</li></ol>'),
        ("> a\n> b\nc", "<blockquote><p>a\nb</p></blockquote><p>c</p>"),
        ("## a", '<p class="heading level2">a</p>'),
        ("---", "<hr>"),
        (r"\*a\*", "<p>*a*</p>"),
        ("**open", "<p>**open</p>"),
        ("<b>&amp;", "<p>&lt;b&gt;&amp;amp;</p>"),
    ],
)
def test_markdown_becomes_elements(page, text, expected):
    assert rendered(page, text) == expected


def test_code_tables_and_thoughts_have_their_places(page):
    code = rendered(page, "```python\na = [1]\n\n<b>\n")
    assert '<pre tabindex="0"><code>a = [1]\n\n&lt;b&gt;\n</code></pre>' in code
    assert "<span>python</span>" in code
    table = rendered(page, "| a | b |\n|---|--:|\n| 1 | **2** |\nafter")
    assert '<td class="right"><strong>2</strong></td>' in table
    assert table.endswith("<p>after</p>")
    assert rendered(page, "<think>hm</think>yes") == (
        '<details class="thinking"><summary>Thinking</summary><p>hm</p></details><p>yes</p>'
    )


def test_what_a_model_writes_is_never_html(page):
    script = (
        "const { render } = await import('./page/markdown.js'); document.getElementById('talk').append(render("
        "arguments[0])); await new Promise((done) => setTimeout(done, 200));"
        "const links = [...document.querySelectorAll('main a')].map((a) => [a.getAttribute('href'), a.textContent]);"
        "return [window.broken ?? null, links,"
        "document.querySelectorAll('main :is(script, img, iframe, b, i)').length]"
    )
    broken, links, strangers = page.run_async(script, HOSTILE)
    assert (broken, strangers) == (None, 0)
    # A link shows where it leads.
    assert all(address == text for address, text in links)
    assert [address for address, _ in links] == ["https://a.example/b", "https://c.example"]


def test_the_browser_itself_refuses_html_from_text(page, window):
    script = "try { document.body.innerHTML = '<b>x</b>'; return 'done' } catch (error) { return error.name }"
    assert page.run_async(script) == "TypeError"
    assert all("TrustedHTML" in line for line in window.complaints())


@pytest.mark.parametrize(
    "piece", ["*a", "**a ", "[a](", "[", "`", "``a", "> ", "- ", "  - a\n", "|a", "|a\n|-\n", "# ", " ", "\n", "```a",
              "~", "<think>", "https://", "1. a\n\n", "_", "\\", "a" * 50 + "*"]
)  # fmt: skip
def test_long_nonsense_is_drawn_at_once(page, piece):
    script = (
        "const { render } = await import('./page/markdown.js'); const began = performance.now();"
        "render(arguments[0].repeat(Math.ceil(60000 / arguments[0].length))); return performance.now() - began"
    )
    assert page.run_async(script, piece) < 1000


@pytest.mark.parametrize("width", [320, 360, 400])
def test_a_phone_shows_everything_within_its_width(page, width):
    page.screen(width, 700, phone=True)
    page.load()
    page.set("max_tokens", "32")
    page.click("#close-settings")
    for _ in range(2):
        page.click("#models .add")
    page.type("#question", "Who are you? 你是谁？")
    # Enter begins a new line on a phone.
    page.type("#question", "\ue007")
    assert page.all(".turn") == []
    page.click("#send")
    page.until_idle()
    assert page.run("return [innerWidth, document.documentElement.scrollWidth]") == [width, width]
    script = (
        "return [...document.querySelectorAll('button, select, textarea, .body, .bubble')].filter((e) => {"
        "const box = e.getBoundingClientRect(); return box.width && (box.left < 0 || box.right > innerWidth) })"
        ".map((e) => e.outerHTML)"
    )
    assert page.run(script) == []
    boxes = [element.rect for element in page.all(".answer")]
    assert len({box["x"] for box in boxes}) == 1, "answers stand below each other"
    size = page.run("return getComputedStyle(document.querySelector('.body')).fontSize")
    assert float(size.removesuffix("px")) >= 16
    bottom = page.run("return document.getElementById('composer').getBoundingClientRect().bottom")
    assert bottom <= 700


def test_light_and_dark_have_readable_text(page):
    short(page)
    page.ask("fox")
    script = """
      const paint = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
      const light = (color) => {
        paint.fillStyle = color; paint.fillRect(0, 0, 1, 1);
        const [r, g, b] = [...paint.getImageData(0, 0, 1, 1).data].slice(0, 3).map((value) => {
          const part = value / 255; return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      const ground = (e) => {
        for (; e; e = e.parentElement) {
          const color = getComputedStyle(e).backgroundColor;
          if (color !== "rgba(0, 0, 0, 0)") return color;
        }
        return "rgb(255, 255, 255)";
      };
      return [...document.querySelectorAll(".body p, .bubble, .by, .tools button, .facts, #summary, h1")].map((e) => {
        const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((x, y) => y - x);
        return [e.className || e.tagName, (a + 0.05) / (b + 0.05)];
      });
    """
    # WCAG 2.2, success criterion 1.4.3.
    for dark in (False, True):
        page.screen(1280, 800, dark=dark)
        contrasts = page.run(script)
        assert len(contrasts) >= 8
        assert [item for item in contrasts if item[1] < 4.5] == []
    assert page.run("return getComputedStyle(document.body).backgroundColor") == "rgb(22, 24, 27)"


def test_everything_has_a_name_and_is_reached_by_keyboard(page):
    short(page)
    page.click("#models .add")
    page.ask("fox")
    page.click("#open-settings")
    nodes = page.devtools("Accessibility.getFullAXTree")["nodes"]
    controls = [
        (node["role"]["value"], node["name"]["value"])
        for node in nodes
        if not node["ignored"] and node["role"]["value"] in ("button", "textbox", "combobox", "spinbutton", "checkbox")
    ]
    assert len(controls) > 20
    assert [role for role, name in controls if not name.strip()] == []
    assert ("textbox", "Message") in controls
    page.type("#settings [name=system]", "\ue00c")
    assert not page.shown("#settings")
    assert page.run("return document.activeElement.id") == "open-settings"
    seen = set()
    for _ in range(40):
        page.driver.switch_to.active_element.send_keys("\ue004")
        seen.add(
            page.run("const e = document.activeElement; return e.id || e.getAttribute('aria-label') || e.textContent")
        )
    assert {"question", "summary", "Model 1", "Edit the question", "Delete this turn", "Edit the answer", "new"} <= seen


def test_an_error_of_the_server_is_told_in_its_words(page):
    page.type("#question", "fox " * 600)
    page.click("#send")
    page.until_idle()
    (fault,) = page.texts(".fault")
    assert "tokens" in fault
    assert "delete earlier turns" in fault
    assert page.all(".answer .tools button")[-1].text == "Try again"
    # The browser itself notes the status.
    page.complaints()


def test_a_key_is_asked_for_and_kept_in_the_tab(run_dir, window, tmp_path):
    served = start(run_dir, engine="llamacpp", api_key_env="KEY", environment={"KEY": "right"})
    try:
        with browsing(served.url, tmp_path) as page:
            page.open()
            assert page.shown("#key-form")
            for key, shown in (("wrong", True), ("right", False)):
                page.type("#key", key)
                page.click("#key-form button")
                page.until(lambda shown=shown: page.shown("#key-form") == shown)
                page.until(lambda: "does not take" in page.texts("#key-note")[0])
            page.until(lambda: page.texts(".choice option") == [NAME])
            short(page)
            page.ask("fox")
            assert told(page)[0]
            assert page.run("return [localStorage.length, document.cookie]") == [0, ""]
            page.run("sessionStorage.setItem('tunerun.key', 'old')")
            page.ask("dog")
            assert page.shown("#key-form")
    finally:
        end(served)


def test_a_server_that_went_away_is_told(run_dir, tmp_path):
    served = start(run_dir, engine="llamacpp")
    try:
        with browsing(served.url, tmp_path) as page:
            page.open()
            short(page)
            (pid,) = served.engine_pids()
            os.kill(pid, signal.SIGKILL)
            page.ask("fox")
            page.until(lambda: httpx.get(f"{served.url}/health", trust_env=False).status_code == 200)
            page.click(".answer .tools button", "Try again" if page.texts(".fault") else "Ask again")
            page.until_idle()
            assert page.texts(".fault") == []
            served.stop()
            page.ask("dog")
            assert page.texts(".fault") == ["The server cannot be reached. Is it still running?"]
    finally:
        end(served)
