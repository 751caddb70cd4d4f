"""An export or a Space on the Hugging Face Hub: what is sent, in one commit, and how a broken upload goes on."""

import json
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Literal

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open

from calrec_lite.errors import InputError, RunError
from calrec_lite.files import TERMS
from calrec_lite.package import space

# All that an export may consist of, folder by folder. Whatever matches none of these is not sent: optimiser states,
# checkpoints, logs, prepared domains. catalogue.jsonl is in an export only if its recipe asks (`export.catalogue`).
_LOADABLE = (
    *("README.md", "calrec.json", "catalogue.jsonl", "transitions.parquet", "fitted/*", "manifest.json"),
    *("config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json"),
    *("adapter_config.json", "adapter_model.safetensors"),
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja", "chat_template.json"),
    *("preprocessor_config.json", "processor_config.json"),
    *("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", "[0-9]_*/config.json"),
)
_ALLOWED = (*_LOADABLE, *TERMS, "model*.gguf")
_OF_SPACE = (*space.FILES, *(f"{space.MODEL}/{pattern}" for pattern in _LOADABLE))
_TOKENIZERS = {"tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"}  # any of them makes one
_TOKEN_HINT = "log in with `hf auth login`, or set HF_TOKEN to a token with write access"
_PAUSES = (1.0, 4.0)  # seconds before a broken commit is tried again; huggingface_hub itself repeats broken PUTs
_TRANSIENT_STATUS = (408, 409, 412, 429)  # client errors that go away by themselves


@dataclass(frozen=True)
class Upload:
    """What is sent of `folder`: path in it -> bytes; and which of its files and folders are not sent.

    `replaced`: patterns of what is removed there where it is not sent.
    """

    folder: Path
    sizes: dict[str, int]
    left_out: list[str]
    kind: Literal["model", "space"] = "model"
    replaced: tuple[str, ...] = _LOADABLE

    def __str__(self) -> str:
        width = max(len(_size(size)) for size in self.sizes.values())
        lines = [f"  {_size(size):>{width}}  {name}" for name, size in self.sizes.items()]
        lines.append(f"{len(self.sizes)} files, {_size(sum(self.sizes.values()))}")
        if self.left_out:
            whole = "a Space" if self.kind == "space" else "an export"
            lines.append(f"left out, as no part of {whole}: {', '.join(self.left_out)}")
        return "\n".join(lines)


def push_folder(folder: Path, repo: str, private: bool, revision: str | None) -> str:
    """Upload the export in `folder` to the model repository `repo` (OWNER/NAME) as one commit; made if not there.

    A Space's folder (`export.space`) goes to the Space of that name in the same way.

    What the Hub holds already is not sent again, so the same call goes on after a broken upload. Files of an earlier
    export that this one lacks (another number of shards, say) are removed there: a loader would take the old weights.

    Args:
        private: make a new repository private; an existing public one is refused rather than published to.
        revision: a branch, made from the main one if not there; default: the main one.

    Returns:
        The address and the commit's id.

    Raises:
        InputError: if there is no token or the Hub refuses it, `folder` is no whole export, or `repo` is not a name.
        RunError: if the connection breaks and stays broken.
    """
    check_name(repo)  # before anything is asked of the Hub
    token = _token()
    api = HfApi(token=token, library_name="calrec-lite")
    with _hub_errors(token, repo):
        _check_token(api)
        upload = choose_files(folder)
        place = f"spaces/{repo}" if upload.kind == "space" else repo
        address = f"{api.endpoint}/{place}{f'/tree/{revision}' if revision else ''}"
        print(f"{folder} -> {address}\n{upload}", flush=True)
        _ensure_repository(api, repo, upload.kind, private, revision)
        commit = _commit(api, repo, revision, upload)
    return f"{address}  commit {commit.oid}"


def check_name(repo: str) -> None:
    """Raise InputError for what no repository of the Hub can be called; the Hub is not asked."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise InputError(str(error)) from None
    if "/" not in repo:
        raise InputError(f"{repo}: write it as OWNER/NAME")


def choose_files(folder: Path) -> Upload:
    """Sort the files of an export into what is sent and what is not.

    Raises:
        InputError: if `folder` is no export, a weights file is missing or cut off, or a link leads out of it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    _refuse_links_out(folder)
    return _choose_of_space(folder) if space.is_space(folder) else _choose_of_export(folder)


