"""What a person at the console sees and does."""

from __future__ import annotations

import pytest
from fastapi import FastAPI
from playwright.sync_api import Browser, expect

from browser.console.conftest import Visitor
from integration.api.live import serving
from integration.api.seeding import TOKENS, Seeded, add_device, add_drift, add_incident
from skerry_server.api.app import bind
from skerry_server.store.tables import ApiToken, Campaign, CampaignRound, Device, Incident, Rollout, RolloutDevice

pytestmark = pytest.mark.browser

HOSTILE = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'


def test_signing_in_and_out(visitor: Visitor) -> None:
    visitor.expected_status = 401
    page = visitor.page
    page.goto(visitor.url)
    expect(page.locator("#token")).to_be_focused()
    expect(page.locator(".board")).to_be_hidden()
    page.fill("#token", "wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#sign-in-error")).to_have_text("This token is not valid.")
    visitor.sign_in("viewer")
    expect(page.locator("#who")).to_have_text("the-viewer · viewer")
    page.reload()
    expect(page.locator("#fleet tbody tr").first).to_be_visible()  # kept for this tab
    page.click("[data-action=sign-out]")
    expect(page.locator(".board")).to_be_hidden()
    assert page.evaluate("sessionStorage.length + localStorage.length") == 0
    page.reload()
    expect(page.locator("#token")).to_be_visible()


def test_the_page_shows_what_the_store_holds(visitor: Visitor) -> None:
    visitor.sign_in()
    page = visitor.page
    row = page.locator("#fleet tr[data-key=press-02]")
    for text in ("online", "digits-1", "int8-x86", "downloading 24 %", "211", "1.03 ms"):
        expect(row).to_contain_text(text)
    expect(page.locator("#fleet tr[data-key=press-08]")).to_contain_text("offline")
    expect(page.locator(".stage[data-stage=campaign]")).to_contain_text("fedprox, 2 of 5 rounds")
    expect(page.locator(".stage[data-stage=drift]")).to_have_attribute("data-mood", "attention")
    cell = page.locator("#drift tr[data-key=press-01] td[data-severity=critical]")
    expect(cell).to_have_text(".31")
    expect(cell).to_have_attribute("data-fired", "true")
    expect(page.locator("#rollout .stages li[data-now=true]")).to_have_text("fleet")
    expect(page.locator("#rollout .squares li")).to_have_count(8)
    expect(page.locator("#accuracy svg circle")).to_have_count(14)  # 11 rounds and 3 starts
    expect(page.locator("#accuracy .newest")).to_have_text("94.9 %")
    expect(page.locator("#incidents .incident")).to_have_count(3)
    expect(page.locator("#releases")).to_contain_text("champion")
    expect(page.locator("#jobs")).to_contain_text("attempt 5 of 5: killed by signal 9")
    expect(page.locator("#audit tbody tr")).to_have_count(10)
    page.click("[data-action=verify]")
    expect(page.locator("#audit .note")).to_have_text("chain of 10 entries intact")


def test_the_campaign_panel_says_where_it_stands_and_why_devices_stay_out(visitor: Visitor, seeded: Seeded) -> None:
    visitor.sign_in("operator")
    panel = visitor.page.locator("#campaign")
    expect(panel.locator(".state").first).to_have_text("running")
    expect(panel.locator(".stages li[data-now=true]")).to_have_text("collect")
    for text in ("2 of 5", "94.9 %", "ε 1.22", "at δ 1e-5", "2.4 MB", "2.1 MB down, 270.0 kB up", "3 of 8"):
        expect(panel).to_contain_text(text)
    expect(panel.locator(".reasons tbody tr")).to_have_count(4)
    first = panel.locator(".reasons tr[data-code=hot]")
    for text in ("too warm", "2", "press-04: 71 °C, at most 65 °C wanted"):
        expect(first).to_contain_text(text)
    panel.locator("[data-verb=pause]").click()
    visitor.page.fill("#decision-reason", "maintenance")
    visitor.page.click("#decision-yes")
    expect(panel.locator(".state").first).to_have_text("paused")
    expect(panel).to_contain_text("waits for a person to resume it")
    expect(panel.locator(".stages")).to_have_count(0)
    panel.locator("[data-verb=resume]").click()
    visitor.page.click("#decision-yes")
    expect(panel.locator(".state").first).to_have_text("running")
    with seeded.context.database.reading() as session:
        campaign = session.get_one(Campaign, "campaign-c4d5e6f70819")
        assert (campaign.state, campaign.paused_from) == ("running", "")


