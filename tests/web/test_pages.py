"""What a browser gets: the incidents, escaped, under our name alone."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import pytest

from aggregator.identity import Authenticator, LocalTrust, TokensFile
from aggregator.model import (
    Action,
    Assessment,
    FaultClass,
    Incident,
    IncidentState,
    Resolution,
    Severity,
    Signal,
    Subject,
    Verdict,
)
from aggregator.pipeline import read_record
from aggregator.server.http import HttpServer
from aggregator.store import Store
from aggregator.store.verdicts import Judgement, save_step
from aggregator.web import PAGE_SIZE, create_app

NOW = 1_800_000_000_000_000
HOSTILE = "<script>alert(1)</script>\" onload='x' \u202e &amp; \x1b[2J {{ 7*7 }}"


def judged(number: int, text: str = "GPU has fallen off the bus.", **fields: object) -> Judgement:
    fact = Signal(f"n1/kmsg/b/{number}", "xid", 79, node="n1", pci="0000:3a:00.0", at_us=NOW + number, raw=text)
    made = Incident(
        f"inc-{number}",
        Subject("gpu", "n1", "0000:3a:00.0"),
        ("n1",),
        (fact,),
        IncidentState.OPEN,
        NOW + number,
        NOW + number,
    )
    made = replace(made, **fields)  # type: ignore[arg-type]
    verdict = Verdict(
        Severity.CRITICAL, FaultClass.PCIE, Action.DRAIN, (Resolution.REBOOT,), f"Cause {number}: {text}", text, 0.9, (fact.id,),
        ("xid-79",), text, (text,), (text,), (text,), text,
    )  # fmt: skip
    return Judgement(made, Assessment(f"{made.id}/1", made.id, made.subject.node, 1, NOW, verdict), "opened")


Get = Callable[..., tuple[int, dict[str, str], str]]


def getter(port: int) -> Get:
    def get(path: str, host: str = "localhost", method: str = "GET", **headers: str) -> tuple[int, dict[str, str], str]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request(method, path, headers={"Host": host, **headers})
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read().decode()
        finally:
            connection.close()

    return get


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = Store(tmp_path / "sentinel.db", read_record)
    yield store
    await store.close()


async def serve(store: Store, authenticator: Authenticator) -> AsyncIterator[Get]:
    server = HttpServer(create_app(store, authenticator, ["Sentinel.example"]), "127.0.0.1", 0)
    serving = asyncio.create_task(server.serve())
    yield getter(server.port)
    server.stop()
    await serving


@pytest.fixture
async def get(store: Store) -> AsyncIterator[Get]:
    async for get in serve(store, LocalTrust()):
        yield get


@pytest.fixture
async def get_with_token(store: Store, tmp_path: Path) -> AsyncIterator[Get]:
    tokens = tmp_path / "tokens.json"
    entries = [{"token": "reading" * 5, "reader": "alice"}, {"token": "writing" * 5, "node": "n1"}]
    tokens.write_text(json.dumps({"tokens": entries}))
    async for get in serve(store, TokensFile(tokens)):
        yield get


async def save(store: Store, *judgements: Judgement) -> None:
    await store.write(partial(save_step, cursor=1, judgements=judgements, now_us=NOW))


class Tags(HTMLParser):
    """The tags and attributes that a browser would see."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


async def test_an_incident_is_listed_and_shown_with_its_evidence(store: Store, get: Get) -> None:
    await save(store, judged(1))
    status, _, text = await asyncio.to_thread(get, "/")
    assert status == 200
    assert 'href="/incidents/inc-1"' in text
    assert "Cause 1" in text
    status, _, text = await asyncio.to_thread(get, "/incidents/inc-1")
    assert status == 200
    assert all(part in text for part in ("critical", "GPU has fallen off the bus.", "n1/kmsg/b/1", "xid-79", "cited"))


async def test_an_empty_list_claims_no_health(get: Get) -> None:
    _, _, text = await asyncio.to_thread(get, "/")
    assert "not that every node is observed" in text


