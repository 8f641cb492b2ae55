"""Votes in files to patterns and labels in files: what is added up, kept, written and refused."""

import json
import math
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from weaklabel import LabelModel, MajorityVote, Patterns, WeakLabelError, apply
from weaklabel.errors import WeakLabelWarning
from weaklabel.functions import asr_confidence, dwell, rapid_repetition, rarity
from weaklabel.labels import count_files, gold_of_files, label_files
from weaklabel.models import load_model, weights
from weaklabel.runs import apply_files, read_metadata
from weaklabel.testing import synthetic_query_log
from weaklabel.votes import MISSING

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
    for path in ("votes.parquet", "parts", "patterns.parquet"):
        patterns = count_files([path]).ordered([function.name for function in FUNCTIONS])
        assert patterns.families == tuple(function.family for function in FUNCTIONS)
        assert patterns.identities == tuple(function.identity() for function in FUNCTIONS)
        assert patterns.log_rows == (None, None, None)


def test_the_rows_that_log_wide_functions_looked_at_are_carried_and_compared(log, folder):
    for path, rows in (("day-large.parquet", 120), ("day-small.parquet", 40)):
        log.head(rows).write_parquet("queries.parquet")
        apply_files([rarity], "queries.parquet", path, progress=False)
    assert count_files(["day-large.parquet"]).log_rows == (120,)
    with pytest.warns(WeakLabelWarning, match="40 to 120 rows.*--reference"):
        assert count_files(["day-large.parquet", "day-small.parquet"]).rows == 160
    with pytest.warns(WeakLabelWarning, match="40 to 120 rows"):
        assert count_files(["day-*.parquet"]).rows == 160
    with warnings.catch_warnings(action="ignore"):  # one function is not much of a model
        model = LabelModel(prior=0.7).fit(count_files(["day-large.parquet"]))
    assert label_files("day-large.parquet", model, "labels.parquet").rows == 120
    with pytest.warns(WeakLabelWarning, match="'rarity'.*120 rows.*40 now.*--reference"):
        label_files("day-small.parquet", model, "labels.parquet")


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
    with pytest.raises(WeakLabelError, match=r"is given 2 times: give it once"):
        count_files(["votes.parquet", again])


@pytest.mark.parametrize("out", ["labels.parquet", "labels.csv", "labels.jsonl"])
def test_labels_are_the_votes_with_weight_and_label(folder, model, out):
    summary = label_files("votes.parquet", model, out, 0.6)
    read = {"parquet": pl.read_parquet, "csv": pl.read_csv, "jsonl": pl.read_ndjson}
    labels = read[out.partition(".")[2]](out)
    votes = pl.read_parquet("votes.parquet")
    # CSV has no empty text: it is told from null by its quotation marks.
    assert labels.select(votes.columns).with_columns(pl.col("^lf:.*$").cast(pl.Int8)).equals(votes)
    cast = votes.select(pl.col(f"lf:{name}").fill_null(MISSING) for name in model.functions)
    expected = weights(model, cast.to_numpy())
    np.testing.assert_allclose(labels["weight"], expected, rtol=1e-12)
    assert labels["label"].to_list() == [1 if weight >= 0.6 else -1 for weight in expected]
    assert (summary.rows, summary.accepted) == (120, int((expected >= 0.6).sum()))
    assert summary.mean_weight == pytest.approx(expected.mean())
    assert summary.without_input == (cast.to_numpy() == MISSING).all(axis=1).sum()


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


def test_queries_without_any_vote_are_counted_apart(log, folder, model):
    votes = pl.read_parquet("votes.parquet")
    gone = pl.when(pl.int_range(pl.len()) < 7).then(None).otherwise(pl.col("^lf:.*$"))
    before = label_files("votes.parquet", model, "labels.parquet").without_input
    assert before == votes.filter(pl.all_horizontal(pl.col("^lf:.*$").is_null())).height
    votes.with_columns(gone.name.keep()).write_parquet("gone.parquet")
    rest = votes.tail(-7).filter(pl.all_horizontal(pl.col("^lf:.*$").is_null())).height
    assert label_files("gone.parquet", model, "labels.parquet").without_input == rest + 7


class Strict:
    """A plugin's model that knows of no missing votes."""

    functions = tuple(function.name for function in FUNCTIONS)

    def label(self, frame, threshold=0.5):
        votes = [pl.col(f"lf:{name}") for name in self.functions]
        assert not frame.select(votes).null_count().collect().sum_horizontal().item()
        return frame.with_columns(weight=pl.lit(0.5), label=pl.lit(1, pl.Int8))


def test_a_model_that_knows_no_missing_votes_sees_abstains_and_the_labels_keep_them(folder):
    label_files("votes.parquet", Strict(), "labels.parquet")
    votes = pl.read_parquet("votes.parquet")
    assert sum(votes.null_count().row(0))
    assert pl.read_parquet("labels.parquet").drop("weight", "label").equals(votes)


