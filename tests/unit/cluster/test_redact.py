"""What is left of text, addresses and data when their secrets are taken out: `word123` is the secret everywhere."""

import json
import time
from typing import Any

import pytest

from raylane.cluster.redact import is_secret_name, redacted, redacted_data, redacted_url, secret_values

SECRET = "word123"

ADDRESSES = [
    pytest.param("http://someone:word123@127.0.0.1:8000", "http://***@127.0.0.1:8000", id="name and password"),
    pytest.param("http://word123@host/v1", "http://***@host/v1", id="a key alone"),
    pytest.param("HTTP://someone:word123@host", "HTTP://***@host", id="scheme in capitals"),
    pytest.param("ws://someone:word123@host/a", "ws://***@host/a", id="another scheme"),
    pytest.param("redis://:word123@host:6379/0", "redis://***@host:6379/0", id="a password without a name"),
    pytest.param("http://someone:word123@[::1]:8000/v1", "http://***@[::1]:8000/v1", id="IPv6"),
    pytest.param("http://someone:a@word123@host/", "http://***@host/", id="an @ in the password"),
    pytest.param("http://someone:a/word123@host/", "http://***@host/", id="a slash in the password"),
    pytest.param("http://someone:a?word123#b@host/", "http://***@host/", id="? and # in the password"),
    pytest.param("http://some%6Fne:a%40word123@host", "http://***@host", id="percent-encoded user info"),
    pytest.param("http://someone:word123%40host", "http://***%40host", id="an @ that is percent-encoded"),
    pytest.param("http:/someone:word123@host/plan.yaml", "http:/***@host/plan.yaml", id="made a path"),
    pytest.param("//someone:word123@host/next", "//***@host/next", id="no scheme"),
]


@pytest.mark.parametrize(("address", "left"), ADDRESSES)
def test_an_address_in_a_text_and_alone(address: str, left: str) -> None:
    for before, after in (("cannot connect to ", ": refused"), ("(got '", "')"), ("[<", ">]"), ('{"url": "', '"}')):
        assert redacted(f"{before}{address}{after}") == f"{before}{left}{after}"
    assert SECRET not in redacted_url(address)
    assert redacted(left) == left


@pytest.mark.parametrize(
    ("url", "left"),
    [
        pytest.param("someone:word123@host:80", "***@host:80", id="nothing but user info says that it is one"),
        pytest.param("http://host/?key=word123", "http://host/?***", id="a query"),
        pytest.param("http://host/#word123", "http://host/#***", id="a fragment"),
        pytest.param("http://123/word123@host", "http://***@host", id="a slash in a key alone"),
        pytest.param("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1", id="nothing to hide"),
    ],
)
def test_an_address_known_to_be_one_is_cut_harder(url: str, left: str) -> None:
    assert redacted_url(url) == left


@pytest.mark.parametrize(
    ("text", "left"),
    [
        pytest.param("GET http://h/?key=word123&n=1: 404", "GET http://h/?key=***&n=1: 404", id="query"),
        pytest.param("(got 'http://h/?api_key=word123')", "(got 'http://h/?api_key=***')", id="query in a repr"),
        pytest.param("/a?X-Amz-Signature=word123#x", "/a?X-Amz-Signature=***#x", id="a signature"),
        pytest.param("/a?access%5Ftoken=word123", "/a?access%5Ftoken=***", id="a name that is percent-encoded"),
        pytest.param("/login?next=http%3A%2F%2Fu%3Aword123%40h", "/login?next=http%3A%2F%2F***%40h", id="nested"),
        pytest.param("HF_TOKEN=word123 vllm serve", "HF_TOKEN=*** vllm serve", id="a variable"),
        pytest.param("Namespace(hf_token='word123', port=1)", "Namespace(hf_token=***, port=1)", id="a repr"),
        pytest.param("args: {'api_key': ['word123'], 'n': 1}", "args: {'api_key': '***', 'n': 1}", id="a dict of vLLM"),
        pytest.param('{"password": "a\\"word123", "n": 1}', '{"password": "***", "n": 1}', id="JSON"),
        pytest.param("serve --api-key word123 --port 1", "serve --api-key *** --port 1", id="an option"),
        pytest.param("['--hf-token', 'word123', '-v']", "['--hf-token', '***', '-v']", id="an option in a list"),
        pytest.param("Authorization: Bearer word123", "Authorization: ***", id="a header"),
        pytest.param("{'Authorization': 'Basic word123'}", "{'Authorization': '***'}", id="headers as a dict"),
        pytest.param("wrong Bearer word123, sorry", "wrong Bearer ***, sorry", id="a bearer token"),
        pytest.param("x-api-key: word123", "x-api-key: ***", id="a header of its own"),
        pytest.param("401: hf_word123word123word123 is old", "401: *** is old", id="a token by its shape"),
    ],
)
def test_text_without_its_secrets(text: str, left: str) -> None:
    assert redacted(text) == left
    assert redacted(left) == left


