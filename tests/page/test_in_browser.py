"""The page in headless Chromium, as a reader meets it: it shows, explains, filters, leads, prints, and asks nobody outside."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser

import synthetic
from browser import CUT, WIDTHS, Visit
from lowbit_vit.report.page import build_report

pytestmark = pytest.mark.page
Scheme = Literal["light", "dark"]
SCHEMES: tuple[Scheme, ...] = ("light", "dark")
SIZES = [(WIDTHS[place], scheme) for place in ("desk", "phone") for scheme in SCHEMES]


def visit(browser: Browser, page: Path, *, width: int = 1440, scheme: Scheme = "light", touch: bool = False) -> Visit:
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme, has_touch=touch)
    return Visit(context.new_page(), page.as_uri())


@pytest.fixture
def desk(browser: Browser, synthetic_page: Path) -> Iterator[Visit]:
    seen = visit(browser, synthetic_page)
    yield seen
    assert seen.messages == []
    assert seen.outside == []
    seen.page.context.close()


def colours(png: bytes) -> set[tuple[int, ...]]:
    """Distinct colours of a screenshot that cover more than a few pixels."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    return {colour for count, colour in image.getcolors(maxcolors=1 << 24) or [] if count > 8 and isinstance(colour, tuple)}


@pytest.mark.parametrize(("width", "scheme"), SIZES)
def test_every_figure_shows_in_pixels_and_nothing_leaves_the_page(
    browser: Browser, synthetic_page: Path, width: int, scheme: Scheme
) -> None:
    seen = visit(browser, synthetic_page, width=width, scheme=scheme)
    seen.draw_all()
    for place in seen.page.locator(".plot").all():
        # Marks have colours of their own: background, grid and text alone are grey.
        vivid = [colour for colour in colours(place.screenshot()) if max(colour) - min(colour) > 40]
        assert vivid, place.get_attribute("data-figure")
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
    assert seen.messages == []
    assert seen.outside == []
    seen.page.context.close()


@pytest.mark.parametrize(("width", "scheme"), SIZES)
def test_no_serious_barrier_for_keyboard_or_screen_reader(browser: Browser, synthetic_page: Path, width: int, scheme: Scheme) -> None:
    seen = visit(browser, synthetic_page, width=width, scheme=scheme)
    seen.draw_all()
    seen.page.locator("details").evaluate_all("all => all.slice(0, 12).forEach(part => { part.open = true; })")
    assert serious(seen) == []
    seen.page.locator("button.cell").first.click()
    assert serious(seen) == []
    seen.page.context.close()


def serious(seen: Visit) -> list[str]:
    found: list[dict[str, Any]] = Axe().run(seen.page).response["violations"]
    return [f"{rule['id']}: {rule['nodes'][0]['html'][:160]}" for rule in found if rule["impact"] in ("serious", "critical")]


def test_the_committed_runs_show_without_a_message(browser: Browser, reference_page: Path) -> None:
    for width in WIDTHS.values():
        seen = visit(browser, reference_page, width=width)
        seen.draw_all()
        assert seen.cut == []
        assert seen.page.locator("#claims .claim").count() > 90
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
        assert seen.messages == []
        assert seen.outside == []
        assert serious(seen) == []
        seen.page.context.close()


@pytest.mark.parametrize("width", WIDTHS.values())
@pytest.mark.parametrize("name", ["synthetic_page", "own_page"])
def test_nothing_is_cut_and_figures_take_the_pages_width(browser: Browser, request: pytest.FixtureRequest, name: str, width: int) -> None:
    seen = visit(browser, request.getfixturevalue(name), width=width)
    seen.draw_all()
    assert seen.cut == []
    shares = "all => all.map(svg => svg.getBoundingClientRect().width / document.querySelector('main h1').clientWidth)"
    assert min(seen.page.locator(".plot svg").evaluate_all(shares)) > 0.95
    shrunk = "all => all.map(svg => svg.getBoundingClientRect().width / svg.getAttribute('width'))"
    assert min(seen.page.locator(".plot svg").evaluate_all(shrunk)) > 0.9
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
    seen.page.context.close()


@pytest.mark.parametrize("width", WIDTHS.values())
def test_nothing_is_cut_without_scripts(browser: Browser, own_page: Path, width: int) -> None:
    context = browser.new_context(java_script_enabled=False, viewport={"width": width, "height": 844})
    page = context.new_page()
    page.goto(own_page.as_uri())
    assert page.evaluate(CUT) == []
    context.close()