@pytest.mark.parametrize("given", ["votes.parquet", "parts", "vote?.parquet"])
def test_votes_of_changed_functions_are_refused_by_name(folder, given):
    changed = [asr_confidence.with_parameters(high=0.5), dwell, rapid_repetition]
    apply_files(changed, "queries.parquet", "changed.parquet", progress=False)
    model = MajorityVote().fit(count_files(["changed.parquet"]))
    with pytest.raises(WeakLabelError, match=r"asr_confidence \(high 0.5 → 0.9\).*--allow-changed"):
        label_files(given, model, "labels.parquet")
    with pytest.warns(WeakLabelWarning, match=r"asr_confidence \(high 0.5 → 0.9\)"):
        assert label_files(given, model, "labels.parquet", allow_changed=True).rows == 120


def test_each_file_of_a_glob_is_compared_with_the_model(folder):
    changed = [asr_confidence.with_parameters(high=0.5), dwell, rapid_repetition]
    model = MajorityVote().fit(count_files(["votes.parquet"]))
    apply_files(changed, "queries.parquet", "votes2.parquet", progress=False)
    with pytest.raises(WeakLabelError, match=r"asr_confidence \(high 0.9 → 0.5\)"):
        label_files("votes*.parquet", model, "labels.parquet")
    with pytest.raises(WeakLabelError, match=r"two functions 'asr_confidence': high 0.9 → 0.5"):
        count_files(["votes*.parquet"])


@pytest.mark.parametrize("out", ["labels.parquet", "labels.csv", "labels.jsonl"])
def test_no_votes_have_no_labels(folder, model, out):
    pl.read_parquet("votes.parquet").clear().write_parquet("none.parquet")
    summary = label_files("none.parquet", model, out)
    assert (summary.rows, summary.accepted) == (0, 0)
    assert math.isnan(summary.mean_weight)


def test_what_cannot_be_labeled_is_refused_and_leaves_nothing(folder, model):
    label_files("votes.parquet", model, "labels.parquet")
    before = sorted(folder.iterdir())
    for path, message in {
        "patterns.parquet": "patterns.parquet holds patterns",
        "labels.parquet": r"columns \['weight', 'label'\] already",
        "queries.parquet": "no columns of votes",
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
        assert found.right().tolist() == [True, False]
        assert (found.patterns().right.rows, found.patterns().wrong.rows) == (1, 1)
    assert gold_of_files(["parts"], "queries.parquet", checked).right(9).all()
    assert not gold_of_files(["parts"], "queries.parquet", checked, "none").right().any()


def test_gold_that_does_not_fit_is_refused(log, folder):
    known = log.drop_nulls("transcript")["query_id"][0]
    for votes, queries, checked, message in (
        ("votes.parquet", "queries.parquet", [("q1", "a")], "none of the 1 gold queries"),
        ("votes.parquet", None, [("q1", "a")], "none of the 1 gold queries"),
        ("parts", None, [(known, "a")], "--queries"),
        ("patterns.parquet", "queries.parquet", [(known, "a")], "holds patterns"),
    ):
        with pytest.raises(WeakLabelError, match=message):
            gold_of_files([votes], queries, gold(*checked))


def damage(path, column):
    """Overwrite where a column of a Parquet file begins, in the copy damaged.parquet."""
    content = bytearray(Path(path).read_bytes())
    group = pq.read_metadata(path).row_group(0)
    chunks = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    start = chunks[column].dictionary_page_offset or chunks[column].data_page_offset
    content[start : start + 40] = b"\xff" * 40
    Path("damaged.parquet").write_bytes(content)


@pytest.mark.parametrize("out", ["labels.parquet", "labels.csv"])
@pytest.mark.parametrize("column", ["lf:dwell", "transcript"])
def test_a_broken_page_of_votes_is_no_fault_of_the_labels(out, column, model, folder):
    damage("votes.parquet", column)
    with pytest.raises(WeakLabelError, match=r"^damaged\.parquet cannot be read: parquet: "):
        label_files("damaged.parquet", model, out)
    assert not Path(out).exists()


def test_gold_names_the_votes_or_the_log_with_a_broken_page(log, folder):
    known = log.drop_nulls("transcript")["query_id"][0]
    damage("votes.parquet", "transcript")
    with pytest.raises(WeakLabelError, match=r"^damaged\.parquet cannot be read: parquet: "):
        gold_of_files(["damaged.parquet"], None, gold((known, "a")))
    damage("queries.parquet", "transcript")
    with pytest.raises(WeakLabelError, match=r"^damaged\.parquet cannot be read: parquet: "):
        gold_of_files(["parts"], "damaged.parquet", gold((known, "a")))


FULL = """
    import resource, signal, sys
    from weaklabel.cli import main

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, 2_000))
    sys.exit(main(["label", "votes.parquet", "--model", "model.json", "--out", sys.argv[1]]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
@pytest.mark.parametrize("out", ["labels.parquet", "labels.csv"])
def test_a_full_disk_is_no_fault_of_the_votes(out, model, folder):
    model.save("model.json")
    line = [sys.executable, "-c", textwrap.dedent(FULL), out]
    ended = subprocess.run(line, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "File too large" in ended.stderr
    assert "cannot be read" not in ended.stderr
    assert not Path(out).exists()
