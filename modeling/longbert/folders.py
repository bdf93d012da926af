"""Paths into packages, and folders that appear whole or not at all and carry checksums, so that damage is noticed
later."""

import contextlib
import hashlib
import importlib.util
import itertools
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


MANIFEST = "manifest.json"
PACKAGE_SCHEME = "package://"


def scripts_folder() -> Path:
    """Where train.py, finetune/ and configs/ are: beside the installed package's modules, or at a checkout's top."""
    installed = Path(__file__).parent / "scripts"
    return installed if installed.exists() else Path(__file__).parents[2]


def refuse_occupied(folder: str | Path, but: str | None = None) -> None:
    """Raise `FileExistsError` where writing into `folder` could lose something.

    Args:
        but: name of a file that may be there.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(each.name != but for each in folder.iterdir())):
        raise FileExistsError(f"{folder} already holds something: name a new or an empty folder")


def refuse_output_in_data(output: tuple[str, str | Path], data: Mapping[str, Sequence[str] | str | None]) -> None:
    """Raise `ValueError` where what is written would be read as data the next time.

    Args:
        output: how the folder to write into is asked for, and the folder.
        data: how files to read are asked for, and these; of a folder all files are read.
    """
    asked, folder = output
    for name, given in data.items():
        for place in [given] if isinstance(given, str) else given or []:
            if Path(place).is_dir() and Path(folder).resolve().is_relative_to(Path(place).resolve()):
                raise ValueError(
                    f"{asked}={folder} lies in {name}={place}, where what is written would be read as data the next "
                    "time: name a folder outside of it"
                )


@contextlib.contextmanager
def written_aside(folder: str | Path) -> Iterator[Path]:
    """A temporary folder that becomes `folder` once everything is written; a failure leaves nothing behind."""
    folder = Path(folder).resolve()  # what a link leads to, and the name of "."
    aside = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        put_in_place(aside, folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def put_in_place(aside: Path, folder: Path) -> None:
    """Move a written folder, with a manifest, into place; after a crash at any moment it is there whole or not at
    all."""
    if folder.exists():
        folder.rmdir()  # an empty one, as `refuse_occupied` allows
    write_manifest(aside)
    for path in [*aside.rglob("*"), aside]:
        _sync(path)
    aside.rename(folder)
    _sync(folder.parent)


def put_files_in_place(aside: Path, folder: Path) -> None:
    """Move written files into a folder that has others; after a crash each is there whole, as it was or as it is."""
    for path in (path for path in sorted(aside.rglob("*")) if path.is_file()):
        place = folder / path.relative_to(aside)
        place.parent.mkdir(parents=True, exist_ok=True)
        _sync(path)
        path.replace(place)
    for made in (path for path in aside.rglob("*") if path.is_dir()):  # one without files says something too
        (folder / made.relative_to(aside)).mkdir(parents=True, exist_ok=True)
    shutil.rmtree(aside)
    _sync(folder)


@contextlib.contextmanager
def file_written_aside(file: Path) -> Iterator[Path]:
    """A temporary path beside a file, which becomes the file once it is written; it is there whole or not at all."""
    aside = file.with_name(f".{file.name}.unfinished")
    yield aside
    _sync(aside)
    aside.replace(file)
    _sync(file.parent)


def set_aside(folder: str | Path, why: str) -> None:
    """Rename a folder, where there is one, to `folder.why`, or `folder.why.2` where that is taken."""
    names = (f"{folder}.{why}" + (f".{number}" if number > 1 else "") for number in itertools.count(1))
    if Path(folder).exists():
        os.rename(folder, next(name for name in names if not Path(name).exists()))


def read_json(file: str | Path, kind: Any = dict) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: it is damaged, or holds something else than a `kind`.
    """
    try:
        content = json.loads(Path(file).read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    if not isinstance(content, kind):
        raise ValueError(f"{file} is damaged: it holds a {type(content).__name__}, not a {kind.__name__}")
    return content


def write_manifest(folder: Path) -> None:
    """Write the sha256 of every file in `folder`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sums = {str(path.relative_to(folder)): sha256_of(path) for path in files}
    (folder / MANIFEST).write_text(json.dumps(sums, indent=1) + "\n", "utf-8")


def damage(folder: str | Path) -> str | None:
    """What is wrong with a folder that `put_in_place` wrote; None where it is whole."""
    folder = Path(folder)
    try:
        sums = json.loads((folder / MANIFEST).read_text("utf-8"))
    except (OSError, ValueError):
        return f"has no readable {MANIFEST}: it was never finished"
    for name, expected in sums.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if sha256_of(folder / name) != expected:
            return f"{name} is not what was written"
    return None


def sha256_of(file: Path) -> str:
    """The sha256 of a file's bytes."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows opens no folder, and keeps its names by itself
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def resolve_path(path: str) -> str:
    """`package://name/folder/file` as a path inside the installed package; anything else as it is.

    Raises:
        ValueError: the package is not installed, or the path leads out of it.
    """
    if not path.startswith(PACKAGE_SCHEME):
        return path
    package, _, inner = path.removeprefix(PACKAGE_SCHEME).partition("/")
    if not all(part.isidentifier() for part in package.split(".")) or ".." in Path(inner).parts:
        raise ValueError(f"{path} is no place in a package: write {PACKAGE_SCHEME}name/folder/file")
    try:
        spec = importlib.util.find_spec(package)
    except ImportError:  # of what it would be in
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"{path} needs the package that provides {package!r}: install it, or name files instead")
    return str(Path(spec.submodule_search_locations[0], inner.lstrip("/")))