@pytest.mark.parametrize(
    "text",
    [
        "plan.yaml: cases.0.streams.0.slo.ttft_ms_per_input_token: Input should be greater than 0 (got -1)",
        "engine.env.HF_TOKEN: Input should be a valid string (got ***)",
        "http://[::1]:8000/models/x@v2 and http://host:8000/x@v2 and http://host/x@v2 are paths with an @",
        "docker.io/vllm/vllm-openai:v1@sha256:0a1b",
        "expected KEY=VALUE (got 'target load')",
        "--redis-password without --redis",
        '{"max_tokens": 16, "prompt_tokens": 3, "eos_token": "</s>"}',
        "max_num_batched_tokens=8192, tokenizer='/m', eos_token='</s>'",
        "the environment variable RAYLANE_API_KEY is not set",
        "api_key_env: the endpoint wants a Bearer token",
    ],
)
def test_text_without_secrets_stays_as_it_is(text: str) -> None:
    assert redacted(text) == text


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        *((name, True) for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "api_key", "apiKey")),
        *(
            (name, True)
            for name in ("api_key_env", "PGPASSWORD", "X-Amz-Signature", "sig", "Authorization", "accessToken")
        ),
        *((name, False) for name in ("ttft_ms_per_input_token", "max_tokens", "tokenizer", "eos_token", "monkey", "")),
        *((name, False) for name in ("prompt_token_ids", "keys", "public_key", "usd_per_1k_good_requests", "author")),
    ],
)
def test_names_of_secrets(name: str, secret: bool) -> None:
    assert is_secret_name(name) is secret


def test_a_secret_that_is_known_is_found_anywhere() -> None:
    assert redacted("engine said xword123x and abc", [SECRET, "abc"]) == "engine said x***x and abc"  # abc is too short
    assert secret_values({"HF_TOKEN": SECRET, "VLLM_LOGGING_LEVEL": "INFO"}) == (SECRET,)


def test_plain_data_keeps_its_shape_and_loses_its_secrets() -> None:
    data: dict[str, Any] = {
        "base_url": "http://someone:word123@host/?q=word123",
        "env": {"HF_TOKEN": SECRET, "OMP_NUM_THREADS": "2", "https_proxy": "http://u:word123@proxy:3128"},
        "command": ["vllm", "serve", "--api-key", SECRET, "--port", 8000],
        "errors": {"401 for http://u:word123@host": 3},
        "api_key": None,
        "token": 5,
        "max_tokens": 5,
    }
    left = redacted_data(data)
    assert SECRET not in json.dumps(left)
    assert left["env"] == {"HF_TOKEN": "***", "OMP_NUM_THREADS": "2", "https_proxy": "http://***@proxy:3128"}
    assert left["command"] == ["vllm", "serve", "--api-key", "***", "--port", 8000]
    assert left["errors"] == {"401 for http://***@host": 3}
    assert (left["api_key"], left["token"], left["max_tokens"]) == (None, "***", 5)
    assert redacted_data(("a", 1)) == ("a", 1)


@pytest.mark.parametrize("part", ["a", "//", "%3A%2F%2F", '"', "'a':[", "--a ", "//a:b", "A=B,", "x-", "a://"])
def test_long_lines_cost_little(part: str) -> None:
    began_s = time.process_time()
    redacted(part * (60_000 // len(part)))
    assert time.process_time() - began_s < 2.0  # 5 s and more when a pattern is tried from everywhere to the end
