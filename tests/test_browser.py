"""The page of chains in a real headless browser: stepping, filters, search, hostile text, narrow and wide, light and dark."""

import itertools
import json
import pathlib
import re
import time
import urllib.parse

import numpy as np
import pytest
from lifelike import chain, script_chain, write_run

from exit_jax import report
from exit_jax.report import browser
from exit_jax.report import runs as finished

HOSTILE = [
    "<script>window.hacked = 1</script>",
    "</script><script>window.hacked = 1</script><!--<script>",
    '<img src=x onerror="window.hacked = 1"> <b>not bold</b> &amp; &lt;',
    "a\u2028b\u2029c\u0000d\u0085e\u202egnp\u202c \ufeff\u200b",
    "{data} ${1 + 1} `x` \\u003c \\ \" ' \t\r\n end",
    "w" * 4000 + " " + "漢字" * 500 + " 🙂👩‍👩‍👧",
    "\ud800 lone",
    "",
]
WIDE, NARROW = (1400, 900), (390, 844)


@pytest.fixture
def show(driver, tmp_path):
    """Return a function that opens the page of some chains, or of runs of them; no page may log anything."""

    def open_page(chains, size=WIDE, max_bytes=browser.MAX_BYTES, scheme="light"):
        runs = chains if isinstance(chains, dict) else {"exit-0": chains}
        loaded = []
        for name, rows in runs.items():
            variant, seed = name.split("-")
            folder = tmp_path / name
            folder.mkdir(exist_ok=True)
            config = {"name": "toy", "variant": variant, "seed": int(seed)}
            (folder / "config.json").write_text(json.dumps({"config": config}))
            (folder / "chains.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            loaded.append(finished.load(folder))
        made = browser.page(finished.group(loaded), max_bytes)
        assert made is not None
        (tmp_path / "chains.html").write_text(made[0], encoding="utf-8")
        resize(driver, size)
        driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        )
        driver.get((tmp_path / "chains.html").as_uri())
        return driver

    yield open_page
    assert driver.get_log("browser") == []


def resize(driver, size):
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def find(driver, selector):
    return driver.find_element("css selector", selector)


def find_all(driver, selector):
    return driver.find_elements("css selector", selector)


def text_of(driver, selector):
    """Return what an element holds, invisible characters too."""
    return driver.execute_script("return document.querySelector(arguments[0]).textContent", selector)


def press(driver, *keys):
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(driver).send_keys(*keys).perform()


def is_wider_than_the_screen(driver):
    return driver.execute_script("return document.documentElement.scrollWidth > window.innerWidth")


def make(quality, responses=None, split="test", task=0, sample=0, **fields):
    responses = responses or [f"response {k}" for k in range(len(quality))]
    return {"split": split, "task": task, "sample": sample, "quality": quality, "responses": responses} | fields


def test_a_person_steps_through_a_chain_with_buttons_marks_and_arrow_keys(show):
    from selenium.webdriver.common.keys import Keys

    row = make(
        [0.0, 1.0, 0.25],
        ["x is 1", "x is 2 now", "x is 3 now"],
        request="What is x?",
        gold="2",
        modes=["base", "improve", "diverge"],
        answers=["1", "2", ""],
    )
    page = show([row])
    assert text_of(page, "#request") == "What is x?"
    assert text_of(page, "#gold") == "2"
    assert [mark.text.split() for mark in find_all(page, "#strip button")] == [
        ["0", "✗", "0.000"],
        ["1", "✓", "1.000▲"],
        ["2", "◐", "0.250▼"],
    ]
    assert text_of(page, "#status span") == "k = 0 of 2 · base · ✗ wrong · quality 0.000"
    assert not find(page, "#marking").is_displayed()
    assert find_all(page, "#status button")[0].get_attribute("disabled")

    press(page, Keys.ARROW_RIGHT)
    assert (
        text_of(page, "#status span")
        == "k = 1 of 2 · improve · ✓ right · corrected · quality 1.000 ▲ 1.000 since k = 0"
    )
    assert text_of(page, "#answer") == "✓ 2  (was 1)"
    assert "right" in find(page, "#response").get_attribute("class")
    assert [
        (part.tag_name, text_of(page, f"#response > :nth-child({i + 1})"))
        for i, part in enumerate(find_all(page, "#response > *"))
    ] == [
        ("span", "x is "),
        ("del", "1"),
        ("ins", "2 now"),
    ]
    assert find(page, "#change").text == "changes since k = 0: 2 words in, 1 out"
    press(page, "d")
    assert text_of(page, "#response") == "x is 2 now"

    find_all(page, "#status button")[1].click()
    assert (
        text_of(page, "#status span")
        == "k = 2 of 2 · diverge · ◐ partly right · broken · quality 0.250 ▼ 0.750 since k = 1"
    )
    assert text_of(page, "#answer") == "✗ none  (was 2)"
    assert text_of(page, "#response") == "x is 3 now"  # still without marks
    press(page, Keys.ARROW_RIGHT)  # the end
    assert find_all(page, "#strip button")[2].get_attribute("aria-current") == "step"
    find_all(page, "#strip button")[0].click()
    assert text_of(page, "#response") == "x is 1"
    press(page, Keys.ARROW_LEFT)
    assert text_of(page, "#status span").startswith("k = 0")


