"""The pages in headless Chromium."""

import contextlib
import re
import time
from dataclasses import replace

import pytest

from affectgpt.annotate.review.answers import ReviewAnswers
from affectgpt.config import StudioConfig, StudioReviewConfig
from affectgpt.journal import append_rows
from affectgpt.runs import RunRecord
from affectgpt.schema import Prediction, write_jsonl
from affectgpt.studio.app import Studio
from affectgpt.studio.command import make_studio
from affectgpt.studio.reviewing import ReviewRoom, set_up_round
from affectgpt.studio.watching import PART, Watch
from tests.annotate.review.rounds import RECORDS
from tests.annotate.toy import write_records
from tests.data.conftest import write_clip
from tests.studio.conftest import ATTACK, opened, running

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect
expect.set_options(timeout=60_000)


@pytest.fixture
def round_of_two(tmp_path):
    """A folder with a clip to review by ann and bob."""
    records = [replace(RECORDS[0], media={"video": str(write_clip(tmp_path / "clip1.mp4"))})]
    coarse = write_records(tmp_path / "coarse", records)
    config = StudioReviewConfig(records=str(coarse), to=str(tmp_path), round=1, annotators="ann,bob", browser=False)
    set_up_round(config, coarse, tmp_path)
    return config, ReviewRoom(tmp_path)


def held(page, part):
    """The requests for an address with `part`, which wait until somebody continues them."""
    waiting = []
    page.route(lambda url: part in url, lambda route: waiting.append(route))
    return waiting


def wait_for(page, waiting):
    until = time.monotonic() + 60
    while not waiting:
        assert time.monotonic() < until, "nothing was asked for"
        page.wait_for_timeout(10)


def drop_file(page):
    """Drops a file that is no video on the page."""
    page.evaluate(
        "const data = new DataTransfer(); data.items.add(new File(['x'], 'b.mp4'));"
        "document.querySelector('.try').dispatchEvent("
        "new DragEvent('drop', { dataTransfer: data, bubbles: true, cancelable: true }))"
    )


def go(page, address):
    page.evaluate("address => { location.hash = address; }", address)


def test_a_filter_leaves_the_clips_that_it_names_and_nothing_is_requested_elsewhere(browser, address):
    with opened(browser, address) as page:
        page.wait_for_selector(".row")
        expect(page.locator(".count")).to_have_text("12 clips")
        page.get_by_label("State").select_option("wrong")
        expect(page.locator(".count")).to_have_text("1 clips")
        assert page.locator(".row .id").inner_text().startswith("clip3")
        page.get_by_role("button", name="Clear").click()
        expect(page.locator(".count")).to_have_text("12 clips")
        page.get_by_label("Compare with").select_option("b")  # the largest differences first
        expect(page.locator(".row .id").first).not_to_contain_text("clip0")
        largest = page.locator(".row .id").first.inner_text()
        page.get_by_label("descending").uncheck()
        expect(page.locator(".row .id").first).not_to_have_text(largest)
        page.get_by_label("Compare with").select_option("none")
        page.get_by_text("Labels and lengths").click()
        expect(page.locator(".bars svg").first).to_have_attribute("aria-label", re.compile("True: 0: 0, .*; a: "))
        page.locator(".cell:not([disabled])").first.click()  # a cell of the matrix filters
        expect(page.locator(".count")).not_to_have_text("12 clips")
        assert page.requests.others == []
        assert page.requests.errors == []


def test_texts_are_shown_as_text_and_chinese_too(browser, address):
    with opened(browser, address, "/#/clip/clip0?system=a", locale="zh-CN") as page:
        page.wait_for_selector(".frame img")
        page.wait_for_selector(".chart polygon")
        assert "onerror" in page.locator(".answer").first.inner_text()
        assert page.locator("main script, main img[src=x]").count() == 0
        assert "attacked" not in page.title()
        assert page.locator("nav a").first.inner_text() == "结果浏览"
        assert page.locator(".sentence.unsupported").count() == 2  # of both systems
        expect(page.locator(".moves")).to_contain_text(["AU12 嘴角上拉"])
    with opened(browser, address, "/#/clip/clip1?system=a") as page:
        page.wait_for_selector(".answer")
        assert "他看起来很高兴。" in page.locator(".answer").first.inner_text()


def test_the_gallery_works_by_keyboard_alone(browser, address):
    with opened(browser, address) as page:
        page.wait_for_selector(".row")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        page.wait_for_selector(".clip-page")
        first = page.locator("h1").inner_text()
        page.keyboard.press("j")
        expect(page.locator("h1")).not_to_have_text(first)
        page.keyboard.press("Escape")
        page.wait_for_selector(".gallery")


