"""weaklabel's export for Lhotse, read back by lhotse.

Not in tests/weaklabel: lhotse requires torch, and weaklabel's tests do without it.
"""

import polars as pl
import pytest
import soundfile
from lhotse import CutSet, RecordingSet, SupervisionSet
from lhotse.qa import validate_recordings_and_supervisions

from weaklabel.export import export

RATE = 8_000
TRANSCRIPTS = [
    "turn it on",
    "tab\tand\nnew line\r\n",
    "line\u2028and\u2029paragraph\x85next",
    "שלום עולם \u202eevil",
    "📺👨‍👩‍👧 emoji",
    "",
    'quote " backslash \\ null \x00 bell \x07',
]
SAMPLES = [800 + 80 * number for number in range(len(TRANSCRIPTS))]


@pytest.fixture
def labels(tmp_path):
    """Labeled queries, each with its recording."""
    count = len(TRANSCRIPTS)
    paths = [tmp_path / f"{number} audio.wav" for number in range(count)]
    for path, samples in zip(paths, SAMPLES, strict=True):
        soundfile.write(path, [0.0] * samples, RATE)
    return pl.DataFrame(
        {
            "query_id": [f"q{number}" for number in range(count)],
            "audio": [str(path) for path in paths],
            "transcript": TRANSCRIPTS,
            "weight": [(number + 1) / (count + 1) for number in range(count)],
            "label": pl.Series([1] * count, dtype=pl.Int8),
            "duration": [samples / RATE for samples in SAMPLES],
            "sampling_rate": [RATE] * count,
            "session_id": [f"s{number // 2}" for number in range(count)],
        }
    )


def read(folder):
    recordings = RecordingSet.from_file(folder / "recordings.jsonl.gz")
    supervisions = SupervisionSet.from_file(folder / "supervisions.jsonl.gz")
    validate_recordings_and_supervisions(recordings, supervisions, read_data=True)
    return recordings, supervisions


@pytest.mark.parametrize("read_audio", [True, False])
def test_lhotse_reads_the_manifests(labels, tmp_path, read_audio):
    given = labels.drop("duration", "sampling_rate") if read_audio else labels
    export(given, tmp_path / "out", "lhotse", read_audio=read_audio)
    recordings, supervisions = read(tmp_path / "out")
    cuts = list(CutSet.from_manifests(recordings=recordings, supervisions=supervisions))
    spoken = [cut.supervisions[0] for cut in cuts]
    assert [one.id for one in spoken] == labels["query_id"].to_list()
    assert [one.text for one in spoken] == TRANSCRIPTS
    assert [one.speaker for one in spoken] == labels["session_id"].to_list()
    assert [one.custom["weight"] for one in spoken] == labels["weight"].to_list()
    assert cuts[1].load_audio().shape == (1, SAMPLES[1])


def test_lhotse_knows_the_channels(labels, tmp_path):
    soundfile.write(labels["audio"][0], [[0.0, 0.1]] * SAMPLES[0], RATE)
    export(labels.head(1), tmp_path / "out", "lhotse", read_audio=True)
    recordings, _ = read(tmp_path / "out")
    assert [recording.num_channels for recording in recordings] == [2]
