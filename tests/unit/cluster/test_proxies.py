"""Which hosts are added to no_proxy, and that what is already there stays."""

import urllib.request

import pytest
import requests

from raylane.cluster.proxies import without_proxy

LOCAL = "localhost,127.0.0.1,::1,169.254.169.254,metadata.google.internal"


@pytest.mark.parametrize(
    ("environment", "hosts", "expected"),
    [
        pytest.param({}, (), LOCAL, id="none set"),
        pytest.param({}, ("192.0.2.1",), f"{LOCAL},192.0.2.1", id="hosts of the cluster"),
        pytest.param(
            {"no_proxy": "a.example, ::1"}, (), "a.example,::1," + LOCAL.replace("::1,", ""), id="theirs first"
        ),
        pytest.param({"NO_PROXY": "b", "no_proxy": "a,"}, (), f"a,b,{LOCAL}", id="both spellings"),
        pytest.param({"NO_PROXY": "*"}, ("192.0.2.1",), "*", id="no proxy at all"),
    ],
)
def test_both_variables_say_the_same(environment: dict[str, str], hosts: tuple[str, ...], expected: str) -> None:
    assert without_proxy(environment, hosts) == {"no_proxy": expected, "NO_PROXY": expected}


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "192.0.2.7", "[2001:db8::7]", "gpu-a"])
def test_what_python_programs_make_of_it(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    for name, value in without_proxy({}, ("192.0.2.7", "2001:db8::7", "gpu-a")).items():
        monkeypatch.setenv(name, value)
    assert requests.utils.get_environ_proxies(f"http://{host}:8265/api", no_proxy=None) == {}
    assert urllib.request.proxy_bypass(host.strip("[]"))
    assert requests.utils.get_environ_proxies("http://huggingface.co/", no_proxy=None)