def test_nothing_is_wider_than_a_phone(browser, trying):
    phone = {"width": 375, "height": 740}
    for path, shown in (
        ("/#/gallery", ".row"),
        ("/#/clip/clip0?system=a", ".moves .move"),
        ("/#/try?id=clip0", ".frame img"),
        ("/#/runs", ".runs tr"),
    ):
        with opened(browser, trying, path, viewport=phone) as page:
            page.wait_for_selector(shown)
            assert page.evaluate("document.documentElement.scrollWidth") <= 375, path


def test_a_list_of_many_clips_loads_only_what_is_in_view(browser, tmp_path_factory):
    file = tmp_path_factory.mktemp("many") / "many.jsonl"
    write_jsonl(file, [Prediction(f"clip{number:04}", "", labels=("sad",)) for number in range(2000)])
    studio = make_studio(StudioConfig(predictions=str(file), browser=False))
    with running(studio) as url, opened(browser, url, "/#/gallery?sort=id") as page:
        asked = []
        page.on("request", lambda request: asked.append(request.url) if "/api/gallery" in request.url else None)
        page.wait_for_selector("#row-0")
        assert page.locator(".row").count() < 30
        page.get_by_role("listbox").focus()
        page.keyboard.press("End")
        page.wait_for_selector("#row-1999 >> text=clip1999")
        assert page.locator(".row").count() < 30
        assert len(asked) <= 2  # of 34 parts


def test_a_clip_is_uploaded_and_answered_by_two_models_with_what_each_sentence_rests_on(browser, trying, manifest):
    with opened(browser, trying, "/#/try") as page:
        page.set_input_files("input[type=file]", manifest.parent / "clip2.mp4")
        page.wait_for_selector(".frame img")
        page.wait_for_selector("fieldset input")  # the model is loaded
        page.get_by_label("Subtitle").fill(ATTACK)
        page.get_by_role("button", name="Ask", exact=True).click()
        expect(page.locator(".answer .rests")).to_have_count(2)
        page.locator(".answer [tabindex]").first.focus()
        expect(page.locator(".answer .rests").first).to_contain_text("nats per token")
        assert "attacked" not in page.title()
        assert page.requests.others == []
        assert page.requests.errors == []


def test_a_subtitle_is_proposed_and_what_somebody_writes_is_kept(browser, trying, manifest):
    with opened(browser, trying, "/#/try") as page:
        subtitle = page.get_by_label("Subtitle")
        page.set_input_files("input[type=file]", manifest.parent / "clip2.mp4")
        expect(page.locator(".ask")).to_contain_text("correct it if it is wrong")
        proposed = subtitle.input_value()
        assert proposed
        page.get_by_role("button", name="✕").click()
        subtitle.fill("my own words")
        page.set_input_files("input[type=file]", manifest.parent / "clip3.mp4")
        page.wait_for_selector(".frame img")
        expect(page.get_by_role("button", name="Listen")).to_be_enabled()
        assert subtitle.input_value() == "my own words"


def test_a_clip_can_be_recorded(browser, trying):
    with opened(browser, trying, "/#/try", permissions=["camera", "microphone"]) as page:
        page.get_by_role("button", name="Record").click()
        expect(page.locator(".recorded")).to_contain_text("kB")  # something was recorded
        page.get_by_role("button", name="Stop recording").click()
        page.wait_for_selector(".frame img")  # of the clip that was sent


def test_a_review_by_keyboard_is_saved_and_an_unsaved_draft_survives_the_page(browser, round_of_two):
    config, room = round_of_two
    with running(Studio(config, review=room)) as url, opened(browser, url, f"/review/{room.keys['ann']}") as page:
        fields = page.locator("textarea")
        expect(fields).to_have_count(3)
        page.keyboard.press("Alt+Backspace")  # the first clue is wrong
        expect(fields).to_have_count(2)
        page.keyboard.press("Alt+n")
        page.keyboard.type(ATTACK)
        page.reload()
        expect(fields).to_have_count(3)  # the draft
        page.keyboard.press("Control+Enter")
        expect(page.locator(".tick-label")).to_have_count(2)
        page.keyboard.press("2")
        page.keyboard.press("/")
        page.keyboard.type("惊讶")
        page.keyboard.press("Enter")
        page.keyboard.press("Control+Enter")
        expect(page.locator(".done-count")).to_have_text("2 / 2")
        assert "attacked" not in page.title()
        assert page.requests.errors == []
    answers = ReviewAnswers(room.folder)
    assert answers.of(1, "labels", "clip1")["ann"]["labels"] == ["puzzled", "惊讶"]
    assert answers.of(1, "clues", "clip1")["ann"]["clues"]["visual"] == ["The person waves at somebody.", ATTACK]


