"""`raylane deploy` as a script, for Ray's own launchers. It runs on the cluster, where raylane is installed:

ray submit ray-cluster.yaml deployments/deploy.py CONFIG_ON_THE_HEAD
ray job submit --working-dir . -- python deployments/deploy.py CONFIG

Options of `raylane deploy` may follow. The exit status is that of `raylane deploy`.
"""

import os
import sys


def command(arguments: list[str]) -> list[str]:
    """The command line that does the work: by module, as PATH need not have the environment's scripts."""
    return [sys.executable, "-m", "raylane.cli.main", "deploy", *arguments]


if __name__ == "__main__":
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.execv(sys.executable, command(sys.argv[1:]))  # noqa: S606 - no shell is meant
