"""Secrets taken out of text before it leaves the process: addresses with passwords, keys, tokens. Pure.

What counts as a secret is told by the name beside it (HF_TOKEN, api_key, ?sig=), by its place in an address or a
header, or by its own shape (hf_..., sk-...). Text that nobody has marked cannot be known; callers that hold a secret
hand it in.
"""

import re
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any
from urllib.parse import unquote

HIDDEN = "***"
MIN_SECRET_CHARS = 4  # a shorter one would be found inside ordinary words

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_ANYWHERE = ("password", "passwd", "passphrase", "pwd", "secret", "secrets", "credential", "credentials", "apikey")
_LAST = ("key", "token", "sig", "signature", "auth", "authorization", "bearer", "cookie", "jwt")
# Quantities per token and a tokenizer's own tokens are no secrets.
_NEVER = ("per", "public", "eos", "bos", "pad", "unk", "sep", "cls", "mask", "stop", "image", "special")

_SLASHES = r"(//|(?<=\w:)/)"  # a path that was an address has one of them left
_AT = r"(?:@|%40)"
# Lengths are bounded where a pattern could otherwise be tried from every place to the end of a long line.
_QUOTED = r"\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'"
_SCHEME = re.compile(r"^[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_USER = re.compile(rf"{_SLASHES}[^\s/?#]*({_AT})", re.IGNORECASE)
# A password with / or ? in it: what follows the colon is no port, and an @ comes later.
_ODD_USER = re.compile(rf"{_SLASHES}(?!\[)[^\s/?#@:]*:(?!\d{{1,5}}(?:[/?#\s'\")]|$))\S{{0,300}}({_AT})", re.IGNORECASE)
_ENCODED_USER = re.compile(r"(%3A%2F%2F)[^\s&]{0,300}?(%40)", re.IGNORECASE)
_ASSIGNED = re.compile(
    rf"(?<![\w.%-])(?P<name>[A-Za-z%][\w.%-]*)=(?P<value>{_QUOTED}|[^\s&#\"<>]*?(?=['\")\]}},.;:]*(?:[\s&#\"<>]|$)))"
)
_PAIR = re.compile(
    rf"(?P<quote>[\"'])(?P<name>[\w.-]+)(?P=quote)(?P<colon>\s*[:,]\s*)(?P<value>\[[^\]]{{0,300}}\]|{_QUOTED}|[^\s,\"'}}\[{{]+)"
)
_OPTION = re.compile(rf"(?<![\w-])(?P<name>--[a-z][\w-]*)(?P<gap>\s+)(?P<value>{_QUOTED}|(?!-)(?=\S*[\d_A-Z])\S+)")
_HEADER = re.compile(
    r"(?<![\w?&-])(?P<name>(?:proxy-)?authorization|(?:set-)?cookie|api-key|x-[\w-]+)(?P<colon>[\"']?\s*[:=]\s*[\"']?)"
    r"(?P<value>(?:(?:bearer|basic|digest|token)\s+)?[^\s\"',]+)",
    re.IGNORECASE,
)
_BEARER = re.compile(r"\b(Bearer\s+)(?=\S*\d)[^\s\"',]+", re.IGNORECASE)
_SHAPES = re.compile(
    r"\b(?:hf_|sk-|gh[opsu]_|github_pat_|glpat-|nvapi-|xox[abps]-)[A-Za-z0-9_-]{16,}|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"
)


def is_secret_name(name: str) -> bool:
    """Whether what stands under this name (a key, a variable, a header, a query parameter) must not be shown."""
    words = [word.lower() for word in _WORD.findall(name)]
    if not words or any(word in _NEVER for word in words):
        return False
    pairs = {"api key", "access key"} & {f"{first} {second}" for first, second in pairwise(words)}
    return bool(pairs) or words[-1] in _LAST or any(word.endswith(_ANYWHERE) for word in words)


def secret_values(variables: Mapping[str, str]) -> tuple[str, ...]:
    """The values of those variables whose names say that they are secret."""
    return tuple(value for name, value in variables.items() if is_secret_name(name))


def redacted(text: str, secrets: Iterable[str] = ()) -> str:
    """The text with *** in place of passwords in addresses, of what stands under secret names, and of `secrets`."""
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= MIN_SECRET_CHARS:
            text = text.replace(secret, HIDDEN)
    for pattern in (_USER, _ODD_USER, _ENCODED_USER):
        text = pattern.sub(rf"\1{HIDDEN}\2", text)
    text = _HEADER.sub(_without_header, text)
    text = _BEARER.sub(rf"\1{HIDDEN}", text)
    text = _ASSIGNED.sub(_without_assigned, text)
    text = _PAIR.sub(_without_pair, text)
    text = _OPTION.sub(_without_option, text)
    return _SHAPES.sub(HIDDEN, text)


def redacted_url(url: str) -> str:
    """An address that is known to be one: nothing before its last @ is left, nor what follows ? or #."""
    scheme = next(iter(_SCHEME.findall(url)), "")
    rest = url.removeprefix(scheme)
    at = max(rest.rfind("@"), rest.rfind("%40"))
    rest = rest if at < 0 else HIDDEN + rest[at:]
    mark = re.search(r"[?#]", rest)
    return scheme + (rest if mark is None else rest[: mark.end()] + HIDDEN)


def redacted_data(value: Any, name: str = "", secrets: Iterable[str] = ()) -> Any:
    """Plain data (of a config, of JSON) with *** for every value under a secret name, and every text in it redacted."""
    if value is None or isinstance(value, bool):
        return value
    if is_secret_name(name):
        return HIDDEN
    if isinstance(value, Mapping):
        return {
            redacted(key, secrets) if isinstance(key, str) else key: redacted_data(each, str(key), secrets)
            for key, each in value.items()
        }
    if isinstance(value, list | tuple):
        before = ["", *value]
        return type(value)(
            HIDDEN if _is_option(previous) else redacted_data(each, "", secrets)
            for previous, each in zip(before, value, strict=False)
        )
    if isinstance(value, str):
        return redacted_url(value) if name.lower().endswith("url") else redacted(value, secrets)
    return value


def _is_option(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("--") and "=" not in value and is_secret_name(value)


def _without_assigned(found: re.Match[str]) -> str:
    name = unquote(found["name"])
    bare = name.lower() == "key" and found.string[max(0, found.start() - 1) : found.start()] not in ("?", "&", ";", "#")
    return found[0] if bare or not is_secret_name(name) else f"{found['name']}={HIDDEN}"


def _without_pair(found: re.Match[str]) -> str:
    if not is_secret_name(found["name"]) or (found["colon"].strip() == "," and not found["name"].startswith("--")):
        return found[0]
    quote = found["quote"]
    return f"{quote}{found['name']}{quote}{found['colon']}{quote}{HIDDEN}{quote}"


def _without_option(found: re.Match[str]) -> str:
    return f"{found['name']}{found['gap']}{HIDDEN}" if is_secret_name(found["name"]) else found[0]


def _without_header(found: re.Match[str]) -> str:
    return f"{found['name']}{found['colon']}{HIDDEN}" if is_secret_name(found["name"]) else found[0]