def _choose_of_space(folder: Path) -> Upload:
    """The page, its code and, where it holds one, the export below it."""
    files = _files(folder)
    sizes = {name: path.stat().st_size for name, path in files.items() if _matches(name, space.FILES)}
    if missing := [name for name in ("app.py", "requirements.txt") if name not in sizes]:
        raise InputError(f"{folder}: is no whole Space: lacks {', '.join(missing)}; export it again")
    if (folder / space.MODEL).is_dir():
        model = _choose_of_export(folder / space.MODEL)
        sizes |= {f"{space.MODEL}/{name}": size for name, size in model.sizes.items()}
    return Upload(folder, sizes, _left_out(files, sizes), "space", _OF_SPACE)


def _choose_of_export(folder: Path) -> Upload:
    files = _files(folder)
    sizes = {name: path.stat().st_size for name, path in files.items() if _matches(name, _ALLOWED)}
    missing = [name for name in ("calrec.json", "README.md") if name not in sizes]
    missing += [] if {"config.json", "adapter_config.json"} & sizes.keys() else ["config.json"]
    if "config.json" in sizes and "adapter_config.json" not in sizes:
        missing += [] if _TOKENIZERS & sizes.keys() else ["tokenizer.json"]
        sharded = any("-of-" in name for name in sizes)
        missing += ["model.safetensors.index.json"] if sharded and "model.safetensors.index.json" not in sizes else []
    missing += [] if any(name.endswith(".safetensors") and "/" not in name for name in sizes) else ["*.safetensors"]
    if missing:
        raise InputError(f"{folder}: is no export: lacks {', '.join(missing)}; write one by `calrec-lite export RUN`")
    _check_weights(folder, sizes)
    return Upload(folder, sizes, _left_out(files, sizes))


def _files(folder: Path) -> dict[str, Path]:
    """Name in the folder -> file, of all below it."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def _left_out(files: Iterable[str], sent: Container[str]) -> list[str]:
    """What is not sent, folder by folder."""
    top_counts = Counter(name.partition("/")[0] + ("/" if "/" in name else "") for name in files if name not in sent)
    return [f"{top} ({count} files)" if count > 1 else top for top, count in top_counts.items()]


def _refuse_links_out(folder: Path) -> None:
    """What a link leads to may be any file of this machine, under the name of one that is sent."""
    for path in folder.rglob("*"):
        target = Path(os.path.realpath(path))  # `resolve` breaks at a link to itself
        if path.is_symlink() and not (target.is_relative_to(folder.resolve()) and target.exists()):
            raise InputError(
                f"{path}: is a link out of the folder, or to nothing; put the file itself in its place, or remove it"
            )


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Folder by folder: unlike fnmatch's, a `*` here stops at a slash."""
    parts = PurePosixPath(name).parts
    split = (PurePosixPath(pattern).parts for pattern in patterns)
    return any(len(parts) == len(p) and all(map(fnmatchcase, parts, p)) for p in split)