CHAINS = [
    make([0, 0, 1], task=0, request="alpha"),
    make([1, 1, 1], task=1, request="beta"),
    make([1, 0, 0], task=2, request="gamma", answers=["7", "(8+", ""]),
    make([0, 1, 0, 1], task=3, request="delta", gold="GOLD"),
    make([0, 0], task=4, request="alphabet"),
    make([0, 0, 1], task=0, sample=1, request="alpha"),
    make([0], task=0, split="validation", request="alpha"),
]


def listed(driver):
    return [option.text.split("\n")[0] for option in find_all(driver, ".option")]


def counts(driver):
    return [int(count.text) for count in find_all(driver, "#filters b")]


def search(driver, text):
    box = find(driver, "#search")
    box.clear()
    box.send_keys(text)
    time.sleep(0.4)  # the page waits until a person stops typing


def test_filters_and_search_list_what_they_say_with_counts(show):
    page = show(CHAINS)
    assert counts(page) == [6, 3, 2, 4, 2]  # all, corrected, broken, ends right, ends wrong
    assert len(listed(page)) == 6
    labels = find_all(page, "#filters label")
    labels[2].click()
    assert [re.findall(r"Problem \d", name) for name in listed(page)] == [["Problem 2"], ["Problem 3"]]
    assert text_of(page, "#name") == "Problem 2, sample 0"
    search(page, "ALPHA")
    assert counts(page) == [3, 2, 0, 2, 1]
    assert listed(page) == []
    assert find(page, "#none").is_displayed()
    assert not find(page, "#chain").is_displayed()
    labels[0].click()
    assert len(listed(page)) == 3
    search(page, "(8+")  # an answer, not a pattern
    assert listed(page)[0].startswith("✗ Problem 2")
    search(page, "gold")
    assert listed(page)[0].startswith("✓ Problem 3")
    search(page, "response 3")
    assert counts(page) == [1, 1, 1, 1, 0]


def test_split_sample_and_run_are_picked_and_the_problem_stays_in_view(show):
    other = [make([1, 1], task=2), make([0, 1], task=3)]
    page = show({"exit-0": CHAINS, "grpo-1": other})
    assert [option.text for option in find_all(page, "#run option")] == ["grpo, seed 1", "exit, seed 0"]
    assert find(page, "#split").get_attribute("disabled")
    find_all(page, "#list .option")[1].click()
    find_all(page, "#run option")[1].click()
    assert text_of(page, "#name") == "Problem 3, sample 0"
    assert [option.text for option in find_all(page, "#split option")] == ["test", "validation"]
    find_all(page, "#split option")[1].click()
    assert counts(page) == [1, 0, 0, 0, 1]
    find_all(page, "#split option")[0].click()
    find_all(page, "#list .option")[0].click()
    samples = find_all(page, "#samples button")
    assert [button.text for button in samples] == ["0 ✓", "1 ✓"]
    samples[1].click()
    assert text_of(page, "#name") == "Problem 0, sample 1"
    press(page, "n")
    assert text_of(page, "#name") == "Problem 1, sample 0"
    press(page, "p", "p")
    assert text_of(page, "#name") == "Problem 0, sample 0"
    assert find(page, "#before").get_attribute("disabled")