def test_changes_arrive_without_a_reload(visitor: Visitor, seeded: Seeded) -> None:
    visitor.sign_in()
    page = visitor.page
    page.evaluate("window.sameDocument = true")
    with seeded.context.database.transaction() as session:
        add_device(session, "press-77", labels={"site": "roof"})
    expect(page.locator("#fleet tr[data-key=press-77]")).to_contain_text("site=roof")
    expect(page.locator("#announcer")).to_contain_text("press-77 enrolled.")
    with seeded.context.database.transaction() as session:
        device = session.get(Device, "press-77")
        assert device is not None
        device.update_status, device.update_detail = "rolled_back", "no space left"
        device.reported_revision += 1
    first = page.locator("#fleet tbody tr").first
    expect(page.locator("#fleet tr[data-key=press-77]")).to_contain_text("no space left")
    expect(first).to_have_attribute("data-key", "press-07")  # broken ones first, by name
    with seeded.context.database.transaction() as session:
        rollout = session.get(Rollout, "rollout-5b1c90d2a3f4")
        assert rollout is not None
        rollout.state, rollout.updated_ms = "finished", rollout.updated_ms + 1
        for row in session.query(RolloutDevice).filter_by(rollout_id=rollout.id):
            row.state = "healthy"
        session.add(
            CampaignRound(
                campaign_id="campaign-c4d5e6f70819",
                number=3,
                invited=8,
                accepted=8,
                accuracy=0.953,
                loss=0.1,
                seconds=1,
                parameters_sha256="",
                committed_ms=5_000_000_000_000,
            )
        )
        add_drift(session, "press-04", "digits-1", {"ink": 0.4}, status="drift", window=2)
    expect(page.locator("#accuracy .newest")).to_have_text("95.3 %")
    expect(page.locator("#rollout .stages li[data-done=true]")).to_have_count(4)
    expect(page.locator("#drift tr[data-key=press-04]")).to_contain_text("drift")
    expect(page.locator(".stage[data-stage=drift]")).to_contain_text("4/8")
    assert page.evaluate("window.sameDocument") is True


def test_hostile_text_is_shown_as_text(visitor: Visitor, seeded: Seeded) -> None:
    with seeded.context.database.transaction() as session:
        add_device(session, "press-66", labels={"note": HOSTILE}, update_status="quarantined", update_detail=HOSTILE)
        add_incident(session, "incident-hostile", detail=HOSTILE, release_id=HOSTILE, device_ids=[HOSTILE])
        add_drift(session, "press-66", "", {HOSTILE: 0.5}, status="drift")
    visitor.sign_in()
    page = visitor.page
    expect(page.locator("#fleet tr[data-key=press-66] .tag")).to_have_text(f"note={HOSTILE}")
    expect(page.locator("[data-key=incident-hostile] .incident-detail")).to_have_text(HOSTILE)
    assert page.locator("main img, main script").count() == 0
    assert page.evaluate("window.hacked") is None


def test_deciding_about_an_incident_with_the_keyboard(visitor: Visitor, seeded: Seeded) -> None:
    visitor.sign_in("approver")
    page = visitor.page
    approve = page.locator("[data-key=incident-9d3e5a7c1b20] [data-action=approve]")
    approve.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#decision-reason")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#decision")).to_be_hidden()
    with seeded.context.database.reading() as session:
        incident = session.get(Incident, "incident-9d3e5a7c1b20")
        assert incident is not None
        assert incident.state == "proposed"  # cancelling did nothing
    approve.focus()
    page.keyboard.press("Enter")
    page.keyboard.type("new mount")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    expect(page.locator("#decision-yes")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("[data-key=incident-9d3e5a7c1b20] .way li[data-now=true]")).to_have_text("approved")
    expect(approve).to_have_count(0)
    expect(page.locator("#audit tbody tr").first).to_contain_text("the-approver")
    with seeded.context.database.reading() as session:
        incident = session.get(Incident, "incident-9d3e5a7c1b20")
        assert incident is not None
        assert incident.state == "approved"
        assert "new mount" in incident.detail


def test_pressing_enter_in_the_reason_confirms(visitor: Visitor) -> None:
    visitor.sign_in()
    page = visitor.page
    page.click("[data-key=incident-9d3e5a7c1b20] [data-action=dismiss]")
    page.keyboard.type("maintenance")
    page.keyboard.press("Enter")
    expect(page.locator("[data-key=incident-9d3e5a7c1b20] .incident-head")).to_contain_text("dismissed")


def test_a_viewer_is_offered_nothing_to_change(visitor: Visitor) -> None:
    visitor.sign_in("viewer")
    assert (
        visitor.page.locator("[data-action=approve], [data-action=dismiss], [data-action=abort-rollout]").count() == 0
    )


def test_typing_survives_changes(visitor: Visitor, seeded: Seeded) -> None:
    visitor.sign_in()
    page = visitor.page
    page.locator("#fleet-filter").press_sequentially("site=south on")
    expect(page.locator("#fleet tbody tr")).to_have_count(4)
    with seeded.context.database.transaction() as session:
        add_device(session, "press-78", labels={"site": "south"})
    expect(page.locator("#fleet tbody tr")).to_have_count(5)
    expect(page.locator("#fleet-filter")).to_be_focused()
    page.keyboard.type("line")
    expect(page.locator("#fleet-filter")).to_have_value("site=south online")
    expect(page.locator("#fleet tbody tr")).to_have_count(5)


def test_a_revoked_token_ends_the_session(visitor: Visitor, seeded: Seeded) -> None:
    visitor.expected_status = 401
    visitor.sign_in("operator")
    with seeded.context.database.transaction() as session:
        for row in session.query(ApiToken).filter_by(role="operator"):
            row.revoked = True
        add_device(session, "press-79")  # something to read again
    expect(visitor.page.locator("#sign-in-error")).to_contain_text("not valid")
    expect(visitor.page.locator(".board")).to_be_hidden()


