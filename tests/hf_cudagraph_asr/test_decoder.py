"""Words of a lexicon and a language model, in the transcriber, the command and the server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jiwer
import pytest
import torch
import transformers
from served import local_gateway, transcribe
from tiny_recognizer import read_lines, save_recognizer, waveform

from hf_cudagraph_asr import Transcriber, Transcript, WordDecoder, read_audio
from hf_cudagraph_asr.cli import main
from hf_cudagraph_asr.serve import ModelSettings

pytestmark = pytest.mark.skipif(
    sys.version_info >= (3, 13), reason="flashlight-text has no wheels for Python 3.13"
)
TINYVOICE = Path(__file__).parents[2] / "docs/examples/tinyvoice"
HEAD = "\\data\\\nngram 1={}\nngram 2=1\n\n\\1-grams:\n-9\t<unk>\n-9\t<s>\t0\n-1\t</s>\n"


def arpa(path: Path, **logarithms: float) -> Path:
    """A language model of words by their decimal logarithms, whatever is before them."""
    lines = "".join(f"{value}\t{word}\t0\n" for word, value in logarithms.items())
    lines = HEAD.format(len(logarithms) + 3) + lines
    path.write_text(f"{lines}\n\\2-grams:\n-9\t<s> </s>\n\n\\end\\\n")
    return path


@pytest.fixture(scope="module")
def recordings() -> list[dict[str, Any]]:
    if not TINYVOICE.is_dir():
        pytest.skip("the package's tests run without its repository")
    return read_lines(TINYVOICE / "recordings/recordings.jsonl")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(TINYVOICE / "model")


@pytest.fixture(scope="module")
def lexicon(recordings: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that is said in the recordings."""
    words = sorted({word for one in recordings for word in one["text"].split()})
    path = tmp_path_factory.mktemp("lexicon") / "words.txt"
    path.write_text("\n".join(words))
    return path


def heard(recordings: Any, **options: Any) -> list[Transcript]:
    with Transcriber.from_pretrained(TINYVOICE / "model", device="cpu", **options) as transcriber:
        files = [TINYVOICE / "recordings" / one["file"] for one in recordings]
        rate = transcriber.sampling_rate
        return transcriber.transcribe([read_audio(file, rate) for file in files])


@pytest.fixture(scope="module")
def greedy(recordings: Any) -> list[Transcript]:
    return heard(recordings)


@pytest.fixture(scope="module")
def chosen(recordings: Any, lexicon: Path) -> list[Transcript]:
    return heard(recordings, lexicon=lexicon)


def errors(recordings: Any, found: list[Transcript]) -> int:
    told = jiwer.process_words([one["text"] for one in recordings], [one.text for one in found])
    return told.substitutions + told.deletions + told.insertions


def test_a_lexicon_corrects_what_is_spelled_badly(
    recordings: Any, lexicon: Path, greedy: list[Transcript], chosen: list[Transcript]
) -> None:
    assert 2 * errors(recordings, chosen) < errors(recordings, greedy)
    assert {word for one in chosen for word in one.text.split()} <= {*lexicon.read_text().split()}


def test_where_the_texts_agree_so_do_times_and_confidences(
    greedy: list[Transcript], chosen: list[Transcript]
) -> None:
    same = [pair for pair in zip(greedy, chosen, strict=True) if pair[0].text == pair[1].text]
    assert len(same) >= 20
    for one, two in same:
        assert [word.text for word in two.words] == one.text.split()
        for own, other in zip(one.words, two.words, strict=True):
            assert own.start == pytest.approx(other.start)
            assert own.end == pytest.approx(other.end, abs=0.031)  # a frame
            assert own.confidence == pytest.approx(other.confidence, abs=1e-4)


def spoken(tokenizer: Any, *frames: str) -> torch.Tensor:
    """Log-probabilities in which the tokens of a frame are equally likely."""
    numbers = tokenizer.get_vocab()
    found = torch.full((len(frames), len(numbers)), -20.0)
    for row, frame in enumerate(frames):
        found[row, [numbers[token] for token in frame.split("/")]] = 5.0
    return found.log_softmax(dim=-1)


CAT_OR_COT = ("<pad>", "c", "<pad>", "a/o", "t", "t", "<pad>")


def test_a_language_model_decides_between_words_by_its_weight(
    tokenizer: Any, tmp_path: Path
) -> None:
    row = spoken(tokenizer, *CAT_OR_COT)
    for likelier, other in (("cat", "cot"), ("cot", "cat")):
        model = arpa(tmp_path / "lm.arpa", **{likelier: -0.5, other: -2.0})
        assert WordDecoder(tokenizer, lm=model)(row) == [
            (likelier, 1, 6, pytest.approx(0.5, abs=1e-3))
        ]
    model.write_text(f"\n\n{model.read_text()}")  # as some toolkits write it
    unsure = row.clone()
    unsure[3, tokenizer.get_vocab()["a"]] += 1.0  # natural: less than a decimal 1.5, more than .15
    assert WordDecoder(tokenizer, lm=model)(unsure)[0][0] == "cot"
    assert WordDecoder(tokenizer, lm=model, lm_weight=0.1)(unsure)[0][0] == "cat"
    assert WordDecoder(tokenizer, lm=model)(row[:0]) == []
    assert WordDecoder(tokenizer, lm=model)(row[:4]) == []  # within the word