def test_the_keyboard_alone_reaches_and_works_everything(show):
    from selenium.webdriver.common.keys import Keys

    page = show(CHAINS)
    press(page, "/")
    assert page.switch_to.active_element.get_attribute("id") == "search"
    press(page, "n")
    assert find(page, "#search").get_attribute("value") == "n"  # typed, not obeyed
    press(page, Keys.BACKSPACE)
    time.sleep(0.4)
    press(page, Keys.TAB, Keys.ARROW_RIGHT)  # the filters; an arrow picks the next
    assert len(listed(page)) == 3
    press(page, Keys.TAB)
    assert page.switch_to.active_element.get_attribute("id") == "list"
    press(page, Keys.ARROW_DOWN)
    active = find(page, "#" + find(page, "#list").get_attribute("aria-activedescendant"))
    assert active.get_attribute("aria-selected") == "true"
    assert "Problem 0, sample 1" in active.text
    assert text_of(page, "#name") == "Problem 0, sample 1"


def test_hostile_text_is_shown_to_the_letter_and_never_run(show):
    row = make([0.0] * len(HOSTILE), HOSTILE, request=HOSTILE[1], gold=HOSTILE[2], answers=HOSTILE, modes=HOSTILE)
    page = show([row, make([1.0], [HOSTILE[5]], task=1, request=HOSTILE[5], split=HOSTILE[1])], NARROW)
    page.execute_script("document.getElementById('marks').click()")
    assert text_of(page, "#request") == HOSTILE[1]
    assert text_of(page, "#gold") == HOSTILE[2]
    for k, text in enumerate(HOSTILE):
        page.execute_script("step(arguments[0])", k)
        same = "return document.querySelector('#response').textContent === JSON.parse(arguments[0])"
        assert page.execute_script(same, json.dumps(text)), text
        assert not is_wider_than_the_screen(page), text[:50]
    assert [mark.get_attribute("data-code") for mark in find_all(page, "#response .control")] == []
    page.execute_script("step(3)")
    codes = [mark.get_attribute("data-code") for mark in find_all(page, "#response .control")]
    assert codes == ["U+2028", "U+2029", "U+0000", "U+0085", "U+202E", "U+202C", "U+FEFF", "U+200B"]
    find_all(page, "#split option")[1].click()
    assert not is_wider_than_the_screen(page)
    assert page.execute_script("return window.hacked") is None
    assert len(find_all(page, "script")) == 2
    assert len(find_all(page, "main img, main b b")) == 0


def test_changes_put_together_are_both_texts(show):
    page = show(CHAINS)
    rng = np.random.default_rng(0)
    parts = ["a", "b", " ", "  ", "\n", "x1", "+", "漢", "🙂", "\\frac"]
    texts = ["".join(rng.choice(parts, rng.integers(0, 40))) for _ in range(60)]
    long = ["".join(rng.choice(parts, 9000)) for _ in range(2)]  # too long for words: by lines, else as a whole
    for before, after in [*itertools.pairwise(texts), long, [" ".join(text) for text in long]]:
        steps = page.execute_script("return diff(arguments[0], arguments[1])", before, after)
        assert "".join(text for kind, text in steps if kind != "+") == before
        assert "".join(text for kind, text in steps if kind != "-") == after
        assert all(text for _, text in steps)
    steps = page.execute_script("return diff('so x is 12 here', 'so now x is 13 here')")
    assert steps == [["=", "so "], ["+", "now "], ["=", "x is "], ["-", "12"], ["+", "13"], ["=", " here"]]
    grid = page.execute_script("return [sameShape('. 1\\n2 .', '3 1\\n2 .'), byPlace('. 1\\n2 .', '3 1\\n2 .')]")
    assert grid == [True, [["+", "3"], ["=", " 1\n2 ."]]]
    assert not page.execute_script("return sameShape('a\\nb', 'ab\\n')")
    assert page.execute_script("return diff('a = b c', 'x = y c')") == [["-", "a = b"], ["+", "x = y"], ["=", " c"]]
    assert page.execute_script("return diff('a b c', 'x y c')") == [["-", "a b"], ["+", "x y"], ["=", " c"]]


