"""Let pip inside a build reach what pip on this machine reaches: `build_pip_config.py DIRECTORY`.

Write pip's settings and certificates into DIRECTORY, and print the options of `buildah build`
that pass them, one a line. Directories of wheels are mounted below /mnt, which exists in the base
image, so that the image contains no trace of them.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

MOUNT = "/mnt"
SINGLE = ("index-url", "proxy", "timeout", "cert")
LISTS = ("extra-index-url", "find-links", "trusted-host")
"""Settings that are passed on: they say where packages come from."""
PUBLIC_INDEX = "https://pypi.org/simple"
TORCH = "torch-[0-9]*.whl"


def main(arguments: list[str]) -> int:
    """Print the options for the directory in `arguments`, and return an exit code."""
    if len(arguments) != 1:
        print("usage: build_pip_config.py DIRECTORY", file=sys.stderr)
        return 2
    directory = Path(arguments[0])
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True
    ).stdout
    print(*build_options(directory, read_settings(listing)), sep="\n")
    return 0


def read_settings(listing: str) -> dict[str, list[str]]:
    """Return the values of the passed settings from the output of `pip config list`.

    Lists of several origins add up. For other settings the environment wins over files.
    """
    settings: dict[str, list[str]] = {}
    lines = re.findall(r"^(?::env:|global|install)\.([\w-]+)=(.+)$", listing, re.MULTILINE)
    # `pip config list` sorts the environment's names, which begin with a colon, first.
    for full_name, literal in lines:
        name = full_name.removeprefix("default-")
        values = str(ast.literal_eval(literal)).split()
        if name in LISTS:
            settings[name] = list(dict.fromkeys(settings.get(name, []) + values))
        elif name in SINGLE:
            settings.setdefault(name, values)
    return settings


def build_options(directory: Path, settings: dict[str, list[str]]) -> list[str]:
    """Write `pip.conf` and its companions into `directory`; return options for `buildah build`."""
    directory = directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    options = ["--volume", f"{directory}:{MOUNT}:ro"]
    settings = dict(settings)
    if "cert" in settings:
        shutil.copyfile(settings["cert"][0], directory / "certificates.pem")
        settings["cert"] = [f"{MOUNT}/certificates.pem"]
    local = [Path(link) for link in settings.get("find-links", []) if Path(link).is_dir()]
    remote = [link for link in settings.get("find-links", []) if "://" in link]
    for number, links in enumerate(local):
        (directory / str(number)).mkdir(exist_ok=True)
        options += ["--volume", f"{links.resolve()}:{MOUNT}/{number}:ro"]
        remote.append(f"{MOUNT}/{number}")
    settings["find-links"] = remote
    # An index of files is not passed: its links may lead anywhere on this machine.
    extra = settings.get("extra-index-url", [])
    settings["extra-index-url"] = [url for url in extra if not url.startswith("file:")]
    lines = [f"{name} = {' '.join(values)}\n" for name, values in settings.items() if values]
    (directory / "pip.conf").write_text("[global]\n" + "".join(lines))
    options += ["--secret", f"id=pip.conf,src={directory / 'pip.conf'}"]
    if any(any(links.glob(TORCH)) for links in local):
        # The wheel at hand is meant; the index of PyTorch need not be reachable.
        index = settings.get("index-url", [PUBLIC_INDEX])[0]
        options += ["--build-arg", f"TORCH_INDEX={index}"]
    return options


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