def test_what_names_no_words_is_refused(
    tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "lm.binary").write_bytes(b"mmap lm http://kheafield.com/code format version 5\n\0")
    (tmp_path / "one.arpa").write_text(
        "\\data\\\nngram 1=2\n\n\\1-grams:\n-1\t<s>\n-1\tcat\n\n\\end\\\n"
    )
    (tmp_path / "upper").write_text("CAT\nCOT\n")
    (tmp_path / "mixed").write_text("\ufeffcat\r\nCOT\r\nähm\r\n", encoding="utf-8")
    (tmp_path / "blank").write_text("\n \n")
    (tmp_path / "utf16").write_text("cat", encoding="utf-16")
    (tmp_path / "spelled").write_text("cat\ncot\tc o t |\n")
    (tmp_path / "endless").write_text("a" * 100_000)
    for options, error, message in (
        ({}, ValueError, "no language model says which words there are: give a lexicon"),
        (
            {"lm": tmp_path / "lm.binary"},
            ValueError,
            r"binary is no ARPA file that says which words there are: give a",
        ),
        ({"lexicon": tmp_path / "upper"}, ValueError, r"2 of 2 words have letters .* \(CAT, COT\)"),
        ({"lexicon": tmp_path / "none"}, OSError, "none"),
        (
            {"lm": tmp_path / "one.arpa"},
            ValueError,
            r"one\.arpa cannot be read as n-grams, of at least two words: .*bigram",
        ),
        ({"lexicon": tmp_path / "blank"}, ValueError, "blank holds no words, expected one a line"),
        ({"lexicon": tmp_path / "utf16"}, ValueError, "utf16 is no text in UTF-8: convert it"),
        (
            {"lexicon": tmp_path / "spelled"},
            ValueError,
            r"line 2 of .*spelled is 'cot\\tc o t \|', expected a word a line",
        ),
        ({"lexicon": tmp_path / "endless"}, ValueError, "line 1 of .*expected a word a line"),
        (
            {"lexicon": tmp_path / "mixed", "lm": arpa(tmp_path / "dogs.arpa", dog=-1.0)},
            ValueError,
            r"dogs\.arpa knows none of the 3 words of .*mixed, such as 'cat'",
        ),
        *(
            (
                {"lexicon": tmp_path / "mixed", "lm_weight": weight},
                ValueError,
                "lm_weight is .*0 to",
            )
            for weight in (-1, 1e30, float("inf"), float("nan"))
        ),
    ):
        with pytest.raises(error, match=message):  # type: ignore[call-overload]
            WordDecoder(tokenizer, **options)  # type: ignore[arg-type]
    assert not caplog.records
    found = WordDecoder(tokenizer, lexicon=tmp_path / "mixed")
    assert found(spoken(tokenizer, *CAT_OR_COT))[0][0] == "cat"
    assert "2 of 3 words have letters that the tokenizer lacks (COT, ähm)" in caplog.text


@pytest.mark.parametrize("missing", ["torchaudio.models.decoder", "flashlight.lib.text"])
def test_without_the_extra_it_says_what_to_install(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=r'pip install "hf-cudagraph-asr\[lm\]"'):
        WordDecoder(tokenizer, lexicon="words.txt")


def test_any_function_may_decode_and_chunks_are_refused(tmp_path: Path) -> None:
    seen: list[tuple[int, ...]] = []

    def decode(row: torch.Tensor) -> list[tuple[str, int, int, float | None]]:
        seen.append(tuple(row.shape))
        assert row.exp().sum(dim=-1) == pytest.approx(1.0, abs=1e-4)
        return [("yes", 0, 2, None), ("no", 2, len(row), 0.5)]

    folder = save_recognizer(tmp_path)
    with Transcriber.from_pretrained(folder, device="cpu", chunk_length_s=0.9) as transcriber:
        plain = transcriber.transcribe([waveform(300), waveform(512)])
        transcriber.decoder = decode
        found = transcriber.transcribe([waveform(300), waveform(512)])
        assert [one.text for one in found] == ["yes no", "yes no"]
        assert seen[0][0] < seen[1][0]
        assert found[1].words[1].end == pytest.approx(seen[1][0] * found[1].words[0].end / 2)
        assert found[1].words[1].confidence == 0.5
        with pytest.raises(ValueError, match=r"row 1 has 2.0 s, and a decoder takes no chunks of"):
            transcriber.transcribe([waveform(300), waveform(2000)])
        transcriber.decoder = None
        assert [one.text for one in transcriber.transcribe([waveform(300)])] == [plain[0].text]


def test_the_command_and_the_server_take_a_lexicon(
    recordings: Any,
    lexicon: Path,
    greedy: list[Transcript],
    chosen: list[Transcript],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at = next(at for at, one in enumerate(greedy) if one.text != chosen[at].text)
    file = TINYVOICE / "recordings" / recordings[at]["file"]
    model, out = str(TINYVOICE / "model"), tmp_path / "out.jsonl"
    command = ["transcribe", str(file), "--model", model, "--device", "cpu"]
    assert main([*command, "--lexicon", str(lexicon)]) == 0
    assert capsys.readouterr().out == f"{chosen[at].text}\n"
    assert main([*command, "--lexicon", str(lexicon), "--out", str(out)]) == 0
    assert main([*command, "--out", str(out)]) == 2  # not mixed with texts without it
    changed = tmp_path / "words.txt"
    changed.write_text(lexicon.read_text())
    words = ["--lexicon", str(changed), "--out", str(tmp_path / "changed.jsonl")]
    assert main([*command, *words]) == main([*command, *words]) == 0
    changed.write_text("other\nwords\n")
    assert main([*command, *words]) == 2  # nor with those of another content of the file
    assert main([*command, "--lm-weight", "2"]) == 2
    assert "there is no lm" in capsys.readouterr().err
    assert read_lines(out)[0]["text"] == chosen[at].text

    settings = ModelSettings(model=model, device="cpu", lexicon=str(lexicon))
    response = transcribe(local_gateway(settings), file.read_bytes())
    assert response.json()["text"] == chosen[at].text
