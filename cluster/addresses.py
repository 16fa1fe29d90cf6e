"""Hosts and ports in text: names, IPv4 addresses, and IPv6 addresses, which stand in brackets before a port."""

import ipaddress
import re

LAST_PORT = 65_535
NAMED_HOST = re.compile(r"[A-Za-z0-9._-]+")  # a name or an IPv4 address


def split_address(text: str) -> tuple[str, int]:
    """Host (an IPv6 address without its brackets) and port of HOST:PORT. ValueError says what is wrong."""
    if "://" in text:
        raise ValueError("this is a URL")
    host, colon, port = text.rpartition(":")
    if not colon:
        raise ValueError("the port is missing")
    if ":" in host and not host.startswith("["):
        raise ValueError("an IPv6 address is written in brackets, [fd00::1]:6379")
    if not NAMED_HOST.fullmatch(host) and not is_bracketed(host):
        raise ValueError(f"{host!r} is no host")
    if not (port.isascii() and port.isdigit()) or not 0 < int(port) <= LAST_PORT:
        raise ValueError(f"{port!r} is no port")
    return host.strip("[]"), int(port)


def is_bracketed(host: str) -> bool:
    """Whether it is an IPv6 address in brackets."""
    return host.startswith("[") and host.endswith("]") and is_ipv6(host[1:-1])


def is_ipv6(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:
        return False


def in_url(host: str) -> str:
    """The host as it stands before a port: an IPv6 address in brackets."""
    return f"[{host}]" if is_ipv6(host) else host