def test_two_people_review_one_clip_at_once(browser, round_of_two):
    config, room = round_of_two
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(running(Studio(config, review=room)))
        pages = {
            name: stack.enter_context(opened(browser, url, f"/review/{room.keys[name]}")) for name in ("ann", "bob")
        }
        for page in pages.values():
            expect(page.locator("textarea")).to_have_count(3)
        pages["ann"].keyboard.press("Alt+Backspace")  # bob's page stays as it is
        expect(pages["ann"].locator("textarea")).to_have_count(2)
        pages["bob"].keyboard.press("Control+Enter")
        pages["ann"].keyboard.press("Control+Enter")
        for page, key in ((pages["bob"], "1"), (pages["ann"], "2")):
            expect(page.locator(".tick-label")).to_have_count(2)
            page.keyboard.press(key)
            page.keyboard.press("Control+Enter")
        for page in pages.values():
            expect(page.locator(".done-count")).to_have_text("2 / 2")
    answers = ReviewAnswers(room.folder)
    assert {name: row["labels"] for name, row in answers.of(1, "labels", "clip1").items()} == {
        "ann": [RECORDS[0].labels[1]],
        "bob": [RECORDS[0].labels[0]],
    }
    clues = {name: sum(map(len, row["clues"].values())) for name, row in answers.of(1, "clues", "clip1").items()}
    assert clues == {"ann": 2, "bob": 3}


def test_rollouts_of_a_step_are_shown_in_parts_with_their_number_and_new_steps_appear(browser, tmp_path):
    def rows(step, n_clips):
        return [
            {"step": step, "id": f"clip{n}", "text": f"{ATTACK} {k}", "reward": k / 2, "rewards": {"wheel": k / 2}}
            for n in range(n_clips)
            for k in range(2)
        ]

    RunRecord.start(tmp_path / "reward", kind="train reward", config={})
    append_rows(tmp_path / "reward" / "rollouts.jsonl", rows(1, PART + 3))
    watch = Watch([tmp_path])
    with running(Studio(StudioConfig(browser=False), watch=watch)) as url, opened(browser, url, "/#/runs") as page:
        page.get_by_role("link", name="reward").click()
        section = page.locator("section section").filter(has_text="Rollouts")
        expect(section).to_contain_text(f"1–{PART} of {PART + 3} clips")
        expect(section.locator(".reward").first).to_have_text("reward 0.50")
        page.get_by_role("button", name="Next").press("Enter")
        expect(section).to_contain_text(f"{PART + 1}–{PART + 3} of {PART + 3} clips")
        expect(section.locator(".sample")).to_have_count(3)
        append_rows(tmp_path / "reward" / "rollouts.jsonl", rows(2, 1))
        expect(section).to_contain_text("1–1 of 1 clips")
        assert "attacked" not in page.title()
        assert page.requests.errors == []


def test_a_page_that_is_ready_after_it_was_left_is_not_shown_and_hears_no_keys(browser, address):
    with opened(browser, address) as page:
        page.wait_for_selector(".row")
        late = held(page, "/api/clip/clip0")
        go(page, "#/clip/clip0?sort=id&system=a&place=0")
        wait_for(page, late)
        go(page, "#/clip/clip1?sort=id&system=a&place=1")
        expect(page.locator("h1")).to_have_text("clip1")
        with page.expect_response(lambda reply: "/api/clip/clip0" in reply.url):
            late[0].continue_()
        page.wait_for_timeout(100)
        expect(page.locator("h1")).to_have_text("clip1")
        asked = []
        page.on("request", lambda request: asked.append(request.url) if "/api/gallery" in request.url else None)
        page.keyboard.press("j")
        expect(page.locator("h1")).to_have_text(re.compile("clip(?!1$)"))
        assert len(asked) == 1
        assert page.requests.errors == []


def test_a_review_that_was_left_while_it_was_loaded_saves_nothing(browser, round_of_two, tmp_path):
    config, room = round_of_two
    studio = Studio(config, review=room, watch=Watch([tmp_path]))
    with running(studio) as url, opened(browser, url, f"/review/{room.keys['ann']}") as page:
        page.wait_for_selector("textarea")
        go(page, "#/runs")
        page.wait_for_selector(".charge")
        late = held(page, "/api/review/task")
        go(page, "#/review")
        wait_for(page, late)
        go(page, "#/runs")
        page.wait_for_selector(".charge")
        saved = []
        page.on("request", lambda request: saved.append(request.url) if request.method == "POST" else None)
        with page.expect_response(lambda reply: "/api/review/task" in reply.url):
            late[0].continue_()
        page.wait_for_timeout(100)
        page.keyboard.press("Control+Enter")
        page.wait_for_timeout(100)
        assert saved == []


