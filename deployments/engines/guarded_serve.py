"""Runs an engine's server with raylane's guard around it. Runs in the Python that has the engine.

    python guarded_serve.py /path/of/trtllm-serve serve ...
    python guarded_serve.py -m sglang.launch_server --model-path ...

For servers that know no keys, or only such as stand on the command line, and have no place for a middleware, but hand
their application to uvicorn's public Config: there the guard is put around it. It imports nothing of raylane, which
need not be installed there. Should a version serve by other means, the engine is open, and raylane, which asks without
the key first, does not take it for ready.
"""

import functools
import importlib.util
import runpy
import sys
from pathlib import Path
from typing import Any

GUARD = Path(__file__).with_name("guard.py")


def key_guard() -> Any:
    """The guard's class, out of its file."""
    spec = importlib.util.spec_from_file_location("raylane_guard", GUARD)
    if spec is None or spec.loader is None:
        raise ImportError(f"{GUARD} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.KeyGuard


def guard_uvicorn() -> None:
    """Put the guard around every application that uvicorn serves in this process from here on."""
    import uvicorn

    guard, plain = key_guard(), uvicorn.Config.__init__

    @functools.wraps(plain)
    def guarded(config: Any, app: Any, *args: Any, **options: Any) -> None:
        if isinstance(app, str):
            raise TypeError(f"uvicorn was told to import {app!r} in processes of its own, which no guard is around")
        plain(config, guard(app), *args, **options)

    uvicorn.Config.__init__ = guarded  # type: ignore[assignment]


def main() -> None:
    is_module = sys.argv[1] == "-m"
    what = sys.argv[2 if is_module else 1]
    sys.argv[:] = [what, *sys.argv[3 if is_module else 2 :]]
    # As if it had been started itself; beside this file lie other modules.
    sys.path[:1] = [] if is_module else [str(Path(what).parent)]
    guard_uvicorn()
    if is_module:
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(what, run_name="__main__")


if __name__ == "__main__":
    main()