async def test_what_others_wrote_is_text_and_never_markup(store: Store, get: Get) -> None:
    hostile = judged(1, HOSTILE, subject=Subject("gpu", HOSTILE, HOSTILE), held_until_us=NOW, held_because=HOSTILE)
    await save(store, hostile)
    for path in ("/", "/incidents/inc-1", "/?node=%22%3E%3Cscript%3E"):
        _, _, text = await asyncio.to_thread(get, path)
        seen = Tags(text)
        assert "script" not in seen.tags
        assert not {name for name in seen.attributes if name.startswith("on") or name == "style"}
        assert "\x1b" not in text
        assert "\u202e" not in text
        assert "49" not in text.partition("alert")[2][:80]


@pytest.mark.parametrize("path", ["/", "/style.css", "/incidents/none", "/nowhere"])
async def test_every_answer_is_guarded(get: Get, path: str) -> None:
    _, headers, text = await asyncio.to_thread(get, path)
    assert headers["content-security-policy"].startswith("default-src 'none'; style-src 'self';")
    assert headers["x-content-type-options"] == "nosniff"
    assert "<script" not in text


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8080", 200), ("127.0.0.1:8080", 200), ("[::1]:8080", 200), ("[::1]", 200), ("10.1.2.3", 200),
        ("sentinel.example", 200), ("SENTINEL.example.:8080", 200), ("evil.example", 421), ("localhost.evil.example", 421),
        ("127.0.0.1.evil.example:8080", 421), ("", 421), ("[evil]", 421),
    ],
)  # fmt: skip
async def test_only_our_own_names_are_served(get: Get, host: str, status: int) -> None:
    assert (await asyncio.to_thread(get, "/", host))[0] == status


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/incidents/none", 404, "no incident with this id"),
        ("/?before=x", 400, "damaged"),
        ("/?before=99999999999999999999999999,inc-1", 400, "damaged"),
        ("/incidents/../../etc/passwd", 404, "Not found"),
    ],
)
async def test_a_bad_address_gets_a_plain_answer(get: Get, path: str, status: int, words: str) -> None:
    found, _, text = await asyncio.to_thread(get, path)
    assert (found, words in text) == (status, True)


async def test_the_pages_change_nothing(store: Store, get: Get) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert (await asyncio.to_thread(get, "/", method=method))[0] == 405


async def test_filters_and_older_pages_lead_through_everything(store: Store, get: Get) -> None:
    over = {"state": IncidentState.RESOLVED, "resolved_us": NOW, "resolved_because": "recovered"}
    await save(store, *(judged(number, **(over if number % 2 else {})) for number in range(PAGE_SIZE + 5)))
    _, _, newest = await asyncio.to_thread(get, "/")
    link = newest.partition('<a href="/?before=')[2].partition('"')[0]
    _, _, older = await asyncio.to_thread(get, f"/?before={link}")
    shown = [number for number in range(PAGE_SIZE + 5) if f'/incidents/inc-{number}"' in newest + older]
    assert len(shown) == PAGE_SIZE + 5
    _, _, still_open = await asyncio.to_thread(get, "/?open=1&node=n1")
    assert '/incidents/inc-1"' not in still_open
    assert '/incidents/inc-2"' in still_open
    _, _, elsewhere = await asyncio.to_thread(get, "/?node=n2")
    assert "/incidents/" not in elsewhere


@pytest.mark.parametrize(("token", "status"), [(None, 401), ("reading" * 5, 200), ("writing" * 5, 403), ("guess", 401)])
async def test_where_readers_have_tokens_the_pages_ask_for_one(
    get_with_token: Get, token: str | None, status: int
) -> None:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    for path in ("/", "/incidents/inc-1"):
        found, _, _ = await asyncio.to_thread(get_with_token, path, **headers)
        assert found == (404 if status == 200 and path != "/" else status)