def test_the_task_that_is_shown_is_the_one_that_is_saved_and_ticked(browser, round_of_two):
    config, room = round_of_two
    with running(Studio(config, review=room)) as url, opened(browser, url, f"/review/{room.keys['ann']}") as page:
        clues, labels = page.locator("textarea"), page.locator(".tick-label")
        ticks = page.locator(".review-bar option")
        expect(clues).to_have_count(3)
        late = held(page, "screen=labels")
        page.keyboard.press("Escape")
        page.keyboard.press("]")
        wait_for(page, late)
        with page.expect_response(lambda reply: "screen=clues" in reply.url):
            page.keyboard.press("[")
        late[0].continue_()  # the reply to the key before
        page.wait_for_timeout(100)
        expect(clues).to_have_count(3)
        page.unroute_all()
        page.route(lambda url: "screen=labels" in url, lambda route: route.fulfill(status=500))
        for _ in range(2):  # the next task cannot be loaded: this one stays
            with page.expect_response(lambda reply: "screen=labels" in reply.url):
                page.keyboard.press("Control+Enter")
            expect(page.locator("#notice")).to_contain_text("500")
        expect(ticks).to_have_text(["✓ clip1 · clues", "○ clip1 · labels"])
        page.unroute_all()
        page.route(lambda url: "/api/review/task" in url, lambda route: route.fulfill(status=500))
        page.reload()
        expect(page.locator("#notice")).to_contain_text("500")
        page.keyboard.press("Control+Enter")  # nothing is shown, so nothing is saved
        page.unroute_all()
        page.keyboard.press("]")
        expect(labels).to_have_count(2)
        page.keyboard.press("Control+Enter")
        expect(page.locator(".done-count")).to_have_text("2 / 2")
        assert page.requests.errors == []
    answers = ReviewAnswers(room.folder)
    assert answers.of(1, "labels", "clip1")["ann"]["labels"] == []


def test_an_input_method_takes_its_own_keys(browser, round_of_two):
    config, room = round_of_two
    with running(Studio(config, review=room)) as url, opened(browser, url, f"/review/{room.keys['ann']}") as page:
        page.wait_for_selector("textarea")
        page.keyboard.press("Escape")
        page.keyboard.press("]")
        field, chips = page.locator("#other"), page.locator(".chips.other .chip")
        field.fill("jing")
        for composing in ({"isComposing": True}, {"keyCode": 229}):
            field.dispatch_event("keydown", {"key": "Enter", "bubbles": True, "cancelable": True, **composing})
        expect(chips).to_have_count(0)
        field.press("Enter")
        expect(chips).to_have_count(1)


def test_the_focus_stays_where_it_is_when_a_page_is_drawn_anew(browser, address, round_of_two, tmp_path):
    def focused(page, selector):
        return page.evaluate("selector => document.activeElement.matches(selector)", selector)

    with opened(browser, address) as page:
        page.wait_for_selector(".cell:not([disabled])")
        page.get_by_label("System").focus()
        with page.expect_response(lambda reply: "/api/gallery?system=b" in reply.url):
            page.keyboard.press("ArrowDown")
        assert focused(page, "select[data-key=system]")
        expect(page.locator(".count")).to_have_text("12 clips")
        page.locator(".cell:not([disabled])").first.press("Enter")
        page.wait_for_selector(".cell.on")
        assert focused(page, ".cell.on")
    config, room = round_of_two
    RunRecord.start(tmp_path / "reward", kind="train reward", config={})
    studio = Studio(config, review=room, watch=Watch([tmp_path]))
    with running(studio) as url, opened(browser, url, "/#/runs") as page:
        page.clock.install()
        for name, selector, pause_ms in (("review", ".charge .figures a", 4000), ("runs", ".charge .runs a", 5000)):
            go(page, f"#/{name}")
            page.locator(selector).first.focus()
            page.evaluate("document.activeElement.old = true")
            page.clock.run_for(pause_ms + 100)
            page.wait_for_function("selector => document.querySelector(selector).old === undefined", arg=selector)
            assert focused(page, selector), name
        page.goto(f"{url}/review/{room.keys['ann']}")
        page.wait_for_selector("textarea")
        page.locator(".review-bar select").focus()
        with page.expect_response(lambda reply: "/api/review/progress" in reply.url):
            page.clock.run_for(8100)
        page.wait_for_timeout(100)
        assert focused(page, ".review-bar select")
        page.keyboard.press("Escape")
        page.keyboard.press("]")
        page.locator(".tick-label").last.press("Space")
        assert focused(page, ".tick-label[aria-pressed=true]:last-child")


