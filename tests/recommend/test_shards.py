"""Parts of a file of lists, made apart: merged they are the bytes of one process."""

import json
import multiprocessing
import signal
from pathlib import Path

import pytest

from calrec_lite.data.domain import Domain
from calrec_lite.errors import InputError
from calrec_lite.recommend.bulk import Bulk, Progress
from calrec_lite.recommend.shards import Shard, merge_lists
from tests.recommend.test_bulk import BAD, BLOCK, OPTIONS, Popular


def part(users: Path, out: Path, shard: Shard, rank: Popular, **options) -> Progress:
    return Bulk(users, out, OPTIONS | options, BLOCK, shard=shard).run(rank, progress=False)


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet"])
@pytest.mark.parametrize("count", [2, 3, 20])  # 20: more than there are blocks
def test_merged_parts_are_the_bytes_of_one_process(
    users: Path,
    tmp_path: Path,
    domain: Domain,
    suffix: str,
    count: int,
) -> None:
    (tmp_path / "one").mkdir()
    whole, out = tmp_path / "one" / f"lists{suffix}", tmp_path / f"lists{suffix}"
    done = Bulk(users, whole, OPTIONS, BLOCK).run(Popular(domain), progress=False)
    shards = [Shard(index, count) for index in range(count)]
    for shard in reversed(shards):
        part(users, out, shard, Popular(domain))
    again = Popular(domain)
    part(users, out, shards[0], again)  # done already
    assert again.calls == 0
    assert merge_lists(out) == (done.users, done.rejected) == (51, len(BAD))
    assert out.read_bytes() == whole.read_bytes()
    rejects = f"lists{suffix}.rejected.jsonl"
    assert (tmp_path / rejects).read_bytes() == (tmp_path / "one" / rejects).read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([out.name, rejects, "one", "users.jsonl"])


def test_a_part_that_was_killed_goes_on(users: Path, tmp_path: Path, domain: Domain) -> None:
    whole, out = tmp_path / "whole.jsonl", tmp_path / "lists.jsonl"
    Bulk(users, whole, OPTIONS, BLOCK).run(Popular(domain), progress=False)
    part(users, out, Shard(0, 2), Popular(domain))
    child = multiprocessing.get_context("fork").Process(
        target=part, args=(users, out, Shard(1, 2), Popular(domain, die_at=9))
    )
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    with pytest.raises(InputError, match=r"lists.2-of-2.jsonl: not done yet; .* --shard 2/2 goes on"):
        merge_lists(out)
    rest, every = Popular(domain), Popular(domain)
    part(users, out, Shard(1, 2), rest)
    part(users, tmp_path / "again.jsonl", Shard(1, 2), every)
    assert rest.calls < every.calls
    merge_lists(out)
    assert out.read_bytes() == whole.read_bytes()


def test_parts_that_do_not_belong_together_are_refused(users: Path, tmp_path: Path, domain: Domain) -> None:
    out = tmp_path / "lists.jsonl"
    with pytest.raises(InputError, match="has no parts beside it"):
        merge_lists(out)
    part(users, out, Shard(0, 3), Popular(domain))
    part(users, out, Shard(2, 3), Popular(domain))
    with pytest.raises(InputError, match="part 2/3 is missing"):
        merge_lists(out)
    part(users, out, Shard(1, 3), Popular(domain), k=4)
    with pytest.raises(InputError, match="another k than part 1"):
        merge_lists(out)
    part(users, out, Shard(0, 2), Popular(domain))
    with pytest.raises(InputError, match="parts of 2 and of 3"):
        merge_lists(out)
    state = tmp_path / "lists.1-of-2.jsonl.state.json"
    for name in ("1-of-3", "2-of-3", "3-of-3"):
        for file in tmp_path.glob(f"lists.{name}*"):
            file.unlink()
    part(users, out, Shard(1, 2), Popular(domain))
    said = json.loads(state.read_text())
    state.write_text(json.dumps({**said, "run": {}}))
    with pytest.raises(InputError, match="does not say what it is; make it again by --shard 1/2"):
        merge_lists(out)
    assert not out.exists()


@pytest.mark.parametrize("text", ["", "1", "0/2", "3/2", "1/0", "-1/2", "1/2/3", "a/b", "1/99999999"])
def test_a_shard_is_i_of_n(text: str) -> None:
    with pytest.raises(InputError, match="--shard"):
        Shard.parsed(text)


def test_launchers_name_the_shard() -> None:
    assert Shard.parsed("2/4") == Shard.of_environment({"RANK": "1", "WORLD_SIZE": "4"}) == Shard(1, 4)
    assert Shard.of_environment({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "3"}) == Shard(0, 3)
    alone = [{}, {"RANK": "0", "WORLD_SIZE": "1"}, {"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}]  # sbatch, without srun
    assert [Shard.of_environment(environment) for environment in alone] == [None] * 3


def test_parts_cover_everything_once() -> None:
    for n in range(20):
        for count in range(1, 8):
            taken = [i for index in range(count) for i in range(*Shard(index, count).bounds(n))]
            assert taken == list(range(n))
