"""Where deliveries may go: tables of addresses, of URLs and of allow-lists, each with the rule that refuses it."""

from __future__ import annotations

import contextlib
import pickle
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AfterValidator, BaseModel, ValidationError

from aioflow import delivery
from aioflow.delivery.addresses import METADATA, plain_address, refusing_rule
from aioflow.delivery.urls import PORTS, Rules, Target, parse_allowed

ADDRESSES = {
    # public
    "8.8.8.8": None,
    "1.1.1.1": None,
    "93.184.216.34": None,
    "100.63.255.255": None,
    "100.128.0.0": None,
    "172.15.255.255": None,
    "172.32.0.0": None,
    "192.167.255.255": None,
    "223.255.255.255": None,
    "2606:4700:4700::1111": None,
    "2a00:1450:4001:831::200e": None,
    # IPv4
    "0.0.0.0": "unspecified",
    "0.1.2.3": "unspecified",
    "10.0.0.1": "private",
    "10.255.255.255": "private",
    "100.64.0.0": "shared",
    "100.127.255.255": "shared",
    "127.0.0.1": "loopback",
    "127.255.255.254": "loopback",
    "169.254.0.1": "link-local",
    "172.16.0.1": "private",
    "172.31.255.255": "private",
    "192.0.0.8": "reserved",
    "192.0.2.1": "documentation",
    "192.88.99.1": "tunnel",
    "192.168.0.1": "private",
    "198.18.0.1": "benchmarking",
    "198.19.255.255": "benchmarking",
    "198.51.100.7": "documentation",
    "203.0.113.7": "documentation",
    "224.0.0.1": "multicast",
    "239.255.255.255": "multicast",
    "240.0.0.1": "reserved",
    "255.255.255.255": "broadcast",
    # IPv6
    "::": "unspecified",
    "::1": "loopback",
    "::2": "reserved",
    "::7f00:1": "reserved",  # IPv4-compatible
    "::ffff:127.0.0.1": "loopback",
    "::ffff:10.1.2.3": "private",
    "::ffff:169.254.169.254": "metadata",
    "::ffff:8.8.8.8": None,
    "::ffff:0:127.0.0.1": "reserved",  # IPv4-translated
    "64:ff9b::127.0.0.1": "loopback",
    "64:ff9b::10.0.0.1": "private",
    "64:ff9b::169.254.169.254": "metadata",
    "64:ff9b::8.8.8.8": None,
    "64:ff9b:1::8.8.8.8": "translated",
    "100::1": "discard",
    "2001::1": "tunnel",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2": "tunnel",  # Teredo
    "2001:2::1": "reserved",
    "2001:10::1": "reserved",
    "2001:20::1": "reserved",
    "2001:db8::1": "documentation",
    "2002:7f00:1::": "tunnel",  # 6to4 of 127.0.0.1
    "2002:808:808::": "tunnel",
    "3fff::1": "documentation",
    "4000::1": "reserved",
    "5f00::1": "reserved",
    "fc00::1": "private",
    "fd12:3456::1": "private",
    "fe80::1": "link-local",
    "fe80::1%eth0": "link-local",
    "fec0::1": "site-local",
    "ff02::1": "multicast",
    **dict.fromkeys(METADATA, "metadata"),
}


@pytest.mark.parametrize(("text", "rule"), ADDRESSES.items())
def test_an_address_is_public_or_a_rule_says_why_it_is_not(text: str, rule: str | None) -> None:
    assert refusing_rule(plain_address(text)) == rule


