from __future__ import annotations

import asyncio
import re

import httpx
import pytest

from tunerun.config.schema import ServeConfig
from tunerun.plan.placement import Placement
from tunerun.serve import page
from tunerun.serve.fleet import build_fleet
from tunerun.serve.gateway import build_app
from tunerun.serve.targets import resolve_target

HOSTS = frozenset(("localhost",))
# The name of SVG's elements, which nothing is fetched from.
NAMESPACE = "http://www.w3.org/2000/svg"
# What would make text into HTML or code, or load something by a tag or a style.
FORBIDDEN = (
    "innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "DOMParser", "eval(", "new Function", "srcdoc",
    " style=", "javascript:", "@import", "localStorage", "document.cookie",
)  # fmt: skip


@pytest.fixture(scope="module")
def replies(run_dir) -> dict[str, httpx.Response]:
    """What a gateway that asks for a key answers to somebody without one."""
    fleet = build_fleet([resolve_target(run_dir)], ServeConfig(), Placement())
    transport = httpx.ASGITransport(build_app(fleet, ServeConfig(), key="secret", hosts=HOSTS))

    async def get() -> dict[str, httpx.Response]:
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            foreign = await client.get("/", headers={"host": "evil.example"})
            paths = (*page.FILES, "/page", "/page/", "/page/../guard.py", "/page/%2e%2e/page.py", "/v1/models")
            return {"foreign": foreign, **{path: await client.get(path) for path in paths}}

    return asyncio.run(get())


def test_the_page_is_read_without_a_key_and_the_api_is_not(replies):
    assert replies["/"].status_code == 200
    assert replies["/"].headers["content-type"] == "text/html; charset=utf-8"
    assert replies["/v1/models"].status_code == 401
    for path, file in page.FILES.items():
        assert (replies[path].status_code, replies[path].content) == (200, file.read_bytes()), path


def test_only_the_pages_files_are_readable(replies):
    assert {replies[path].status_code for path in ("/page", "/page/", "/page/../guard.py")} <= {401, 404}
    assert replies["/page/%2e%2e/page.py"].status_code in (401, 404)


def test_the_host_is_checked_for_the_page_too(replies):
    assert replies["foreign"].status_code == 403


def test_a_browser_is_told_to_load_from_this_server_only(replies):
    for path in page.FILES:
        policy = dict(
            part.strip().split(" ", 1) for part in replies[path].headers["content-security-policy"].split(";")
        )
        assert policy["default-src"] == "'none'"
        assert {policy[name] for name in ("script-src", "style-src", "img-src", "connect-src")} == {"'self'"}
        assert policy["require-trusted-types-for"] == "'script'"
        assert replies[path].headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", page.FILES)
def test_no_file_names_another_server_or_makes_html_of_text(path):
    text = page.FILES[path].read_text(encoding="utf-8").replace(NAMESPACE, "")
    assert re.findall(r"(?:https?:|wss?:|[\"'(=])//\w[^\s\"']*", text) == []
    assert [word for word in FORBIDDEN if word in text] == []


def test_every_file_that_the_page_names_is_there():
    text = page.FILES["/"].read_text(encoding="utf-8")
    named = set(re.findall(r'(?:src|href)="([^"]+)"', text))
    modules = {
        f"page/{name}"
        for file in page.FILES.values()
        for name in re.findall(r'from "\./([^"]+)"', file.read_text(encoding="utf-8"))
    }
    assert {f"/{name}" for name in named | modules} == set(page.FILES) - {"/"}
