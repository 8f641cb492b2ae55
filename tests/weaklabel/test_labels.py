"""Votes in files to patterns and labels in files: what is added up, kept, written and refused."""

import json
import math

import numpy as np
import polars as pl
import pytest

from weaklabel import MajorityVote, Patterns, WeakLabelError, apply
from weaklabel.functions import asr_confidence, dwell, rapid_repetition
from weaklabel.labels import count_files, gold_of_files, label_files
from weaklabel.models import load_model
from weaklabel.runs import apply_files, read_metadata
from weaklabel.testing import synthetic_query_log

FUNCTIONS = [asr_confidence, dwell, rapid_repetition]


@pytest.fixture
def log():
    return synthetic_query_log(120, seed=7)


@pytest.fixture
def folder(log, tmp_path, monkeypatch):
    """The current folder, with a log, its votes in a file and in parts, and their patterns."""
    monkeypatch.chdir(tmp_path)
    log.write_parquet("queries.parquet")
    apply_files(FUNCTIONS, "queries.parquet", "votes.parquet", keep=["transcript"], progress=False)
    apply_files(FUNCTIONS, "queries.parquet", "parts", partitions=3, progress=False)
    count_files(["votes.parquet"]).save("patterns.parquet")
    return tmp_path


@pytest.fixture
def model(log):
    return MajorityVote().fit(apply(FUNCTIONS, log))


def test_a_file_a_folder_and_a_glob_of_votes_have_the_patterns_of_the_frame(log, folder):
    expected = Patterns.count(apply(FUNCTIONS, log)).ordered(
        sorted(function.name for function in FUNCTIONS)
    )
    for path in ("votes.parquet", "parts", "vote?.parquet", "patterns.parquet"):
        seen = count_files([path])
        assert seen.rows == 120
        ordered = seen.ordered(expected.functions)
        assert sorted(zip(ordered.votes.tolist(), ordered.counts, strict=True)) == sorted(
            zip(expected.votes.tolist(), expected.counts, strict=True)
        )


def test_patterns_carry_families_and_identities_through_files(folder):
    for path in ("votes.parquet", "patterns.parquet"):
        patterns = count_files([path])
        families = dict(zip(patterns.functions, patterns.families, strict=True))
        assert families == {
            "asr_confidence": None,
            "dwell": "behaviour",
            "rapid_repetition": "behaviour",
        }
    (about,) = (
        entry for entry in read_metadata("votes.parquet")["functions"] if entry["name"] == "dwell"
    )
    assert dwell.source_hash in about["identity"]


def test_votes_and_patterns_are_added_up(log, folder):
    votes = pl.read_parquet("votes.parquet")
    metadata = {"weaklabel": pl.read_parquet_metadata("votes.parquet")["weaklabel"]}
    votes.head(50).write_parquet("a.parquet", metadata=metadata)
    votes.tail(70).write_parquet("b.parquet", metadata=metadata)
    count_files(["a.parquet"]).save("a-patterns.parquet")
    both = count_files(["a-patterns.parquet", "b.parquet"])
    whole = count_files(["votes.parquet"])
    assert both.rows == 120
    assert dict(zip(map(tuple, both.votes.tolist()), both.counts, strict=True)) == dict(
        zip(map(tuple, whole.votes.tolist()), whole.counts, strict=True)
    )


@pytest.mark.parametrize("again", ["votes.parquet", "./votes.parquet", "linked.parquet"])
def test_a_file_is_not_counted_twice(folder, again):
    (folder / "linked.parquet").symlink_to("votes.parquet")
    with pytest.raises(WeakLabelError, match="is given 2 times"):
        count_files(["votes.parquet", again])


@pytest.mark.parametrize("out", ["labels.parquet", "labels.csv", "labels.jsonl"])
def test_labels_are_the_votes_with_weight_and_label(folder, model, out):
    summary = label_files("votes.parquet", model, out, 0.6)
    read = {"parquet": pl.read_parquet, "csv": pl.read_csv, "jsonl": pl.read_ndjson}
    labels = read[out.partition(".")[2]](out)
    votes = pl.read_parquet("votes.parquet")
    # CSV has no empty text: it is told from null by its quotation marks.
    assert labels.select(votes.columns).with_columns(pl.col("^lf:.*$").cast(pl.Int8)).equals(votes)
    expected = model.weights(votes.select(f"lf:{name}" for name in model.functions).to_numpy())
    np.testing.assert_allclose(labels["weight"], expected, rtol=1e-12)
    assert labels["label"].to_list() == [1 if weight >= 0.6 else -1 for weight in expected]
    assert (summary.rows, summary.accepted) == (120, int((expected >= 0.6).sum()))
    assert summary.mean_weight == pytest.approx(expected.mean())


