"""What a URL of Redis may say, and that nothing of a password is shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from aioflow import ConfigError
from aioflow.engine.connect import check_url, shown


@pytest.mark.parametrize(
    "url",
    [
        *("redis://", "redis://host", "redis://host/", "redis://host/3", "redis://host?db=3", "redis://[::1]:6379/1"),
        *("redis://user@host", "redis://:pass%40word%2F@host:1/0", "unix:///a%20b/s", "unix:///a@b/s?db=1"),
        *("unix://:pass@/s", "rediss://host/1?ssl_cert_reqs=none", "rediss://host?ssl_check_hostname=False"),
        f"rediss://host?ssl_ca_certs={__file__}&ssl_certfile={__file__}&ssl_keyfile={__file__}",
    ],
)
def test_a_url_that_says_where_the_server_is_is_taken(url: str) -> None:
    check_url(url)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://host?foo=bar", "foo cannot be set; a redis:// URL takes db, and user:password@ before the host"),
        ("rediss://host?socket_timeout=1", "takes db, ssl_ca_certs, ssl_certfile, ssl_keyfile, ssl_cert_reqs, ssl_ch"),
        ("redis://host?ssl_cert_reqs=none", "ssl_cert_reqs cannot be set"),
        ("rediss://host?ssl_cert_reqs=maybe", "ssl_cert_reqs='maybe': use none|optional|required"),
        ("rediss://host?ssl_check_hostname=1", "use true|false"),
        ("rediss://host?ssl_ca_certs=/nowhere", "ssl_ca_certs='/nowhere': use a file"),
        (f"rediss://host?ssl_keyfile={__file__}", "ssl_keyfile needs ssl_certfile"),
        ("redis://host/abc", "the database 'abc' is no number"),
        ("redis://host/1/2", "the database '1/2' is no number"),
        ("redis://host?db", "db='': use a number"),
        ("redis://host?db=1&db=1", "twice"),
        ("redis://host/1?db=1", "twice"),
        ("redis://host:0", "port 0"),
        ("redis://host:port", "cannot be read"),
        ("redis://host/1#x", "#"),
        ("unix://relative/socket", "absolute path"),
        ("unix:socket", "absolute path"),
        ("unix://", "absolute path"),
        ("localhost:6379", "use redis://"),
        ("", "use redis://"),
    ],
)
def test_a_url_that_says_anything_else_is_refused(url: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_url(url)
    assert said in str(caught.value)


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"b, c cannot be set; .*; db='x': use a number; .*twice"):
        check_url("redis://host/1?c=1&b=2&db=x")


@pytest.mark.parametrize(
    "url",
    [
        *(
            "redis://:12secret@[::1",
            "redis://:12sec\u2100ret@host",
            "redis://:12#secret@host",
            "redis://:12/secret@host",
        ),
        *("redis://:12?secret@host", "redis://:12?secret=secret@host", "redis://user:12@secret@host:0"),
        *("http://user:sec@ret@host", ":secret@host", "redis:secret@host", "redis://host?password=secret"),
        "redis://host?username=a&password=secret",
    ],
)
def test_no_refusal_shows_a_password(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_url(url)
    assert "ret" not in str(caught.value).replace("secret=", "")


@pytest.mark.parametrize(
    ("url", "safe"),
    [
        ("redis://user:pass@host:1/2?db=3", "redis://user:***@host:1/2?db=3"),
        ("redis://:pa@ss@host", "redis://:***@host"),
        ("redis://:pa/s#s?@host", "redis://:***@host"),
        ("redis://user@host", "redis://user@host"),
        ("redis://[::1]:6379", "redis://[::1]:6379"),
        ("unix:///a@b", "unix:///a@b"),
        ("unix://:pass@/a", "unix://:***@/a"),
        ("memory:", "memory:"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, safe: str) -> None:
    assert shown(url) == safe
