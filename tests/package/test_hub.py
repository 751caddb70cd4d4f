"""`calrec-lite push` as a user runs it, over real HTTP against a small Hub on this machine."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub_server import Hub
from safetensors.torch import save_file

from calrec_lite.errors import InputError
from calrec_lite.package.hub import choose_files

TOKEN = "hf_SeCrEtSeCrEtSeCrEtSeCrEt"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
NEVER = (
    "optimizer.pt",
    "optimizer.safetensors",
    "trainer_state.json",
    "log.jsonl",
    "rankings.parquet",
    "checkpoints/checkpoint-2/model.safetensors",
    "checkpoints/checkpoint-2/optimizer.pt",
    "domains/shop/sequences.parquet",
    "domains/shop/catalogue.jsonl",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An export as small as one can be: two shards of 2 MB, so that a cut comes in the middle of a stream."""
    folder = tmp_path / "export"
    for below in ("1_Pooling", "fitted"):
        (folder / below).mkdir(parents=True)
    for seed, name in enumerate(SHARDS):
        weights = torch.randn(1024, 512, generator=torch.Generator().manual_seed(seed))
        save_file({f"layer{seed}": weights}, folder / name)
    save_file({"gate": torch.ones(4)}, folder / "fitted" / "tower.safetensors")
    index = {"metadata": {}, "weight_map": {f"layer{i}": name for i, name in enumerate(SHARDS)}}
    for name, text in {
        "README.md": "---\nlibrary_name: transformers\n---\n\n# mine\n",
        "calrec.json": '{"format": 1}\n',
        "config.json": '{"model_type": "llama"}\n',
        "tokenizer.json": json.dumps({"vocab": {f"token{i}": i for i in range(2000)}}),
        "model.safetensors.index.json": json.dumps(index),
        "catalogue.jsonl": '{"id": "a", "fields": {"Title": "tea"}, "count": 3}\n',
        "transitions.parquet": "pairs of items",
        "fitted/weights.json": '{"fast": {"text": 1.0}, "fused": null}',
        "fitted/items.parquet": "vectors of items",
        "1_Pooling/config.json": "{}",
    }.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub(TOKEN) as server:
        yield server