def test_labels_of_a_folder_are_those_of_the_file(folder, model):
    label_files("votes.parquet", model, "a.parquet")
    label_files("parts", model, "b.parquet")
    label_files("parts/*.parquet", model, "c.parquet")
    columns = ["query_id", *(f"lf:{name}" for name in model.functions), "weight", "label"]
    first, *others = (
        pl.read_parquet(path).select(columns).sort("query_id")
        for path in ("a.parquet", "b.parquet", "c.parquet")
    )
    assert all(first.equals(other) for other in others)


def test_labels_say_by_which_functions_model_and_threshold(folder, model):
    label_files("votes.parquet", model, "labels.parquet", 0.25)
    about = json.loads(pl.read_parquet_metadata("labels.parquet")["weaklabel"])
    assert about["functions"] == read_metadata("votes.parquet")["functions"]
    assert (about["model"], about["threshold"]) == ("majority", 0.25)
    assert about["model"] in json.loads(model.save("model.json").read_text()).values()
    assert load_model("model.json").functions == model.functions


@pytest.mark.parametrize("out", ["labels.parquet", "labels.csv", "labels.jsonl"])
def test_no_votes_have_no_labels(folder, model, out):
    pl.read_parquet("votes.parquet").clear().write_parquet("none.parquet")
    summary = label_files("none.parquet", model, out)
    assert (summary.rows, summary.accepted) == (0, 0)
    assert math.isnan(summary.mean_weight)


def test_what_cannot_be_labelled_is_told_and_leaves_nothing(folder, model):
    label_files("votes.parquet", model, "labels.parquet")
    before = sorted(folder.iterdir())
    for path, message in {
        "patterns.parquet": "patterns.parquet holds patterns",
        "labels.parquet": r"columns \['weight', 'label'\] already",
        "queries.parquet": "functions that the votes lack",
    }.items():
        with pytest.raises(WeakLabelError, match=message):
            label_files(path, model, "new.parquet")
    with pytest.raises(FileNotFoundError):
        label_files("absent.parquet", model, "new.parquet")
    with pytest.raises(WeakLabelError, match=r"new\.xlsx"):
        label_files("votes.parquet", model, "new.xlsx")
    with pytest.raises(FileNotFoundError):
        label_files("votes.parquet", model, "absent/new.parquet")
    assert sorted(folder.iterdir()) == before


def gold(*rows):
    pl.DataFrame(list(rows), schema=["query_id", "transcript"], orient="row").write_csv("gold.csv")
    return "gold.csv"


def test_gold_is_judged_by_the_log_or_by_the_votes_own_transcripts(log, folder):
    texts = dict(log.drop_nulls("transcript").select("query_id", "transcript").iter_rows())
    texts = {query: text for query, text in texts.items() if text}
    (right, text), (wrong, _) = list(texts.items())[:2]
    checked = gold((right, text.upper() + "!"), (wrong, "something else"))
    for queries in ("queries.parquet", None):
        found = gold_of_files(["votes.parquet"], queries, checked)
        assert (found.right.rows, found.wrong.rows) == (1, 1)
    loose = gold_of_files(["parts"], "queries.parquet", checked, threshold=9)
    assert (loose.right.rows, loose.wrong.rows) == (2, 0)
    plain = gold_of_files(["parts"], "queries.parquet", checked, normalizer="none")
    assert (plain.right.rows, plain.wrong.rows) == (0, 2)


def test_gold_that_does_not_fit_is_told(log, folder):
    known = log.drop_nulls("transcript")["query_id"][0]
    for votes, queries, checked, message in (
        ("votes.parquet", "queries.parquet", [(known, "a"), (999, "b")], r"1 of 2 .* \[999\]"),
        ("votes.parquet", "queries.parquet", [("q1", "a")], "Int64 in the query log and String"),
        ("votes.parquet", None, [("q1", "a")], "Int64 in the query log and String"),
        ("parts", None, [(known, "a")], "--queries"),
        ("patterns.parquet", "queries.parquet", [(known, "a")], "holds patterns"),
    ):
        with pytest.raises(WeakLabelError, match=message):
            gold_of_files([votes], queries, gold(*checked))