def test_the_list_is_sorted_by_a_difference_only_while_two_systems_are_compared(browser, address):
    with opened(browser, address, "/#/gallery?sort=difference") as page:
        expect(page.locator(".count")).to_have_text("12 clips")
        page.get_by_label("Compare with").select_option("b")
        expect(page.get_by_label("Sort by")).to_have_value("difference")
        page.get_by_label("System").select_option("b")
        expect(page.get_by_label("Sort by")).to_have_value("f")
        expect(page.locator(".row").first).to_be_visible()
        page.reload()
        expect(page.locator(".row").first).to_be_visible()
        assert page.locator("#notice.error").count() == 0


def test_what_was_typed_last_is_dropped_with_the_filters_and_with_the_page(browser, address):
    typed = (
        "field = [...document.querySelectorAll('.filters label')].find(one => one.innerText.startsWith('Search'))"
        ".querySelector('input'); field.value = 'clip3'; field.dispatchEvent(new Event('input'));"
    )
    with opened(browser, address) as page:
        expect(page.locator(".count")).to_have_text("12 clips")
        page.evaluate(f"let {typed} document.querySelector('.filters [type=button]').click()")
        page.wait_for_timeout(400)
        assert "clip3" not in page.url
        expect(page.locator(".count")).to_have_text("12 clips")
        page.evaluate(f"let {typed}")
        expect(page.locator(".count")).to_have_text("1 clips")
        page.evaluate(f"let {typed.replace('clip3', 'clip4')} location.hash = '#/clip/clip1'")
        expect(page.locator("h1")).to_have_text("clip1")
        page.wait_for_timeout(400)
        assert page.url.endswith("#/clip/clip1")


def test_camera_and_microphone_are_off_once_a_recording_is_not_shown(browser, trying):
    ended = "() => window.media?.getTracks().every(track => track.readyState === 'ended')"
    with opened(browser, trying, "/#/try", permissions=["camera", "microphone"]) as page:
        page.evaluate(
            "const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);"
            "navigator.mediaDevices.getUserMedia = async wanted => {"
            " window.media = await ask(wanted); await window.permission; return window.media; }; 0"
        )
        page.get_by_role("button", name="Record").click()
        page.wait_for_selector(".recorded")
        drop_file(page)
        page.wait_for_function(ended)
        page.evaluate("window.media = null; window.permission = new Promise(give => { window.give = give; }); 0")
        page.get_by_role("button", name="Record").click()
        page.wait_for_function("() => Boolean(window.media)")
        go(page, "#/gallery")
        page.wait_for_selector(".row")
        page.evaluate("window.give()")
        page.wait_for_function(ended)
        assert page.requests.errors == []


def test_a_clip_whose_place_another_takes_is_removed_and_a_stopped_answer_says_so(browser, trying, manifest):
    with opened(browser, trying, "/#/try") as page:
        removed = []
        page.on("request", lambda request: removed.append(request.url) if request.method == "DELETE" else None)
        page.set_input_files("input[type=file]", manifest.parent / "clip2.mp4")
        expect(page.get_by_role("button", name="Listen")).to_be_enabled()
        page.wait_for_selector("fieldset input")
        asked = held(page, "/api/ask")
        page.get_by_role("button", name="Ask", exact=True).click()
        wait_for(page, asked)
        page.get_by_role("button", name="Stop", exact=True).click()
        expect(page.locator(".answer")).to_contain_text(["stopped", "stopped"])
        assert page.locator(".writing").count() == 0
        expect(page.get_by_role("button", name="Ask", exact=True)).to_be_enabled()
        drop_file(page)  # which the server refuses
        page.wait_for_selector(".drop")
        expect(page.get_by_role("button", name="Listen")).to_be_disabled()
        expect(page.get_by_role("button", name="Ask", exact=True)).to_be_disabled()
        assert len(removed) == 1
        late = held(page, "/api/upload?")
        page.set_input_files("input[type=file]", manifest.parent / "clip3.mp4")
        wait_for(page, late)
        go(page, "#/gallery")
        page.wait_for_selector(".row")
        with page.expect_request(lambda request: request.method == "DELETE"):  # nobody shows it
            late[0].continue_()
        assert page.requests.errors == []