def push(
    hub: Hub, folder: Path, *options: str, repo: str = "me/mine", token: str | None = TOKEN, **env: str
) -> tuple[int, str]:
    """Exit code and all that was printed; whatever happens, the token is not in it."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING")) and "proxy" not in k.lower()}
    # Xet, which the real Hub speaks beside LFS, needs a server of its own.
    hf = {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder.parent / "hf"), "HF_HUB_DISABLE_XET": "1", **env}
    done = subprocess.run(
        [sys.executable, "-m", "calrec_lite", "push", str(folder), repo, *options],
        env={**clean, **hf, **({} if token is None else {"HF_TOKEN": token})},
        capture_output=True,
        text=True,
        timeout=100,
    )
    said = done.stderr + done.stdout
    assert "Traceback" not in said, said
    assert TOKEN not in said
    assert "X-Amz-Signature" not in said
    return done.returncode, said


def local(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def remote(hub: Hub, branch: str = "main") -> dict[str, bytes]:
    return {n: d for n, d in hub.repositories["me/mine"].branches[branch].files.items() if n != ".gitattributes"}


def sha(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_what_arrives_is_byte_for_byte_the_export_and_its_size_was_shown(hub: Hub, folder: Path) -> None:
    code, said = push(hub, folder)
    assert code == 0, said
    assert remote(hub) == local(folder)
    files = local(folder)
    assert all(name in said for name in files)
    assert f"{len(files)} files, {sum(map(len, files.values())) / 1e6:.1f} MB" in said
    assert "100%" in said, "no progress bar"
    commits = hub.repositories["me/mine"].branches["main"].commits
    assert said.rstrip().endswith(f"-> {hub.url}/me/mine  commit {commits[-1]}")
    assert len(commits) == 1
    assert not hub.repositories["me/mine"].private


def test_a_second_push_sends_nothing_again(hub: Hub, folder: Path) -> None:
    assert push(hub, folder)[0] == 0
    first = list(hub.received)
    assert {sha(folder / name) for name in SHARDS} <= set(first)
    code, said = push(hub, folder)
    assert code == 0, said
    assert hub.received == first
    assert len(hub.repositories["me/mine"].branches["main"].commits) == 1, "an empty commit"


def test_a_changed_export_sends_what_changed_and_takes_away_what_it_lacks(hub: Hub, folder: Path) -> None:
    """A model.safetensors left from before would be loaded instead of the shards."""
    assert push(hub, folder)[0] == 0
    theirs = {"picture.png": b"a picture", "LICENSE": b"a licence"}
    hub.repositories["me/mine"].branches["main"].files |= {"model.safetensors": b"old", **theirs}
    before = list(hub.received)
    save_file({"layer1": torch.zeros(1024, 512)}, folder / SHARDS[1])
    (folder / "catalogue.jsonl").unlink()
    code, said = push(hub, folder)
    assert code == 0, said
    assert hub.received[len(before) :] == [sha(folder / SHARDS[1])]
    assert remote(hub) == {**local(folder), **theirs}
    assert "removed there, as no part of this export: catalogue.jsonl, model.safetensors\n" in said


def test_a_connection_cut_half_way_is_taken_up_again(hub: Hub, folder: Path) -> None:
    hub.cut_objects[sha(folder / SHARDS[0])] = 2
    code, said = push(hub, folder)
    assert code == 0, said
    assert hub.times_cut == 2
    assert remote(hub) == local(folder)


def test_a_lost_answer_makes_no_second_commit(hub: Hub, folder: Path) -> None:
    hub.cut_commits = 1
    code, said = push(hub, folder)
    assert code == 0, said
    assert hub.times_cut == 1
    assert "trying again" in said
    commits = hub.repositories["me/mine"].branches["main"].commits
    assert len(commits) == 1
    assert commits[0] in said
    assert remote(hub) == local(folder)


def test_an_upload_that_broke_goes_on_with_the_same_command(hub: Hub, folder: Path) -> None:
    """The one slow test (25 s): huggingface_hub repeats a PUT five times with growing pauses, which are fixed."""
    whole, broken = (sha(folder / name) for name in SHARDS)
    hub.cut_objects[broken] = 1_000
    code, said = push(hub, folder)
    assert code == 1, said
    assert "the same command goes on" in said
    assert hub.times_cut > 2
    assert whole in hub.received
    assert broken not in hub.received
    assert not remote(hub), "a half-uploaded model must not be seen"
    del hub.cut_objects[broken]
    code, said = push(hub, folder)
    assert code == 0, said
    assert hub.received.count(whole) == 1
    assert hub.received.count(broken) == 1
    assert remote(hub) == local(folder)


@pytest.mark.parametrize("name", ["calrec.json", SHARDS[1]], ids=["small", "lfs"])
def test_a_file_that_vanishes_is_no_broken_connection(hub: Hub, folder: Path, name: str) -> None:
    hub.taken_away = folder / name
    code, said = push(hub, folder)
    assert code == 2, said
    assert f"{folder / name}: No such file or directory" in said
    assert "trying again" not in said
    assert not remote(hub)


def test_checkpoints_optimiser_states_and_data_stay_here(hub: Hub, folder: Path) -> None:
    export = local(folder)
    for name in NEVER:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"private")
    code, said = push(hub, folder)
    assert code == 0, said
    assert remote(hub) == export
    left = said.partition("left out")[2].splitlines()[0]
    assert "checkpoints/ (2 files)" in left
    assert "domains/ (2 files)" in left
    assert all(name in left for name in NEVER if "/" not in name)


def test_an_export_without_its_catalogue_stays_without(hub: Hub, folder: Path) -> None:
    (folder / "catalogue.jsonl").unlink()
    assert push(hub, folder)[0] == 0
    assert "catalogue.jsonl" not in remote(hub)


def test_a_refused_token(hub: Hub, folder: Path) -> None:
    bad = "hf_BaDbAdBaDbAd"
    code, said = push(hub, folder, token=bad)
    assert code == 2, said
    assert bad not in said
    assert "hf auth login" in said
    assert hub.requests[-1] == "GET /api/whoami-v2", "went on"


@pytest.mark.parametrize("token", [None, "hf_\x01BaDbAd", "hf_BäD"])
def test_no_token_or_none_that_can_be_sent(hub: Hub, folder: Path, token: str | None) -> None:
    code, said = push(hub, folder, token=token)
    assert code == 2, said
    assert "hf auth login" in said
    assert "BaDbAd" not in said
    assert not hub.requests


def test_a_token_that_is_refused_later_is_not_quoted(hub: Hub, folder: Path) -> None:
    code, said = push(hub, folder, repo="others/theirs")
    assert code == 2, said
    assert "may not write there" in said
    assert "Bearer ***" in said
    assert not hub.repositories


def test_a_token_that_may_only_read(hub: Hub, folder: Path) -> None:
    hub.role = "read"
    code, said = push(hub, folder)
    assert code == 2, said
    assert "may only read" in said
    assert hub.requests[-1] == "GET /api/whoami-v2", "went on"


def test_a_card_that_the_hub_refuses(hub: Hub, folder: Path) -> None:
    hub.refuse_card = True
    code, said = push(hub, folder)
    assert code == 2, said
    assert "license is unknown" in said
    assert not hub.received


def test_no_connection_at_all(hub: Hub, folder: Path) -> None:
    code, said = push(hub, folder, HF_ENDPOINT="http://127.0.0.1:9")
    assert code == 1, said
    assert "the same command goes on" in said


def test_offline_is_said(hub: Hub, folder: Path) -> None:
    code, said = push(hub, folder, HF_HUB_OFFLINE="1")
    assert code == 2, said
    assert "unset it" in said


def test_where_xet_fails_the_token_stays_hidden(hub: Hub, folder: Path) -> None:
    """This server has no Xet endpoint; the library does not fall back to LFS."""
    pytest.importorskip("hf_xet")
    code, said = push(hub, folder, HF_HUB_DISABLE_XET="0")
    assert code in (1, 2), said
    assert any("xet-write-token" in request for request in hub.requests)
    assert not remote(hub)


def test_a_folder_that_is_no_export(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    code, said = push(hub, tmp_path / "run")
    assert code == 2, said
    assert "lacks calrec.json, README.md, tokenizer.json, *.safetensors" in said
    assert not hub.repositories


def test_a_name_that_is_none(hub: Hub, folder: Path) -> None:
    for repo in ("mine", "me/mine/more", "me/m ine"):
        code, said = push(hub, folder, repo=repo)
        assert code == 2, said
        assert repo in said
    assert not hub.repositories


@pytest.mark.parametrize("name", ["calrec.json", "README.md", "config.json", "tokenizer.json", "index.json"])
def test_every_part_of_an_export_is_wanted(folder: Path, name: str) -> None:
    next(folder.glob(f"*{name}")).unlink()
    with pytest.raises(InputError, match=name):
        choose_files(folder)


def test_half_an_export_is_not_sent(folder: Path) -> None:
    shard = folder / SHARDS[0]
    shard.write_bytes(shard.read_bytes()[:-1000])
    with pytest.raises(InputError, match=SHARDS[0]):
        choose_files(folder)
    shard.unlink()
    with pytest.raises(InputError, match=f"lacks {SHARDS[0]}"):
        choose_files(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"lay')
    with pytest.raises(InputError, match=r"index.json: cannot be read"):
        choose_files(folder)


@pytest.mark.parametrize("name", ["README.md", "tokenizer.model", "fitted/items.parquet", "fitted", "1_Pooling"])
def test_links_out_of_the_folder_are_not_followed(folder: Path, name: str) -> None:
    private = folder.parent / "private"
    if (folder / name).exists():
        (folder / name).rename(private)
    else:
        private.write_text("hunter2")
    (folder / name).symlink_to(Path("..", *[".."] * name.count("/"), "private"))
    with pytest.raises(InputError, match=f"{name}: is a link out of the folder"):
        choose_files(folder)


def test_a_link_to_itself_is_no_file(folder: Path) -> None:
    (folder / "vocab.txt").symlink_to("vocab.txt")
    with pytest.raises(InputError, match=r"vocab.txt: is a link"):
        choose_files(folder)


def test_links_within_the_folder_and_to_it_are_followed(folder: Path) -> None:
    (folder / "config.json").rename(folder / "model.json")
    (folder / "config.json").symlink_to("model.json")
    (folder.parent / "link").symlink_to(folder)
    assert "config.json" in choose_files(folder.parent / "link").sizes


def test_an_adapter_is_an_export_too(folder: Path) -> None:
    for name in (*SHARDS, "model.safetensors.index.json", "config.json"):
        (folder / name).unlink()
    save_file({"lora_A": torch.zeros(2, 2)}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("{}")
    assert {"adapter_config.json", "adapter_model.safetensors"} <= choose_files(folder).sizes.keys()


def test_a_branch_is_made_and_used_again(hub: Hub, folder: Path) -> None:
    code, said = push(hub, folder, "--revision", "v2/try")
    assert code == 0, said
    assert remote(hub, "v2/try") == local(folder)
    assert not remote(hub)
    assert f"{hub.url}/me/mine/tree/v2/try  commit" in said
    (folder / "config.json").write_text('{"model_type": "gemma3"}\n')
    assert push(hub, folder, "--revision", "v2/try")[0] == 0
    assert remote(hub, "v2/try") == local(folder)
    assert not remote(hub)


def test_private_means_private(hub: Hub, folder: Path) -> None:
    assert push(hub, folder, "--private")[0] == 0
    assert hub.repositories["me/mine"].private
    hub.repositories["me/mine"].private = False
    sent = len(hub.received)
    code, said = push(hub, folder, "--private")
    assert code == 2, said
    assert "public" in said
    assert len(hub.received) == sent


@pytest.fixture
def space(folder: Path) -> Path:
    """A Space with that export in it."""
    space = folder.parent / "space"
    for below in ("calrec_lite/evaluate/baselines", "calrec_lite/__pycache__"):
        (space / below).mkdir(parents=True)
    folder.rename(space / "model")
    for name, text in {
        "README.md": "---\nsdk: gradio\napp_file: app.py\n---\n\n# mine\n",
        "app.py": "page.launch()\n",
        "requirements.txt": "torch\n",
        "calrec_lite/__init__.py": "",
        "calrec_lite/evaluate/baselines/bm25.py": "import bm25s\n",
    }.items():
        (space / name).write_text(text, encoding="utf-8")
    return space


def test_a_space_goes_to_the_space_of_that_name(hub: Hub, space: Path) -> None:
    expected = local(space)
    for name in ("notes.txt", "calrec_lite/__pycache__/a.pyc", "model/optimizer.pt", "model/README.md.swp"):
        (space / name).write_bytes(b"private")
    code, said = push(hub, space)
    assert code == 0, said
    assert set(hub.repositories) == {"spaces/me/mine"}, "no model of that name"
    main = hub.repositories["spaces/me/mine"].branches["main"]
    assert {n: d for n, d in main.files.items() if n != ".gitattributes"} == expected
    assert f"-> {hub.url}/spaces/me/mine  commit {main.commits[-1]}" in said
    assert "left out, as no part of a Space: calrec_lite/, model/ (2 files), notes.txt\n" in said
    shutil.rmtree(space / "model")  # from now on it loads one from the Hub
    main.files["picture.png"] = b"theirs"
    assert push(hub, space)[0] == 0
    kept = {n: d for n, d in expected.items() if not n.startswith("model/")}
    assert {n: d for n, d in main.files.items() if n != ".gitattributes"} == {**kept, "picture.png": b"theirs"}


def test_half_a_space_is_not_sent(space: Path) -> None:
    (space / "model" / "config.json").unlink()
    with pytest.raises(InputError, match=r"model: is no export: lacks config.json"):
        choose_files(space)
    (space / "app.py").unlink()
    with pytest.raises(InputError, match=r"no whole Space: lacks app.py"):
        choose_files(space)


def test_links_out_of_a_space_are_not_followed(space: Path) -> None:
    (space.parent / "private").write_text("hunter2")
    (space / "model" / "vocab.txt").symlink_to(space.parent / "private")
    with pytest.raises(InputError, match=r"vocab.txt: is a link out of the folder"):
        choose_files(space)