def _check_weights(folder: Path, names: dict[str, int]) -> None:
    """Finds a weights file that was cut off before anybody downloads it. Reads headers only."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError):
            raise InputError(f"{index}: cannot be read; export again") from None
        if absent := sorted(shards - names.keys()):
            raise InputError(f"{folder}: lacks {', '.join(absent)}, which {index.name} names; export again")
    for name in names:
        if name.endswith(".safetensors"):
            try:
                with safe_open(folder / name, framework="np"):
                    pass
            except SafetensorError as error:
                raise InputError(f"{folder / name}: {error}; export again") from None


def _token() -> str:
    if constants.HF_HUB_OFFLINE:
        raise InputError("HF_HUB_OFFLINE is set, so nothing can be pushed; unset it")
    token = get_token()
    if not token:
        raise InputError(f"no Hub token; {_TOKEN_HINT}")
    if not (token.isascii() and token.isprintable()):  # HTTP libraries quote a header they cannot send
        raise InputError(f"the Hub token holds characters no token has; {_TOKEN_HINT}")
    return token


def _check_token(api: HfApi) -> None:
    try:
        auth = api.whoami().get("auth", {})
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            raise InputError(f"the Hub refuses the token; {_TOKEN_HINT}") from None
        raise
    if auth.get("accessToken", {}).get("role") == "read":
        raise InputError(f"the token may only read; {_TOKEN_HINT}")


def _ensure_repository(api: HfApi, repo: str, kind: str, private: bool, revision: str | None) -> None:
    """Make repository and branch if they are not there."""
    sdk = "gradio" if kind == "space" else None
    # private=None: as the organisation has it
    api.create_repo(repo, repo_type=kind, space_sdk=sdk, private=private or None, exist_ok=True)
    if private and not api.repo_info(repo, repo_type=kind).private:
        raise InputError(f"{repo}: is there and public; make it private in its settings, or push without --private")
    if revision:
        api.create_branch(repo, branch=revision, repo_type=kind, exist_ok=True)


def _commit(api: HfApi, repo: str, revision: str | None, upload: Upload) -> CommitInfo:
    """Send what is missing and commit. Safe to repeat, even if only the answer was lost: unchanged files drop out."""
    for pause in _PAUSES:
        try:
            return _commit_once(api, repo, revision, upload)
        except Exception as error:
            if not _is_transient(error):
                raise
            print(f"the connection broke; trying again in {pause:g} s", flush=True)
            time.sleep(pause)
    return _commit_once(api, repo, revision, upload)


def _commit_once(api: HfApi, repo: str, revision: str | None, upload: Upload) -> CommitInfo:
    there = api.repo_info(repo, repo_type=upload.kind, revision=revision)
    remote_files = [file.rfilename for file in getattr(there, "siblings", None) or []]
    stale = [name for name in remote_files if _matches(name, upload.replaced) and name not in upload.sizes]
    if stale:
        print(f"removed there, as no part of this export: {', '.join(stale)}", flush=True)
    return api.create_commit(
        repo,
        [
            *(CommitOperationDelete(name) for name in stale),
            *(CommitOperationAdd(name, upload.folder / name) for name in upload.sizes),
        ],
        commit_message="Upload by calrec-lite",
        repo_type=upload.kind,
        revision=revision,
    )


def _is_transient(error: Exception) -> bool:
    """A broken connection or a server in trouble. RuntimeError: a PUT that huggingface_hub has repeated in vain."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500 or error.response.status_code in _TRANSIENT_STATUS
    return not isinstance(error, (RuntimeError, ValueError)) and _local_failure(error) is None


def _local_failure(error: BaseException) -> str | None:
    """What happened to which file, if a file of this machine failed: a socket's error names no file."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return None


@contextmanager
def _hub_errors(token: str, repo: str) -> Iterator[None]:
    """Turns every failure of the Hub into an error of one line; keeps the token out of errors and the library's log."""
    redactor = _Redactor(token)
    handlers = list(logging.getLogger("huggingface_hub").handlers)
    for handler in handlers:
        handler.addFilter(redactor)
    try:
        yield
    except (InputError, RunError):
        raise
    except Exception as error:  # httpx under huggingface_hub 1, httpx2 under 2, hf_xet: they share no base class
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        if failure := _local_failure(cause):
            raise InputError(f"{failure}; the folder changed during the upload: push it once it is whole") from None
        message = redactor.text(" ".join(f"{type(cause).__name__}: {cause}".split()))
        hub_error = error.__cause__ if isinstance(error, ValueError) else error  # ValueError: README.md was refused
        status = hub_error.response.status_code if isinstance(hub_error, HfHubHTTPError) else 0
        if status in (401, 403):
            raise InputError(f"{repo}: the token may not write there; {_TOKEN_HINT} ({message})") from None
        if 400 <= status < 500 and status not in _TRANSIENT_STATUS:
            raise InputError(f"{repo}: the Hub refuses this upload ({message})") from None
        raise RunError(f"{repo}: {message}; the same command goes on and sends only what is not there yet") from None
    finally:
        for handler in handlers:
            handler.removeFilter(redactor)


class _Redactor(logging.Filter):
    """Takes the token out of a text, and the query parts of addresses, which hold signatures for a storage bucket."""

    def __init__(self, token: str) -> None:
        super().__init__()
        self._token = token

    def text(self, text: str) -> str:
        return re.sub(r"(https?://[^\s?]+)\?[^\s'\"]+", r"\1", text.replace(self._token, "***"))

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = self.text(record.getMessage()), None
        return True


def _size(size: float) -> str:
    if size < 1000:
        return f"{size:.0f} B"
    for unit in ("kB", "MB"):
        size /= 1000
        if size < 1000:
            return f"{size:.1f} {unit}"
    return f"{size / 1000:,.2f} GB"
