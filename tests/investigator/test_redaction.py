"""Secrets go, whatever they stand in and however they are asked for; what hardware is called stays."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.investigator.framing import Gate
from aggregator.investigator.items import Item
from aggregator.investigator.redaction import Redactor
from aggregator.investigator.results import Results, admitted
from aggregator.model import Trust
from tests.investigator.conftest import LINE

KEY_BODY = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N"

SECRETS = [
    ("password=hunter2", "hunter2"),
    ("PGPASSWORD='correct horse battery'", "correct horse battery"),
    ('{"db_password": "hun ter2", "x": 1}', "hun ter2"),
    (r'{"log": "{\"password\":\"hunter2\"}"}', "hunter2"),
    ("spec:\n  token: |\n    hunter2hunter2\n", "hunter2hunter2"),
    ("mysql --password hunter2 -h db", "hunter2"),
    ("curl -u admin:hunter2 http://db", "hunter2"),
    ("postgres://app:hun/ter2@db:5432/x", "hun/ter2"),
    ("https://ghp-like-token@git.example/x", "ghp-like-token"),
    ("redis://:p@ssw0rd@cache", "p@ssw0rd"),
    ("Authorization: Bearer abc.def-123", "abc.def-123"),
    ("authorization: Basic dXNlcjpwYXNz", "dXNlcjpwYXNz"),
    ("Authorization: AWS4-HMAC-SHA256 Credential=AK/x, Signature=fe5f80", "fe5f80"),
    ("X-Api-Key: 5up3rs3cr3t", "5up3rs3cr3t"),
    ("Cookie: session=abc123; other=def456", "def456"),
    ("GET /x?access_token=abc123&y=2", "abc123"),
    ("AWS_SECRET_ACCESS_KEY=/JalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "JalrXUtnFEMI"),
    ("using AKIAIOSFODNN7EXAMPLE now", "AKIAIOSFODNN7EXAMPLE"),
    (f"jwt {JWT}", JWT),
    ("ghp_16C7e42F292c6912E7710c838347Ae178B4a", "ghp_16C7e42F292c6912E7710c838347Ae178B4a"),
    ("glpat-AbCdEfGhIjKlMnOpQrSt", "AbCdEfGhIjKl"),
    ("xoxb-123456789012-abcdefGHIJKL", "abcdefGHIJKL"),
    ("https://hooks.slack.com/services/T0/B0/XXXXXXXX", "XXXXXXXX"),
    ("sk-ant-api03-abcdefghijklmnop_1234", "abcdefghijklmnop"),
    ("hf_abcdefghijklmnopQRST", "abcdefghijklmnop"),
    ("nvapi-abcdefghijklmnop1234", "abcdefghijklmnop"),
    ("AIzaSyA1234567890abcdefghijklmnopqrstuv", "AIzaSyA1234567890"),
    (f"-----BEGIN RSA PRIVATE KEY-----\n{KEY_BODY}\nabcd==\n-----END RSA PRIVATE KEY-----", KEY_BODY),
    (f"-----BEGIN PRIVATE KEY-----\n{KEY_BODY}\ncut off here", KEY_BODY),
    (f"tail begins within\n{KEY_BODY}\nQ0FURQ9zaG9ydGxpbmU=\n-----END PRIVATE KEY-----", "Q0FURQ9zaG9ydGxpbmU"),
    (f"2027-01-15T08:00:00Z stdout F {KEY_BODY}\n2027-01-15T08:00:01Z stdout F x", KEY_BODY),
    ("\x1b[33mpassword\x1b[0m=\x1b[36mhunter2\x1b[0m", "hunter2"),
    (base64.b64encode(b"export DB_PASSWORD=hunter2 # prod").decode(), "RCX1BBU1"),
]

KEPT = [
    LINE,
    "GPU-8f6e1c8e-1d1f-4f7c-9a5e-0b6a2d3c4e5f MIG-41b36db1-5b34-5c8b-b1f0-9c2c8b1a7d3e",
    "0000:3a:00.0 00000000:3A:00.0 3a:00.0 fffff000",
    "NVRM: Xid (PCI:0000:3a:00): 62, 0ab5(3bb0) 00000000 00000000 00000000deadbeef",
    "SXid (PCI:0000:05:00.0): 20034, Fatal, Link 30 LTSSM Fault Up; Data {0x80000000, 0x0, 0x0}",
    "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "pod uid 123e4567-e89b-12d3-a456-426614174000 boot 7d1f0cf6f3b84b1d8cf4f0f6f7d5a3aa",
    "max_tokens=4096 tokens: 12 token_count=3 secretName: tls-cert",
    "token: 0x1f, cookie=0xdeadbeef, signature: 0x00000001",
    "bearer certificate expired; basic diagnostics passed; Basic Health 12",
    "image nvcr.io/nvidia/pytorch@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    'DCGM_FI_DEV_XID_ERRORS{gpu="0",UUID="GPU-8f6e1c8e-1d1f-4f7c-9a5e-0b6a2d3c4e5f"} 79',
]


@pytest.mark.parametrize(("text", "secret"), SECRETS, ids=lambda value: value[:30])
def test_a_secret_goes(text: str, secret: str) -> None:
    """By its shape, or by the name before it; also inside JSON, as one of its strings."""
    gate = Gate()
    assert secret not in gate.admit(text)
    assert "[redacted:" in gate.admit(text)
    for value in ({"log": text}, [text], {"a": {"b": [f"before\n{text}\nafter"]}}):
        assert secret not in admitted(gate, value)[0]
    assert secret not in gate.admit(json.dumps({"log": f"before\n{text}"}, ensure_ascii=False))


@pytest.mark.parametrize("text", KEPT, ids=lambda text: text[:30])
def test_what_is_no_secret_stays(text: str) -> None:
    """Names of devices, registers, digests and English."""
    assert Redactor().text(text) == text


@pytest.mark.parametrize("name", ["password", "DB_TOKEN", "clientSecret", "api-key", "aws_secret_access_key"])
def test_a_value_whose_name_says_so_goes_whole(name: str) -> None:
    """Whatever it looks like; also in the shape that environments have."""
    text, _ = admitted(Gate(), {name: "plain words", "env": [{"name": name, "value": "plain words"}]})
    assert "plain words" not in text


def test_our_own_secrets_go_wherever_they_turn_up() -> None:
    """Also written in base64."""
    secret = "nothing-that-a-pattern-know"
    text = f"x{secret}y {base64.b64encode(secret.encode()).decode()}"
    assert Redactor([secret]).text(text) == "x[redacted:own-secret]y [redacted:own-secret]"


@given(st.text(max_size=300))
def test_redacting_twice_changes_nothing_more(text: str) -> None:
    """Else text that passes twice, as a page of a result does, would not be the text that was shown."""
    gate = Gate()
    once = gate.admit(text)
    assert gate.admit(once) == once


@given(
    st.sampled_from([pair for pair in SECRETS if "\n" not in pair[0]]),
    st.text(alphabet=st.characters(codec="ascii", exclude_characters="-"), max_size=60),
    st.text(alphabet=st.characters(codec="ascii"), max_size=60),
)
def test_no_surroundings_save_a_secret(pair: tuple[str, str], before: str, after: str) -> None:
    """A secret on a line of its own goes, whatever stands around that line."""
    text, secret = pair
    if secret not in before + after:
        assert secret not in Gate().admit(f"{before}\n{text}\n{after}")


def _kept(text: str) -> Results:
    results = Results(2_000)
    whole, total = admitted(Gate(), text)
    results.keep(Item("t1", "log", whole, Trust.TENANT), total)
    return results


def test_no_page_shows_what_the_whole_hides() -> None:
    """Every page of every size: the redacted text is what is cut."""
    secret = "hunter2-and-more"
    results = _kept("\n".join([f"line {number}" for number in range(40)] + [f"password={secret}"] * 3 + ["end"] * 40))
    pages = {results.page("t1", "", f"{first}-{last}")[1] for first in range(1, 84) for last in range(first, 84, 7)}
    assert not any("hunter2" in page for page in pages)


@pytest.mark.parametrize("secret", ["hunter2", "sk-ant-api03-abcdefghijklmnop_1234"])
def test_a_filter_is_no_oracle(secret: str) -> None:
    """Binary search by expression: no expression about the secret's characters tells right guesses from wrong ones."""
    results = _kept(f"start\napi_key={secret}\nend")
    right = [results.page("t1", f"api_key=.{{0,3}}{secret[:n]}", "")[1] for n in range(1, len(secret))]
    wrong = [results.page("t1", f"api_key=.{{0,3}}{secret[: n - 1]}~", "")[1] for n in range(1, len(secret))]
    assert right == wrong
    assert (
        results.page("t1", "api_key=", "")[1].endswith("api_key=[redacted:secret]")
        or "redacted" in results.page("t1", "api_key=", "")[1]
    )
