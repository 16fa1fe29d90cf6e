"""Hosts and ports as users write them, IPv6 addresses too."""

import pytest

from raylane.cluster.addresses import in_url, split_address
from raylane.cluster.errors import UsageError
from raylane.cluster.ray_start import parse_head_address, parse_own_address


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("gpu-a:6379", ("gpu-a", 6379), id="name"),
        pytest.param("192.0.2.1:1", ("192.0.2.1", 1), id="IPv4"),
        pytest.param("[2001:db8::1]:6379", ("2001:db8::1", 6379), id="IPv6"),
    ],
)
def test_an_address_is_split(text: str, expected: tuple[str, int]) -> None:
    assert split_address(text) == expected
    assert f"{in_url(expected[0])}:{expected[1]}" == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param("gpu-a", "port is missing", id="no port"),
        pytest.param("::1:6379", "in brackets", id="IPv6 without brackets"),
        pytest.param("[gpu-a]:6379", "no host", id="a name in brackets"),
        pytest.param("[::1:6379", "no host", id="half a bracket"),
        pytest.param("http://gpu-a:6379", "a URL", id="a URL"),
        pytest.param("gpu-a:0", "no port", id="port 0"),
        pytest.param("gpu-a:65536", "no port", id="a port that does not exist"),
        pytest.param("gpu-a:²", "no port", id="a digit that is none"),
        pytest.param(":6379", "no host", id="no host"),
    ],
)
def test_what_is_no_address_has_a_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        split_address(text)


@pytest.mark.parametrize("text", ["[fd00::2]", "[fd00::2]:6379"])
def test_a_head_may_have_an_ipv6_address(text: str) -> None:
    assert parse_head_address(text) == "[fd00::2]:6379"


@pytest.mark.parametrize(
    ("text", "expected"), [("fd00::2", "fd00::2"), ("[fd00::2]", "fd00::2"), ("192.0.2.1", "192.0.2.1"), ("gpu", "gpu")]
)
def test_an_own_address_is_told_to_ray_without_brackets(text: str, expected: str) -> None:
    assert parse_own_address(text, "--node-ip") == expected


@pytest.mark.parametrize("text", ["gpu-a:6379", "[fd00::2]:6379", "http://gpu-a", ""])
def test_an_own_address_has_no_port(text: str) -> None:
    with pytest.raises(UsageError, match="--node-ip: expected an address of this host"):
        parse_own_address(text, "--node-ip")


@pytest.mark.parametrize("text", ["[::1]", "[::1]:6379"])
def test_the_ipv6_loopback_address_is_refused_by_name(text: str) -> None:
    with pytest.raises(UsageError, match="--address: ::1: Ray runs on no IPv6 loopback"):
        parse_head_address(text)


@pytest.mark.parametrize("text", ["fd00::2", "::1:6379"])
def test_where_an_address_ends_and_its_port_begins_is_not_guessed(text: str) -> None:
    with pytest.raises(UsageError, match=r"--address: .*in brackets"):
        parse_head_address(text)
