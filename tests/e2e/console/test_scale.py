"""Much of everything: a log of a million lines, ten thousand jobs, a hundred thousand annotations."""

from __future__ import annotations

import io
import json
import re
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from playwright.sync_api import Page, expect

from mhs_ray.attempt.logbook import log_prefix
from mhs_ray.auth.clients import hash_secret
from mhs_ray.domain.models import Job, Role
from mhs_ray.domain.states import JobEvent
from mhs_ray.store.sql import tables as t
from mhs_ray.store.sql.results import NewResult, Poster
from tests.e2e.console.conftest import SECRET, Site, sign_in

LINES = 1_000_000
PER_PIECE = 20_000
CELLS = 100_000


@pytest.fixture(scope="module")
def long_job(site: Site) -> Job:
    """A job that ended with a log of a million lines."""
    job = site.run()
    for first in range(0, LINES, PER_PIECE):
        text = "".join(f"2026-01-01T00:00:00.000000Z o step {n} done\n" for n in range(first, first + PER_PIECE))
        site.core.blobs.put(f"{log_prefix(job.id, 1)}{first:012d}", text.encode())
    return site.fail(job)


def _drawn(page: Page) -> int:
    count: int = page.locator("mhs-log .log-line").count()
    return count


def test_any_part_of_a_log_of_a_million_lines_is_reached_and_only_what_is_in_view_is_in_the_page(
    site: Site, page: Page, long_job: Job
) -> None:
    page.goto(f"/console/jobs/{long_job.id}")
    view = page.locator("mhs-log .log-view")
    expect(page.locator("[data-log-status]")).to_have_text("1\u202f000\u202f000 lines")
    expect(view).to_contain_text("step 0 done")
    view.evaluate("element => { element.scrollTop = element.scrollHeight; }")
    expect(view).to_contain_text("step 999999 done")
    view.evaluate("element => { element.scrollTop = element.scrollHeight / 2; }")
    middle = view.locator(".log-line .n").first
    expect(middle).to_have_text(re.compile("^(49|50)[0-9]{4}$"))
    expect(view).to_contain_text(f"step {middle.text_content()} done")
    assert _drawn(page) < 100
    page.get_by_role("button", name="Wrap").click()
    expect(page.get_by_role("button", name="Wrap")).to_have_attribute("aria-pressed", "true")
    view.evaluate("element => { element.scrollTop = element.scrollHeight; }")
    expect(view).to_contain_text("step 999999 done")


def test_a_link_to_a_line_of_a_long_log_leads_there_and_the_whole_is_searched(
    site: Site, page: Page, long_job: Job
) -> None:
    page.goto(f"/console/jobs/{long_job.id}#L777778")
    expect(page.locator("mhs-log .log-line.here")).to_contain_text("step 777777 done")
    box = page.get_by_label("Search in the log")
    box.fill("STEP 98765")
    box.press("Enter")
    expect(page.locator("[data-log-hits]")).to_have_text("1 of 11")
    expect(page.locator("mhs-log .log-line.here mark")).to_have_text("step 98765")
    page.get_by_role("button", name="Previous hit").click()
    expect(page.locator("mhs-log .log-line.here")).to_contain_text("step 987659 done")
    with page.expect_download() as told:
        page.get_by_role("link", name="Download", exact=True).click()
    with told.value.path().open("rb") as file:
        assert sum(data.count(b"\n") for data in iter(lambda: file.read(1 << 20), b"")) == LINES


def _many(site: Site, name: str, count: int) -> str:
    """Make a company with `count` jobs and a client; return the client's id."""
    company = site.world.company(name)
    algorithm = site.world.algorithm(company)
    job_id = site.world.queued(company, algorithm)
    with site.core.db.write() as conn:
        row = conn.execute(sa.select(t.jobs).where(t.jobs.c.id == job_id)).one()._mapping
        copy = {key: value for key, value in row.items() if key != "id"}
        states = ("succeeded", "failed", "cancelled", "queued")
        conn.execute(sa.insert(t.jobs), [{**copy, "run": n, "state": states[n % 4]} for n in range(1, count)])
    client_id = f"mhs-{name}"
    site.core.clients.add(client_id, company, name, Role.LAB_ADMIN, hash_secret(SECRET))
    return client_id


