"""What is to be transcribed, in which order, and where it lies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_recogniser import write_lines

from hf_cudagraph_asr.manifest import Query, audio_in, json_lines, queries_in, read_manifest

json_objects = st.dictionaries(
    st.text(max_size=8),
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    max_size=4,
)


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_a_folder_is_searched_to_its_leaves_in_order(tmp_path: Path) -> None:
    names = ["b.wav", "a/z.FLAC", "a/b/c.ogg", "B.mp3", "c.opus"]
    touch(*(tmp_path / name for name in names))
    touch(*(tmp_path / name for name in ("notes.txt", "a/.hidden.wav", "wav")))
    (tmp_path / "folder.wav").mkdir()
    found = audio_in(tmp_path)
    assert found == sorted(tmp_path / name for name in names)
    assert queries_in([tmp_path]) == [Query(str(path), path) for path in found]


def test_a_folder_without_audio_is_refused(tmp_path: Path) -> None:
    touch(tmp_path / "notes.txt")
    with pytest.raises(ValueError, match=r"no audio in .* or below it: .*\.flac"):
        queries_in([tmp_path])


def test_sources_come_in_the_order_given(tmp_path: Path) -> None:
    touch(tmp_path / "one.wav", tmp_path / "folder/two.wav", tmp_path / "three.flac")
    manifest = write_lines(tmp_path / "lines.json", [{"audio_filepath": "three.flac"}])
    found = queries_in([manifest, tmp_path / "one.wav", tmp_path / "folder"])
    assert [query.path.name for query in found] == ["three.flac", "one.wav", "two.wav"]


def test_a_source_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file or folder .*missing\.wav"):
        queries_in([tmp_path / "missing.wav"])


def test_a_manifest_gives_paths_parts_and_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path / "data/in.wav", tmp_path / "data/sub/below.wav", tmp_path / "here/cwd.wav")
    monkeypatch.chdir(tmp_path / "here")
    manifest = write_lines(
        tmp_path / "data/manifest.jsonl",
        [
            {"audio_filepath": "in.wav", "duration": 1.5, "text": "two words", "speaker": 3},
            {"audio_filepath": "sub/below.wav", "offset": 0.5, "duration": 0.25},
            {"audio_filepath": str(tmp_path / "data/in.wav"), "text": None},
            {"audio_filepath": "cwd.wav"},
            {"audio_filepath": "nowhere.wav", "text": ""},
        ],
    )
    assert read_manifest(manifest) == [
        Query("in.wav", tmp_path / "data/in.wav", reference="two words"),
        Query("sub/below.wav", tmp_path / "data/sub/below.wav", 0.5, 0.25),
        Query(str(tmp_path / "data/in.wav"), tmp_path / "data/in.wav"),
        Query("cwd.wav", Path("cwd.wav")),
        Query("nowhere.wav", tmp_path / "data/nowhere.wav", reference=""),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no lines"),
        (b"\n  \n", "has no lines"),
        (b'{"audio_filepath": "a.wav"}\n{"duration": 1}\n', "line 2 has duration: expected audio"),
        (b"{}\n", "line 1 has nothing"),
        (b'{"audio_filepath": 3}\n', "line 1 has audio_filepath: expected audio_filepath, the"),
        (b"\n[]\n", r"line 2 is \[\]: expected an object"),
        (b'{"audio_filepath": "a.wav"\n', "line 1 is no JSON"),
        (b'{"audio_filepath": "\xff.wav"}\n', "line 1 is no JSON"),
        (b"[" * 100_000, "line 1 is no JSON"),
        (b'{"audio_filepath": "a.wav", "text": 4}\n', "has the text 4: expected a string"),
        (b'{"audio_filepath": "a.wav", "offset": -1}\n', "has the offset -1: expected seconds"),
        (b'{"audio_filepath": "a.wav", "duration": NaN}\n', "has the duration nan"),
        (b'{"audio_filepath": "a.wav", "duration": true}\n', "has the duration True"),
        (b'{"audio_filepath": "a.wav", "duration": "1.5"}\n', "has the duration '1.5'"),
    ],
)
def test_a_manifest_that_is_none_is_refused_by_line(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "lines.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=rf"lines\.jsonl.* ?{message}"):
        read_manifest(tmp_path / "lines.jsonl")


@given(
    st.lists(json_objects, min_size=1, max_size=6),
    st.sampled_from(["", "\ufeff"]),
    st.sampled_from(["\n", "\r\n", "\n\n"]),
)
def test_lines_come_back_with_their_numbers(
    tmp_path_factory: pytest.TempPathFactory, values: list[Any], mark: str, end: str
) -> None:
    path = tmp_path_factory.mktemp("lines") / "lines.jsonl"
    text = "".join(json.dumps(value, ensure_ascii=False) + end for value in values)
    path.write_bytes((mark + text).encode("utf-8"))
    step = end.count("\n")
    assert list(json_lines(path)) == [(i * step + 1, value) for i, value in enumerate(values)]
