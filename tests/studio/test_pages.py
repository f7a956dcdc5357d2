"""The pages in headless Chromium."""

from dataclasses import replace

import pytest

from affectgpt.annotate.review.answers import ReviewAnswers
from affectgpt.config import StudioConfig, StudioReviewConfig
from affectgpt.schema import Prediction, write_jsonl
from affectgpt.studio.app import Studio
from affectgpt.studio.command import make_studio
from affectgpt.studio.reviewing import ReviewRoom, set_up_round
from tests.annotate.review.rounds import RECORDS
from tests.annotate.toy import write_records
from tests.data.conftest import write_clip
from tests.studio.conftest import ATTACK, opened, running

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect
expect.set_options(timeout=60_000)


def test_a_filter_leaves_the_clips_that_it_names_and_nothing_is_requested_elsewhere(browser, address):
    with opened(browser, address) as page:
        page.wait_for_selector(".row")
        expect(page.locator(".count")).to_have_text("12 clips")
        page.get_by_label("State").select_option("wrong")
        expect(page.locator(".count")).to_have_text("1 clips")
        assert page.locator(".row .id").inner_text().startswith("clip3")
        page.get_by_role("button", name="Clear").click()
        expect(page.locator(".count")).to_have_text("12 clips")
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


def test_nothing_is_wider_than_a_phone(browser, address):
    for path in ("/#/gallery", "/#/clip/clip1?system=a"):
        with opened(browser, address, path, viewport={"width": 375, "height": 740}) as page:
            page.wait_for_selector(".row, .answer")
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


def test_a_clip_can_be_recorded(browser, trying):
    with opened(browser, trying, "/#/try", permissions=["camera", "microphone"]) as page:
        page.get_by_role("button", name="Record").click()
        page.wait_for_selector("video[autoplay]")
        page.wait_for_timeout(700)
        page.get_by_role("button", name="Stop recording").click()
        page.wait_for_selector(".frame img")  # of the clip that was sent


def test_a_review_by_keyboard_is_saved_and_an_unsaved_draft_survives_the_page(browser, tmp_path_factory):
    folder = tmp_path_factory.mktemp("review")
    clip = write_clip(folder / "clip1.mp4")
    records = [replace(RECORDS[0], media={"video": str(clip)})]
    coarse = write_records(folder / "coarse", records)
    config = StudioReviewConfig(records=str(coarse), to=str(folder), round=1, annotators="ann,bob", browser=False)
    set_up_round(config, coarse, folder)
    room = ReviewRoom(folder)
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
    answers = ReviewAnswers(folder)
    assert answers.of(1, "labels", "clip1")["ann"]["labels"] == ["puzzled", "惊讶"]
    assert answers.of(1, "clues", "clip1")["ann"]["clues"]["visual"] == ["The person waves at somebody.", ATTACK]
