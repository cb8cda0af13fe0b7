"""Delete tests, headers and stubs from an environment: `strip_packages.py DIRECTORY`.

Run by the Dockerfile; needs the standard library only. Licences and package metadata stay.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

TEST_DIRECTORIES = frozenset({"test", "tests"})
"""Test suites of packages. `testing` is something else: numpy, pandas and torch import theirs."""
BUILD_SUFFIXES = (
    *(".c", ".cc", ".cpp", ".cu", ".pxd", ".pxi", ".pyx"),
    *(".h", ".hpp", ".cuh", ".a", ".cmake", ".pyi"),
)
"""Sources, headers, static libraries and type stubs: of use to compilers and type checkers only."""
UNUSED = (
    # Only compilers read these, and the image contains none.
    *("torch/include", "torch/share/cmake", "pyarrow/include", "pyarrow/src"),
    # Arrow's gRPC transport, 33 MB, which no dependency imports.
    *("pyarrow/_flight.*", "pyarrow/libarrow_flight*", "pyarrow/libarrow_python_flight*"),
)
"""Patterns of further files and directories."""
TORCH_PROGRAMS = frozenset({"torch_shm_manager"})
"""Programs of torch/bin that torch starts; the rest are tests and the protobuf compiler."""
UNTOUCHED = (".dist-info", ".libs", "triton")
"""Ends of top-level names that are left alone: metadata, and Triton, which compiles its sources."""
PROTECTED = ("licen", "copying", "notice", "authors")
"""Words in names of files that a licence requires to be passed on."""


def main(arguments: list[str]) -> int:
    """Strip the environment in `arguments`, print the sizes, and return an exit code."""
    if len(arguments) != 1 or not (root := Path(arguments[0])).is_dir():
        print("usage: strip_packages.py DIRECTORY, an existing environment", file=sys.stderr)
        return 2
    before = tree_bytes(root)
    for packages in sorted(root.glob("lib/python3*/site-packages")):
        for path in list(removable(packages)):
            remove(path)
    after = tree_bytes(root)
    print(f"{root}: {before / 1e6:.0f} MB, {after / 1e6:.0f} MB after removing tests and headers")
    return 0


def removable(packages: Path) -> Iterator[Path]:
    """Yield the files and directories of a site-packages directory that nothing needs."""
    for pattern in UNUSED:
        yield from packages.glob(pattern)
    yield from (path for path in packages.glob("torch/bin/*") if path.name not in TORCH_PROGRAMS)
    for path in packages.rglob("*"):
        inside = path.relative_to(packages)
        if inside.parts[0].endswith(UNTOUCHED):
            continue
        # A package that is itself called `test` or `tests` lies at the top and is left alone.
        is_suite = len(inside.parts) > 1 and path.name in TEST_DIRECTORIES and path.is_dir()
        if is_suite or (path.suffix in BUILD_SUFFIXES and path.is_file()):
            yield path


def remove(path: Path) -> None:
    """Delete a file or a tree, except for licences in it."""
    if path.is_dir() and not path.is_symlink():
        for child in path.iterdir():
            remove(child)
        if not any(path.iterdir()):
            path.rmdir()
    elif path.exists() and not any(word in path.name.lower() for word in PROTECTED):
        path.unlink()


def tree_bytes(root: Path) -> int:
    """Return the size of all files below a directory, without following links."""
    return sum(path.lstat().st_size for path in root.rglob("*") if not path.is_dir())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