REFUSED = {
    # spelled as no four decimal numbers, and yet an address to the one or the other system
    "https://2130706433/": "spelling",
    "https://0x7f000001/": "spelling",
    "https://017700000001/": "spelling",
    "https://127.1/": "spelling",
    "https://127.0.1/": "spelling",
    "https://0177.0.0.1/": "spelling",
    "https://0x7f.0.0.1/": "spelling",
    "https://127.0.0.0x1/": "spelling",
    "https://127.0.0.01/": "spelling",
    "https://00.0.0.0/": "spelling",
    "https://1.2.3.4.5/": "spelling",
    "https://foo.1/": "spelling",
    "https://0x/": "spelling",
    "https://256.0.0.1/": "host",
    "https://127.0.0.1./": "spelling",
    "https://127.0.0.1/": "loopback",
    "https://\uff11\uff12\uff17.0.0.1/": "loopback",  # full-width digits
    "https://\u2460\u2461\u2466.0.0.1/": "loopback",  # circled
    "https://127\u30020\u30020\u30021/": "loopback",  # ideographic full stops
    "https://10.0.0.1:8443/x": "private",
    "https://169.254.169.254/latest/meta-data/": "metadata",
    "https://[::1]/": "loopback",
    "https://[::ffff:127.0.0.1]/": "loopback",
    "https://[::ffff:7f00:1]/": "loopback",
    "https://[0:0:0:0:0:ffff:a00:1]/": "private",
    "https://[64:ff9b::a00:1]/": "private",
    "https://[2002:7f00:1::]/": "tunnel",
    "https://[fe80::1%25eth0]/": "host",
    "https://localhost/": "loopback",
    "https://LOCALHOST./": "loopback",
    "https://a.localhost/": "loopback",
    # the rest of the URL
    "http://example.com/": "scheme",
    "ftp://example.com/": "scheme",
    "file:///etc/passwd": "scheme",
    "gopher://example.com/": "scheme",
    "unix:///run/docker.sock": "scheme",
    "javascript:alert(1)": "scheme",
    "//example.com/": "scheme",
    "example.com/": "scheme",
    "": "scheme",
    "https://user@example.com/": "userinfo",
    "https://user:pass@example.com/": "userinfo",
    "https://:pass@example.com/": "userinfo",
    "https://@example.com/": "userinfo",
    "https://example.com@127.0.0.1/": "userinfo",
    "https://example.com:22/": "port",
    "https://example.com:6379/": "port",
    "https://8.8.8.8:25/": "port",
    "https://example.com:0/": "host",
    "https://example.com:99999/": "syntax",
    "https://example.com:x/": "syntax",
    "https:///path": "host",
    "https://": "host",
    "https://[::1/": "syntax",
    "https://[]@/": "syntax",
    "https://exa mple.com/": "syntax",
    "https://example.com/a b": "syntax",
    "https://example.com/\r\nX: y": "syntax",
    "https://example.com\\@127.0.0.1/": "syntax",
    "https://example.com/\x00": "syntax",
    "https://exa%6dple.com/": "host",
    "https://*.example.com/": "host",
    "https://" + "a" * 64 + ".com/": "host",
    "https://example.com/" + "a" * 2048: "length",
}


@pytest.mark.parametrize(("url", "rule"), REFUSED.items(), ids=lambda value: ascii(value)[:60])
def test_a_url_is_refused_by_a_rule(url: str, rule: str) -> None:
    with pytest.raises(delivery.UrlRefused) as refusal:
        delivery.check_url(url)
    assert refusal.value.rule == rule, refusal.value
    assert f"({rule})" in str(refusal.value)


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com",
        "https://example.com./",
        "https://EXAMPLE.com:443/hooks?token=x#part",
        "https://example.com:8443/",
        "https://b\u00fccher.example/\u00fc",
        "https://xn--bcher-kva.example/",
        "https://hooks_internal.example.com/",
        "https://8.8.8.8/",
        "https://[2606:4700:4700::1111]:8443/",
        "HTTPS://example.com/%0d%0a",
        "https://redis/",  # whatever that name resolves to is checked when it is connected to
    ],
)
def test_a_url_that_may_be_public_is_none_of_them(url: str) -> None:
    delivery.check_url(url)


def test_a_refusal_names_the_host_and_not_the_rest_of_the_url() -> None:
    with pytest.raises(delivery.UrlRefused) as refusal:
        delivery.check_url("https://10.0.0.1/hooks/T0K3N?key=s3cr3t")
    assert str(refusal.value) == "https://10.0.0.1:443 is refused (private): 10.0.0.1 is a private address"
    again = pickle.loads(pickle.dumps(refusal.value))
    assert (str(again), again.rule) == (str(refusal.value), "private")


def test_a_refusal_leaves_a_validator_as_an_error_of_the_field() -> None:
    def checked(url: str) -> str:
        delivery.check_url(url)
        return url

    class Order(BaseModel):
        post_back_url: Annotated[str, AfterValidator(checked)]

    with pytest.raises(ValidationError) as error:
        Order(post_back_url="https://127.0.0.1/")
    (problem,) = error.value.errors()
    assert problem["loc"] == ("post_back_url",)
    assert problem["msg"] == "Value error, https://127.0.0.1:443 is refused (loopback): 127.0.0.1 is a loopback address"


