"""Files that are whole or absent, where a name is a link."""

from pathlib import Path

from calrec_lite.files import atomic_path


def test_a_link_in_a_folders_place_is_replaced_and_what_it_led_to_stays(tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "kept").write_text("kept")
    (tmp_path / "export").symlink_to(tmp_path / "big")
    for text in ("first", "second"):
        with atomic_path(tmp_path / "export") as temporary:
            temporary.mkdir()
            (temporary / "file").write_text(text)
    assert not (tmp_path / "export").is_symlink()
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["big", "export"]
    assert (tmp_path / "export" / "file").read_text() == "second"
    assert (tmp_path / "big" / "kept").read_text() == "kept"
