"""Runs trtllm-serve with raylane's guard around its server. Runs in the Python that has TensorRT-LLM.

    python guarded_serve.py /path/of/trtllm-serve serve ...

trtllm-serve knows no keys and has no place for a middleware, but it hands its application to uvicorn's public Config,
where the guard is put around it. It imports nothing of raylane, which need not be installed there. Should a version
serve by other means, the engine is open, and raylane, which knocks without the key first, does not take it for ready.
"""

import functools
import importlib.util
import runpy
import sys
from pathlib import Path
from typing import Any

GUARD = Path(__file__).parents[1] / "guard.py"


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
        plain(config, guard(app), *args, **options)

    uvicorn.Config.__init__ = guarded  # type: ignore[assignment]


def main() -> None:
    script = sys.argv[1]
    del sys.argv[0]
    sys.path[0] = str(Path(script).parent)  # as if it had been started itself; beside this file lie other modules
    guard_uvicorn()
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