def test_a_page_of_own_data_leads_with_its_recommendation_and_judges_no_paper(browser: Browser, own_page: Path) -> None:
    seen = visit(browser, own_page)
    for place in ("#verdict h1", ".sentences", "#arms thead"):
        box = seen.page.locator(place).first.bounding_box()
        assert box is not None
        assert box["y"] + box["height"] <= 844, place
    assert "% of predictions change" in seen.page.locator("h1").inner_text()
    assert seen.page.locator("#ledger, #paper, .strip, #claims").count() == 0
    text = seen.page.locator("body").inner_text().lower()
    assert "ledger" not in text
    assert "statement" not in text
    assert seen.messages == []
    assert serious(seen) == []
    seen.page.context.close()


def test_the_first_screen_has_the_verdict_the_strip_and_the_table(desk: Visit) -> None:
    for place in ("#verdict h1", ".sentences", ".strip", "#paper h2", "table.beside thead"):
        box = desk.page.locator(place).first.bounding_box()
        assert box is not None
        assert box["y"] + box["height"] <= 844, place


def test_a_cell_explains_itself_on_hover_and_the_tip_goes_with_escape(desk: Visit) -> None:
    tip = desk.page.locator("#tip")
    assert tip.is_hidden()
    desk.page.locator("button.cell").nth(1).hover()
    assert "the paper prints 16.35" in tip.inner_text()
    desk.page.keyboard.press("Escape")
    assert tip.is_hidden()


def test_a_cell_explains_itself_on_focus_and_arrows_walk_the_table(desk: Visit) -> None:
    desk.page.locator(".strip a").last.focus()
    # The table's own box scrolls, so it is a stop as well.
    desk.page.keyboard.press("Tab")
    desk.page.keyboard.press("Tab")
    tip = desk.page.locator("#tip")
    assert "the paper prints 1157.4" in tip.inner_text()
    desk.page.keyboard.press("ArrowRight")
    desk.page.keyboard.press("ArrowDown")
    assert "the paper prints 58.72" in tip.inner_text()
    # The whole table is one stop.
    desk.page.keyboard.press("Tab")
    assert desk.page.evaluate("document.activeElement.closest('table.beside')") is None


def test_a_tap_shows_reason_record_command_host_and_image(browser: Browser, synthetic_page: Path) -> None:
    seen = visit(browser, synthetic_page, width=390, touch=True)
    seen.page.locator("button.cell").nth(1).tap()
    dialog = seen.page.locator("dialog")
    text = dialog.inner_text()
    for words in ("the paper prints 16.35", "synthetic", "Synthetic CPU", "container image", "git revision", "weights sha256", "abab"):
        assert words in text, words
    seen.page.keyboard.press("Escape")
    assert dialog.is_hidden()
    assert seen.messages == []
    seen.page.context.close()


def test_a_mark_of_a_figure_and_a_name_in_a_table_lead_to_their_records(desk: Visit) -> None:
    desk.draw_all()
    dialog = desk.page.locator("dialog")
    desk.page.locator("#figure2 .plot .mark-rect path").first.click()
    assert "Baseline ViT" in dialog.inner_text()
    assert (dialog.locator("a").first.get_attribute("href") or "").startswith("records/variants/")
    desk.page.keyboard.press("Escape")
    desk.page.locator("#mixed button.source").first.press("Enter")
    assert "records/mixed/" in (dialog.locator("a").first.get_attribute("href") or "")


def test_a_figure_answers_the_pointer(desk: Visit) -> None:
    desk.draw_all()
    desk.page.locator("#figure2 .plot .mark-rect path").first.hover()
    tip = desk.page.locator("#vg-tooltip-element.visible")
    tip.wait_for()
    assert "MiB" in tip.inner_text()


def test_the_ledger_filters_by_verdict_section_and_words_and_says_how_many_are_left(desk: Visit) -> None:
    shown, visible = desk.page.locator("#shown"), desk.page.locator("#claims .claim:visible")
    total = visible.count()
    assert shown.inner_text() == f"{total} of {total} statements"
    assert shown.get_attribute("role") == "status"
    desk.page.locator("#by-verdict").select_option("impossible")
    few = visible.count()
    assert 0 < few < total
    assert shown.inner_text() == f"{few} of {total} statements"
    assert set(visible.evaluate_all("all => all.map(claim => claim.dataset.verdict)")) == {"impossible"}
    desk.page.locator("#by-section").select_option("Table 1")
    assert visible.count() < few
    desk.page.locator("#by-words").fill("no claim has these words")
    assert shown.inner_text() == f"0 of {total} statements"
    desk.page.get_by_role("button", name="Clear").press("Enter")
    desk.page.wait_for_function(f"document.getElementById('shown').textContent.startsWith('{total} of')")
    assert visible.count() == total