def test_the_page_comes_back_by_itself_after_the_server_does(browser: Browser, app: FastAPI, seeded: Seeded) -> None:
    context = browser.new_context()
    bind(app, seeded.context)
    with serving(app) as url:
        visitor = Visitor(context.new_page(), url)
        visitor.sign_in()
    page = visitor.page
    expect(page.locator("#connection-text")).to_have_text("reconnecting")
    expect(page.locator("#fleet tbody tr")).to_have_count(8)  # what is known stays on the page
    bind(app, seeded.context)
    with seeded.context.database.transaction() as session:
        add_device(session, "press-80")
    with serving(app, port=int(url.rsplit(":", 1)[1])):
        expect(page.locator("#connection-text")).to_have_text("live")
        expect(page.locator("#fleet tr[data-key=press-80]")).to_be_visible()  # changed meanwhile
    context.close()


def test_an_empty_control_plane_says_what_to_do(visitor: Visitor, seeded: Seeded) -> None:
    from skerry_server.store.tables import Base, Cohort

    with seeded.context.database.transaction() as session:
        for table in reversed(Base.metadata.sorted_tables):
            if table.name not in (ApiToken.__tablename__, Cohort.__tablename__):
                session.execute(table.delete())
    page = visitor.page
    page.goto(visitor.url)
    page.fill("#token", TOKENS["admin"])
    page.click("#sign-in button")
    expect(page.locator("#fleet .nothing")).to_contain_text("skerry-agent enroll")
    expect(page.locator("#rollout .nothing")).to_contain_text("skerry rollout start")
    expect(page.locator("#drift .nothing")).to_be_visible()
    expect(page.locator("#accuracy .nothing")).to_be_visible()


def test_landmarks_tables_and_live_regions_are_named(visitor: Visitor) -> None:
    visitor.sign_in()
    page = visitor.page
    unnamed = page.evaluate(
        "[...document.querySelectorAll('section')]"
        ".filter(s => !document.getElementById(s.getAttribute('aria-labelledby'))?.textContent.trim()).map(s => s.id)"
    )
    assert unnamed == []
    assert page.locator("th:not([scope])").count() == 0
    assert page.locator("[aria-live=polite]").count() == 1
    assert page.locator("main").count() == page.locator("h1").count() == 1
    buttons = page.locator("button:visible").all_inner_texts()
    assert all(text.strip() for text in buttons)
    inputs = page.evaluate("[...document.querySelectorAll('input')].filter(i => i.labels.length === 0).map(i => i.id)")
    assert inputs == []
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement !== document.body")


#: Contrast of every visible text with what is behind it, by WCAG 2.2; returns those below 4.5.
CONTRAST = """() => {
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const parse = (text) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = text; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data; return [r, g, b, a / 255];
  };
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = parse(getComputedStyle(at).backgroundColor);
      if (color[3] > 0.99) return color;
    }
    return [255, 255, 255, 1];
  };
  const poor = [];
  const walker = document.createTreeWalker(document.querySelector('main'), NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const box = element.getBoundingClientRect();
    if (!walker.currentNode.data.trim() || box.width < 2 || box.height < 2) continue;
    if (!element.checkVisibility() || element.closest('.hidden, thead.hidden')) continue;
    const style = getComputedStyle(element);
    const front = parse(element.namespaceURI.endsWith('svg') ? style.fill : style.color);
    const [a, b] = [light(front), light(behind(element))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    const where = element.className.baseVal ?? element.className;
    if (ratio < 4.5) poor.push(`${where} "${walker.currentNode.data.slice(0, 20)}" ${ratio.toFixed(2)}`);
  }
  return poor;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 820, 390])
def test_it_fits_and_can_be_read(browser: Browser, url: str, scheme: str, width: int) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
    visitor = Visitor(context.new_page(), url)
    visitor.sign_in()
    page = visitor.page
    expect(page.locator("#accuracy svg")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    poor = page.evaluate(CONTRAST)
    assert poor == [], "\n".join(poor)
    context.close()
    assert visitor.complaints == []


def test_a_second_task_can_be_chosen(visitor: Visitor, seeded: Seeded) -> None:
    from skerry_server.store.tables import Release

    with seeded.context.database.transaction() as session:
        session.add(
            Release(
                id="har-1",
                task="har",
                sequence=1,
                candidate_id="c",
                origin="central",
                bundle_sha256="",
                envelope=b"",
                created_ms=1,
            )
        )
    visitor.sign_in()
    page = visitor.page
    digits = page.locator("#drift button[data-task=digits]")
    expect(digits).to_have_attribute("aria-pressed", "true")
    page.click("#drift button[data-task=har]")
    expect(page.locator("#drift .nothing")).to_be_visible()
    expect(page.locator("#accuracy .nothing")).to_be_visible()
    digits.click()
    expect(page.locator("#drift tbody tr")).to_have_count(8)
