"""Which webhooks there are; what is wrong with a file is said with the table's number and without its secrets."""

from __future__ import annotations

from pathlib import Path

import pytest

from aggregator.model import Severity
from aggregator.outputs.endpoints import EndpointsUnusable, read_endpoints

SECRET = "https://hooks.example/T000/hush"


def write(directory: Path, text: str) -> Path:
    (directory / "key").write_text("routing-hush\n")
    (directory / "url").write_text(SECRET)
    (directory / "blank").write_text("\n")
    path = directory / "webhooks.toml"
    path.write_text(text.replace("DIR", str(directory)))
    return path


def test_one_variable_is_one_webhook_in_slack_s_form() -> None:
    (endpoint,) = read_endpoints(SECRET, None)
    assert (endpoint.name, endpoint.kind, endpoint.address()) == ("webhook", "slack", SECRET)
    assert "hush" not in repr(endpoint)


def test_a_file_names_several(tmp_path: Path) -> None:
    text = f"""
[[webhook]]
name = "oncall"
kind = "pagerduty"
key_file = "DIR/key"
severities = ["critical"]
per_minute = 30
[[webhook]]
name = "chat"
url_file = "DIR/url"
[[webhook]]
name = "records"
kind = "json"
url = "{SECRET}"
"""
    oncall, chat, records = read_endpoints("", write(tmp_path, text))
    assert (oncall.address(), oncall.key()) == ("https://events.pagerduty.com/v2/enqueue", "routing-hush")
    assert (oncall.severities, oncall.per_minute) == ({Severity.CRITICAL}, 30)
    assert chat.address() == records.address() == SECRET
    assert chat.severities == set(Severity)


def test_nothing_configured_is_nothing() -> None:
    assert read_endpoints("", None) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f'[[webhook]]\nname = "a"\nurl = "{SECRET}"\nurl_file = "DIR/url"', "webhook 1: url and url_file"),
        ('[[webhook]]\nname = "a"', "webhook 1: url or url_file is needed"),
        ('[[webhook]]\nname = "a"\nurl = "hush"', "webhook 1: its address is no URL"),
        ('[[webhook]]\nname = "a"\nurl = "ftp://hush"', "webhook 1: its address is no URL"),
        ('[[webhook]]\nname = "a"\nurl = "http://hush:99999/"', "webhook 1: its address is no URL"),
        ('[[webhook]]\nname = "a"\nurl_file = "DIR/none"', "webhook 1: url_file"),
        ('[[webhook]]\nname = "a"\nurl_file = "DIR/blank"', "is empty or too long"),
        ('[[webhook]]\nname = "a"\nkind = "pagerduty"', "key_file belongs to kind pagerduty"),
        (f'[[webhook]]\nname = "a"\nurl = "{SECRET}"\nkind = "teams"', "webhook 1: kind"),
        (f'[[webhook]]\nname = "a"\nurl = "{SECRET}"\nsecret = "hush"', "webhook 1: secret"),
        (f'[[webhook]]\nname = "a"\nurl = "{SECRET}"\nseverities = ["fatal"]', "webhook 1: severities"),
        (f'[[webhook]]\nname = "a"\nurl = "{SECRET}"\nper_minute = 0', "webhook 1: per_minute"),
        (f'[[webhook]]\nname = "A b"\nurl = "{SECRET}"', "webhook 1: name"),
        (f'[[webhook]]\nname = "annotations"\nurl = "{SECRET}"', "'annotations' is taken"),
        (f'[[webhook]]\nname = "a"\nurl = "{SECRET}"\n' * 2, "two webhooks are named 'a'"),
        (f'[[webhooks]]\nname = "a"\nurl = "{SECRET}"', "expected [[webhook]] tables"),
        ('webhook = "hush"', "expected [[webhook]] tables"),
        ('hush = "unterminated', "not TOML"),
    ],
)
def test_what_is_wrong_is_named_without_its_secrets(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(EndpointsUnusable) as raised:
        read_endpoints("", write(tmp_path, text))
    assert said in str(raised.value)
    assert "hush" not in str(raised.value).replace(str(tmp_path), "")


def test_too_many_are_refused(tmp_path: Path) -> None:
    tables = "".join(f'[[webhook]]\nname = "a{n}"\nurl = "{SECRET}"\n' for n in range(51))
    with pytest.raises(EndpointsUnusable, match="more than 50"):
        read_endpoints("", write(tmp_path, tables))