@contextmanager
def _statements(site: Site) -> Iterator[list[str]]:
    seen: list[str] = []

    def note(_conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
        seen.append(statement)

    sa.event.listen(site.core.db.engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        sa.event.remove(site.core.db.engine, "before_cursor_execute", note)


def test_ten_thousand_jobs_are_listed_like_a_hundred(site: Site, stranger: Page) -> None:
    took: dict[int, list[float]] = {}
    asked: dict[int, int] = {}
    for count in (100, 10_000):
        stranger.context.clear_cookies()
        stranger.goto("/console/jobs")
        sign_in(stranger, site, _many(site, f"jobs-{count}", count))
        for _ in range(7):
            with _statements(site) as seen:
                stranger.goto("/console/jobs")
                expect(stranger.locator("tbody tr[id^=job-]")).to_have_count(50)
            asked[count] = len([s for s in seen if s.startswith("SELECT")])
            paint = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? performance.now()"
            took.setdefault(count, []).append(stranger.evaluate(paint))
    medians = {count: statistics.median(times) for count, times in took.items()}
    told = {"first_content_ms": medians, "ratio": medians[10_000] / medians[100]}
    print(json.dumps({"console_jobs_list": told}))
    assert asked[10_000] == asked[100], "the page asks the database for the same, however many jobs there are"
    stranger.get_by_role("link", name="Show older").click()
    expect(stranger.locator("tbody tr[id^=job-]")).to_have_count(100)


def test_a_hundred_thousand_annotations_of_every_kind_are_drawn_over_the_slide(site: Site, page: Page) -> None:
    job = site.run()
    columns = 400
    features: list[dict[str, Any]] = []
    for n in range(CELLS):
        x, y = 6 * (n % columns) + 40, 6 * (n // columns) + 40
        if n % 10 == 0:
            geometry: dict[str, Any] = {"type": "Point", "coordinates": [x, y]}
        else:
            geometry = {"type": "Polygon", "coordinates": [[[x, y], [x + 4, y], [x + 4, y + 4], [x, y + 4], [x, y]]]}
        kind = "seed" if n % 10 == 0 else "nucleus"
        features.append({"type": "Feature", "geometry": geometry, "properties": {"annotation_type": kind}})
    contours = [
        {"type": "Polygon", "coordinates": [[[x, 1650], [x + 400, 1650], [x + 400, 1850], [x, 1850], [x, 1650]]]}
        for x in (1800, 1200, 600)
    ]
    features.append(
        {
            "type": "Feature",
            "geometry": {"type": "GeometryCollection", "geometries": contours},
            "properties": {"annotation_type": "heat", "contour_colors": ["#00ff00", "#ffff00", "#ff00ff"]},
        }
    )
    key = f"results/{job.company_id}/{job.task_number}/{job.scan_number}/many.geojson"
    site.core.blobs.put(key, io.BytesIO(json.dumps({"type": "FeatureCollection", "features": features}).encode()))
    new = NewResult(job.scan_number, "many", None, None, None, None, {"annotations": {"nucleus": 90_000}}, key, CELLS)
    site.world.results.store(Poster(job.company_id, job.task_number, job.id, 1), None, [new])
    for event in (JobEvent.EXITED, JobEvent.SUCCEEDED):
        site.world.jobs.transition(job.id, event, attempt=1)

    page.goto(f"/console/jobs/{job.id}")
    page.locator("mhs-viewer[data-ready=annotations]").wait_for()
    layers = page.locator("mhs-viewer .layers")
    expect(layers).to_contain_text("100\u202f003 annotations")
    for name in ("nucleus", "seed", "heat, contour 1", "heat, contour 3"):
        expect(layers.get_by_text(name, exact=True)).to_be_visible()
    costs = page.evaluate(
        """async () => {
            const viewer = document.querySelector('mhs-viewer'), port = viewer.osd.viewport, costs = [];
            viewer.stage.addEventListener('overlay-drawn', (e) => costs.push(e.detail.cost));
            const begun = performance.now();
            let frames = 0;
            for (const [x, y] of [[0.1, 0], [0, 0.1], [-0.1, 0], [0, -0.1]]) {
                port.panBy(new OpenSeadragon.Point(x, y));
                for (let i = 0; i < 15; i++) { await new Promise(requestAnimationFrame); frames += 1; }
            }
            const fps = 1000 * frames / (performance.now() - begun);
            viewer.overlay.draw();
            return { frames_per_s: fps, ms_of_a_full_draw: costs.at(-1) };
        }"""
    )
    print(json.dumps({"console_overlay_100000": costs}))
    page.evaluate("document.querySelector('mhs-viewer').osd.viewport.goHome(true)")
    colour = """([x, y]) => {
        const viewer = document.querySelector('mhs-viewer'), canvas = viewer.querySelector('canvas.overlay');
        viewer.overlay.draw();
        const at = viewer.osd.viewport.imageToViewerElementCoordinates(new OpenSeadragon.Point(x, y));
        const ratio = canvas.width / canvas.clientWidth;
        return [...canvas.getContext('2d').getImageData(Math.round(at.x * ratio), Math.round(at.y * ratio), 1, 1).data];
    }"""
    assert page.evaluate(colour, [1204, 700])[3] > 0, "nuclei cover the middle"
    assert page.evaluate(colour, [2550, 1000])[3] == 0, "nothing lies at the right edge"
    red, green, blue, alpha = page.evaluate(colour, [2050, 1800])
    assert alpha > 0
    assert green > 200 > max(red, blue), "the first contour is green"
    layers.get_by_label("nucleus").uncheck()
    layers.get_by_label("seed").uncheck()
    assert page.evaluate(colour, [1204, 700])[3] == 0
