"""A script in a fresh interpreter: for what a process decides once (environment, imports, forks) or may hang at."""

import os
import subprocess
import sys
import textwrap


def run_python(script, *arguments, timeout=120, **environment):
    """
    Run `script` and return what it printed; a failure shows both streams.

    Warnings are errors in it. `environment` is added to this process's, from which ATTILE_NUM_THREADS and OMP_NUM_THREADS
    are taken away first.
    """
    variables = {k: v for k, v in os.environ.items() if k not in ("ATTILE_NUM_THREADS", "OMP_NUM_THREADS")}
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(script), *map(str, arguments)]
    done = subprocess.run(command, env=variables | environment, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr
