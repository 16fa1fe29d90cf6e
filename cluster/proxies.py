"""Proxy variables (http_proxy and its kin) are meant for the internet: calls inside the cluster obey none.

They stay in the environment, because engines fetch models through them.
"""

import urllib.request
from collections.abc import Iterable, Mapping

THIS_HOST = ("localhost", "127.0.0.1", "::1")
METADATA = ("169.254.169.254", "metadata.google.internal")  # where Ray asks in which cloud the host is
NAMES = ("no_proxy", "NO_PROXY")  # some programs read one, some the other


def direct() -> urllib.request.OpenerDirector:
    """Opens URLs without any proxy and follows no redirect: what is sent may carry the cluster's token."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect())


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        """Nothing: a redirect is then an HTTPError with its status."""


def without_proxy(environment: Mapping[str, str], hosts: Iterable[str] = ()) -> dict[str, str]:
    """no_proxy and NO_PROXY: what the environment says, this host, its cloud's metadata service, and `hosts`.

    Programs that we start obey proxy variables by themselves (Ray's dashboard and its clients do, engines may).
    """
    before = [name.strip() for variable in NAMES for name in environment.get(variable, "").split(",")]
    if "*" in before:  # no proxy at all; beside others a star means nothing
        return dict.fromkeys(NAMES, "*")
    names = dict.fromkeys(name for name in (*before, *THIS_HOST, *METADATA, *hosts) if name)
    return dict.fromkeys(NAMES, ",".join(names))