# ---- the allow-list

# Per entry: what it allows, and what it does not.
ALLOWED = {
    "127.0.0.1": (["http://127.0.0.1:1234/", "https://127.0.0.1/"], ["http://127.0.0.2/", "http://[::1]/"]),
    "127.0.0.1:8080": (["http://127.0.0.1:8080/"], ["http://127.0.0.1:8081/", "http://127.0.0.1/"]),
    "10.0.0.0/8": (
        ["http://10.9.8.7:9/", "https://[::ffff:10.9.8.7]/"],
        ["https://11.0.0.1:9/", "https://172.16.0.1/"],
    ),
    "10.0.0.0/8:9000": (["http://10.9.8.7:9000/"], ["http://10.9.8.7:9001/"]),
    "::1": (["http://[::1]:7/"], ["http://[::2]:7/", "http://127.0.0.1/"]),
    "[::1]:7": (["http://[::1]:7/"], ["http://[::1]:8/"]),
    "[fd00::/8]:443": (["https://[fd12::1]/"], ["https://[fd12::1]:8443/", "https://[fc00::1]/"]),
    "hooks.internal": (["http://hooks.internal:1/", "http://HOOKS.internal./"], ["http://a.hooks.internal/"]),
    "Hooks.Internal.:8000": (["http://hooks.internal:8000/"], ["http://hooks.internal:8001/"]),
    "localhost": (["http://localhost:1/"], ["http://a.localhost/"]),
}


@pytest.mark.parametrize("entry", ALLOWED)
def test_what_the_list_allows_and_no_more(entry: str) -> None:
    rules = Rules(allow=[entry])
    allowed, refused = ALLOWED[entry]
    for url in allowed:
        rules.check(url)
    for url in refused:
        with pytest.raises(delivery.UrlRefused):
            rules.check(url)


@pytest.mark.parametrize(
    "entry",
    [
        "",
        "10.0.0.1/8",
        "10.0.0.0/33",
        "127.1",
        "0x7f.1",
        "*.internal",
        "http://x",
        "a:b",
        "a:0",
        "a:70000",
        "a:",
        "[::1",
        "[::1]x",
    ],
)
def test_an_entry_that_cannot_be_read_is_an_error(entry: str) -> None:
    with pytest.raises(ValueError, match=r"is no host|write|a port|missing"):
        parse_allowed(entry)


def test_a_name_may_resolve_into_an_allowed_network_and_only_the_connection_shows() -> None:
    rules = Rules(allow=["10.0.0.0/8"])
    _, target = rules.check("http://svc.corp:9000/")
    rules.check_address(target, "10.1.2.3")
    for address, rule in {"192.168.0.1": "scheme", "8.8.8.8": "scheme", "nonsense": "address"}.items():
        with pytest.raises(delivery.UrlRefused) as refusal:
            rules.check_address(target, address)
        assert refusal.value.rule == rule
    with pytest.raises(delivery.UrlRefused, match="private"):
        rules.check_address(Target("https", "svc.corp", 443), "192.168.0.1")


def test_an_allowed_name_may_resolve_to_anything() -> None:
    rules = Rules(allow=["hooks.internal:8080"])
    _, target = rules.check("http://hooks.internal:8080/")
    rules.check_address(target, "192.168.7.7")
    with pytest.raises(delivery.UrlRefused):
        rules.check_address(Target("http", "hooks.internal", 8081), "192.168.7.7")


def test_http_and_ports_are_settings() -> None:
    Rules(http=True).check("http://example.com:8080/")
    Rules(ports=[9999]).check("https://example.com:9999/")
    with pytest.raises(delivery.UrlRefused, match="use port 9999"):
        Rules(ports=[9999]).check("https://example.com/")
    with pytest.raises(delivery.UrlRefused, match="private"):
        Rules(http=True).check("http://10.0.0.1/")
    assert 22 not in PORTS


@given(st.text("[]@:/", max_size=4).map("https://".__add__) | st.text(max_size=40))
def test_any_text_is_a_url_or_refused(url: str) -> None:
    with contextlib.suppress(delivery.UrlRefused):
        Rules().check(url)