def test_a_count_of_the_strip_leads_to_its_claims(desk: Visit) -> None:
    desk.page.locator(".strip a", has_text="contradicts itself").click()
    desk.page.wait_for_function("document.getElementById('by-verdict').value === 'contradicts itself'")
    verdicts = desk.page.locator("#claims .claim:visible").evaluate_all("all => all.map(claim => claim.dataset.verdict)")
    assert set(verdicts) == {"contradicts itself"}


def test_the_address_of_a_claim_opens_it_even_where_a_filter_hides_it(desk: Visit) -> None:
    desk.page.locator("#by-verdict").select_option("not run")
    desk.page.evaluate("location.hash = '#claim-t1-r0-0'")
    claim = desk.page.locator("#claim-t1-r0-0")
    claim.locator("dl").wait_for()
    assert "1157.4" in claim.inner_text()
    box = claim.bounding_box()
    assert box is not None
    assert 0 <= box["y"] < 844


def test_the_cells_dialog_leads_to_its_claim(desk: Visit) -> None:
    desk.page.locator("button.cell").first.click()
    desk.page.get_by_role("link", name="The statement in the ledger").click()
    desk.page.locator("#claim-t1-r0-0[open]").wait_for()
    assert desk.page.locator("dialog").is_hidden()


def test_every_section_can_be_reached_from_the_bar_which_stays(desk: Visit) -> None:
    for link in desk.page.locator("nav a").all():
        target = link.get_attribute("href") or ""
        link.click()
        assert desk.page.locator(target).count() == 1
        bar = desk.page.locator("nav").bounding_box()
        assert bar is not None
        assert bar["y"] == 0


def test_text_of_records_stays_text(desk: Visit) -> None:
    assert desk.page.locator("script").count() == 4
    assert desk.page.locator("b", has_text="bold").count() == 0
    desk.page.locator("#arms button.source", has_text="alert(1)").first.click()
    assert "<script>alert(1)</script>" in desk.page.locator("dialog").inner_text()


def test_it_prints_with_everything_open_and_no_figure_cut(desk: Visit) -> None:
    desk.page.emulate_media(media="print")
    desk.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert desk.page.locator("details:not([open])").count() == 0
    assert desk.page.locator("nav").is_hidden()
    beyond = "all => all.map(svg => svg.getBoundingClientRect().width - svg.closest('figure').clientWidth)"
    assert max(desk.page.locator(".plot svg").evaluate_all(beyond)) <= 1
    printed = desk.page.pdf(prefer_css_page_size=True)
    assert printed.startswith(b"%PDF")
    # The ledger alone is several sheets.
    assert printed.count(b"/Type /Page\n") + printed.count(b"/Type /Page ") + printed.count(b"/Type /Page/") >= 6


def test_without_scripts_the_figures_and_every_statement_are_there(browser: Browser, synthetic_page: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(synthetic_page.as_uri())
    assert page.locator(".plot svg").count() == 8
    assert page.locator("#claims .claim").count() == 79
    assert page.locator(".filters").is_hidden()
    context.close()


@pytest.mark.timeout(1500)
def test_five_thousand_records_make_a_page_that_stays_usable(browser: Browser, tmp_path: Path) -> None:
    page = build_report(*synthetic.fill_many(tmp_path / "root", arms=492, seeds=10))
    assert page.stat().st_size < 5_000_000
    seen = visit(browser, page, width=390)
    lines = seen.page.locator("#arms table").first.locator("tbody tr:visible")
    assert lines.count() == 50
    bar = seen.page.locator("#arms .pager").first
    assert "rows 1 to 50 of 492" in bar.inner_text()
    bar.get_by_role("button", name="Next").press("Enter")
    assert "rows 51 to 100 of 492" in bar.inner_text()
    assert lines.first.inner_text().startswith("51")
    lines.first.locator("button.source").press("Enter")
    # Ten seeds, ten records.
    assert seen.page.locator("#source-body section").count() == 10
    seen.page.keyboard.press("Escape")
    seen.draw_all()
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert seen.messages == []
    seen.page.context.close()