def contrast(driver, selector):
    """Return the ratio of luminances (WCAG) of an element's text and what lies behind it."""
    colours = driver.execute_script(
        """const node = document.querySelector(arguments[0]);
        let behind = node;
        while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
        return [getComputedStyle(node).color, getComputedStyle(behind).backgroundColor]""",
        selector,
    )
    light = []
    for colour in colours:
        rgb = np.array([int(part) for part in re.findall(r"\d+", colour)[:3]]) / 255
        light.append(np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])
    return (max(light) + 0.05) / (min(light) + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_the_page_is_legible_and_as_wide_as_the_screen(show, tmp_path, size, scheme):
    page = show([chain(0, "math500", n) for n in range(40)], size, scheme=scheme)
    find_all(page, "#filters label")[1].click()
    first = page.execute_script("return state.chain.right.indexOf(true, state.chain.right.indexOf(false))")
    page.execute_script("step(arguments[0])", first)
    assert not is_wider_than_the_screen(page)
    for selector in (
        "#status b.right",
        ".soft",
        "#response ins",
        "#response del",
        "#strip .wrong",
        "#strip small",
        "#name",
    ):
        assert contrast(page, selector) >= 4.5, selector
    page.save_screenshot(str(tmp_path / f"{size[0]}-{scheme}.png"))
    for button in find_all(page, "#strip button"):
        assert button.get_attribute("aria-label")


SCRIPTS = [
    "import os\n\ndef main():\n    depth = 2\n    print(depth)\n\nmain()",
    "import os\n\ndef main():\n    depth = 3\n    print(depth)\n    fit(depth)\n\nmain()",
    "import os\n\ndef main():\n    depth = 9\n    print(depth)\n\nmain()",
]
TRACE = "Traceback (most recent call last):\n  <b>line 6</b>\nNameError: name 'fit' is not defined"


def test_a_greedy_search_of_scripts_shows_scores_lines_and_traces(show):
    """The last script starts from the first, which the second, a crash, did not replace."""
    feedback = ["The submission scored 0.611.", TRACE, "The submission scored 0.731."]
    row = make([0.611, 0.0, 0.731], SCRIPTS, name="numerals", feedback=feedback, **{"from": [-1, 0, 0]})
    page = show([row, make([0.5, 0.5], task=1, feedback=["only one"], **{"from": [0, 7]})])
    assert text_of(page, "#name") == "Problem 0 (numerals)"
    assert [mark.text.split() for mark in find_all(page, "#strip button")] == [
        ["0", "◐", "0.611"],
        ["1", "✗", "0.000▼"],
        ["2", "◐", "0.731▲"],
    ]
    assert text_of(page, "#feedback") == feedback[0]
    page.execute_script("step(1)")
    assert text_of(page, "#feedback") == TRACE
    assert len(find_all(page, "#feedback b")) == 0
    assert text_of(page, "#status span") == "k = 1 of 2 · improve · ✗ wrong · quality 0.000 ▼ 0.611 since k = 0"
    marks = lambda: [(part.tag_name, part.get_attribute("textContent")) for part in find_all(page, "#response > *")]
    assert marks() == [
        ("span", "import os\n\ndef main():\n"),
        ("del", "    depth = 2\n"),
        ("ins", "    depth = 3\n"),
        ("span", "    print(depth)\n"),
        ("ins", "    fit(depth)\n"),
        ("span", "\nmain()"),
    ]
    assert text_of(page, "#change") == "changes since k = 0: 2 lines in, 1 out"
    assert (
        "mono" in page.execute_script("return getComputedStyle(document.querySelector('#response')).fontFamily").lower()
    )
    page.execute_script("step(2)")
    assert text_of(page, "#status span").endswith("· quality 0.731 ▲ 0.120 since k = 0")
    assert marks()[1:3] == [("del", "    depth = 2\n"), ("ins", "    depth = 9\n")], "since what it started from"
    assert "right" not in find(page, "#response").get_attribute("class")
    assert [label.text.split()[0] for label in find_all(page, "#filters label")][-2:] == ["improved", "worsened"]
    assert counts(page) == [2, 0, 0, 0, 2, 1, 1]
    search(page, "NameError")
    assert counts(page)[0] == 1, "a trace is found, too"
    page.execute_script("state.query = ''; pickChains(); neighbour(1)")
    assert not find(page, "#told").is_displayed()  # feedback of another length
    page.execute_script("step(1)")
    assert text_of(page, "#status span") == "k = 1 of 1 · improve · ◐ partly right · quality 0.500"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_of_scripts_is_legible_and_as_wide_as_a_telephone(show, tmp_path, scheme):
    page = show([script_chain(0, "test-greedy", n) for n in range(6)], NARROW, scheme=scheme)
    page.execute_script("step(2)")
    assert not is_wider_than_the_screen(page)
    for selector in ("#strip em", "#strip .part", "#feedback", "#response ins", "#response del"):
        if find_all(page, selector):
            assert contrast(page, selector) >= 4.5, selector
    page.save_screenshot(str(tmp_path / f"scripts-{scheme}.png"))
    resize(page, WIDE)
    page.save_screenshot(str(tmp_path / f"scripts-wide-{scheme}.png"))


def test_what_does_not_fit_is_said_and_chains_that_changed_are_kept_first(show):
    rng = np.random.default_rng(0)
    words = lambda: "".join(rng.choice(list("abcdefgh "), 2000))
    rows = [make([0, int(n % 10 == 0)], [words(), words()], task=n, split=f"s{n % 2}") for n in range(100)]
    page = show({"exit-0": rows, "grpo-0": rows}, max_bytes=24 * 4600)
    note = "24 of 200 saved chains, to keep the page below 0.11 MB"
    assert note in find(page, "#note").text
    kept = page.execute_script("return data.runs.map(run => run.chains.map(chain => [chain.split, chain.corrected]))")
    for run in kept:
        assert sum(corrected for _, corrected in run) == 10  # all of them
        assert len(run) == 12
    assert (
        len(browser.page(finished.group([finished.load(page_folder(page) / "exit-0")]), 24 * 4600)[0])
        < 24 * 4600 + 40_000
    )


def page_folder(driver):
    return pathlib.Path(urllib.parse.urlparse(driver.current_url).path).parent


def test_long_and_missing_texts_cost_no_more_than_themselves(show):
    old = {"split": "test", "task": 0, "quality": [0.5, 1.0], "responses": ["y" * 50_000, "z"]}
    page = show([old, old, make([1], task=1, answers=["too", "many"], modes="x", request=None, gold=None)])
    assert "30,000 characters more" in text_of(page, "#response")
    assert [button.text for button in find_all(page, "#samples button")] == ["0 ✓", "1 ✓"]
    assert not find(page, "#asked").is_displayed()
    assert not find(page, "#known").is_displayed()
    assert not find(page, "#said").is_displayed()
    assert text_of(page, "#status span") == "k = 0 of 1 · base · ◐ partly right · quality 0.500"


def test_the_report_writes_the_page_where_there_are_chains(tmp_path):
    path = write_run(tmp_path / "exit-0", splits=("aime_2024",), num_rows=5)
    text = report.report(path, [path]).read_text()
    assert "(chains.html)" in text
    content = (path / "report" / "chains.html").read_text()
    assert not re.findall(r"""(?:src|href)\s*=|@import|url\(""", content.split('<script id="data"')[0])
    (path / "chains.jsonl").unlink()
    assert "(chains.html)" not in report.report(path, [path]).read_text()
    assert not (path / "report" / "chains.html").exists()


@pytest.mark.slow
def test_two_thousand_chains_of_seventeen_long_responses_stay_usable(show):
    rng = np.random.default_rng(0)
    letters = "".join(rng.choice(list("abcdefgh "), 1_000_000))
    at = lambda: letters[(start := int(rng.integers(990_000))) : start + 2000]
    rows = [make([int(n % 3 == 0), *[0] * 15, n % 2], [at() for _ in range(17)], task=n) for n in range(2000)]
    started = time.perf_counter()
    page = show(rows)
    assert time.perf_counter() - started < 60
    assert page.execute_script("return document.getElementsByTagName('*').length") < 600
    assert "of 2,000" in find(page, "#note").text
    timed = """const started = performance.now();
        for (let k = 0; k < 17; k++) step(k);
        neighbour(1);
        return performance.now() - started"""
    assert page.execute_script(timed) < 3000  # ms
    page.execute_script("document.getElementById('list').scrollTop = 1e9")
    last = page.execute_script("return state.shown.at(-1).label")
    deadline = time.monotonic() + 20  # a scroll is heard of with the next frame
    while last not in text_of(page, ".option:last-of-type") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert last in find_all(page, ".option")[-1].text
    started = time.perf_counter()
    search(page, "no text holds this")
    assert counts(page)[0] == 0
    assert time.perf_counter() - started < 10
