"""The commands as a stranger runs them: what they write, and what they say of mistakes."""

import json
import os
import subprocess
import sys

import polars as pl
import pytest

import weaklabel
from weaklabel import LabelModel, Patterns, WeakLabelWarning
from weaklabel.cli import console, main
from weaklabel.labels import count_files
from weaklabel.testing import synthetic_query_log
from weaklabel.wer import compare

SEEN = ["asr_confidence", "dwell", "follow_up_action", "rapid_repetition"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a query log, and the current one."""
    log = synthetic_query_log(300, seed=5).with_columns(
        pl.col("transcript").fill_null(""),
        audio=pl.lit("silence.flac"),
        duration=pl.lit(1.5),
    )
    log.write_parquet(tmp_path / "queries.parquet")
    gold = log.filter(pl.col("query_id") < 60).select("query_id", "transcript")
    gold.with_columns(
        pl.when(pl.col("query_id") % 3 == 0)
        .then(pl.lit("something else"))
        .otherwise("transcript")
        .alias("transcript")
    ).write_parquet(tmp_path / "gold.parquet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WEAKLABEL_PLUGINS", raising=False)
    monkeypatch.setattr(console, "width", 200)
    return tmp_path


def run(*arguments):
    assert main([str(argument) for argument in arguments]) == 0


def apply(*more, out="votes.parquet"):
    run("apply", "queries.parquet", "--out", out, "--no-progress", *more)


def pipeline():
    apply()
    run("fit", "votes.parquet", "--out", "model.json", "--model", "majority")
    run("label", "votes.parquet", "--model", "model.json", "--out", "labels.parquet")


def test_a_log_becomes_labels(folder, capsys):
    pipeline()
    queries = pl.read_parquet("queries.parquet")
    labels = pl.read_parquet("labels.parquet")
    assert sorted(labels["query_id"]) == sorted(queries["query_id"])
    assert labels["weight"].is_between(0, 1).all()
    assert labels["label"].to_list() == [1 if w >= 0.5 else -1 for w in labels["weight"]]
    out = capsys.readouterr().out
    assert "rephrasing_edit_distance (on request)" in out
    assert "votes.parquet" in out


def test_labels_carry_where_they_come_from(folder):
    pipeline()
    about = json.loads(pl.read_parquet_metadata("labels.parquet")["weaklabel"])
    (dwell,) = (entry for entry in about["functions"] if entry["name"] == "dwell")
    assert (dwell["distribution"], dwell["version"]) == ("weaklabel", weaklabel.__version__)
    assert dwell["parameters"] == {"long": 60.0, "short": 5.0}
    assert (about["model"], about["threshold"]) == ("majority", 0.5)


def test_functions_are_chosen_and_set(folder):
    chosen = [word for name in ("dwell", "rarity") for word in ("--lf", name)]
    apply(*chosen, "--set", "dwell.long=0", "--keep", "transcript")
    votes = pl.read_parquet("votes.parquet")
    assert votes.columns == ["query_id", "transcript", "lf:dwell", "lf:rarity"]
    joined = votes.join(pl.read_parquet("queries.parquet"), on="query_id")
    known = joined.filter(pl.col("dwell") >= 5)
    assert (known["lf:dwell"] == 1).all()
    about = json.loads(pl.read_parquet_metadata("votes.parquet")["weaklabel"])
    assert about["functions"][0]["parameters"] == {"long": 0.0, "short": 5.0}


def test_several_parameters_of_a_function_are_set(folder):
    apply("--lf", "dwell", "--set", "dwell.long=1e9", "--set", "dwell.short=0.0")
    assert set(pl.read_parquet("votes.parquet")["lf:dwell"]) == {0, None}
    apply("--lf", "dwell", "--set", "dwell.long=1e9", "--set", "dwell.short=1e9")
    assert (pl.read_parquet("votes.parquet")["lf:dwell"] == -1).sum() > 200


def test_functions_come_from_a_file_of_ones_own(folder):
    (folder / "weaklabel_lfs.py").write_text(
        "import narwhals.stable.v2 as nw\n"
        "from weaklabel import accept_if, labeling_function\n"
        "@labeling_function(requires=['transcript'])\n"
        "def says_play():\n"
        "    '''Accept what begins with play.'''\n"
        "    return accept_if(nw.col('transcript').str.starts_with('play'))\n"
    )
    apply("--functions", "weaklabel_lfs.py", "--lf", "says_play")
    votes = pl.read_parquet("votes.parquet").join(pl.read_parquet("queries.parquet"), on="query_id")
    assert (votes["lf:says_play"] == 1).to_list() == [
        text.startswith("play") for text in votes["transcript"]
    ]


def test_plugins_are_listed_as_json(folder, capsys):
    run("plugins", "--json")
    listing = json.loads(capsys.readouterr().out)
    assert {function["name"] for function in listing["labeling_functions"]} > set(SEEN)
    assert {"label-model", "majority", "logistic"} <= {m["name"] for m in listing["label_models"]}
    assert {e["name"] for e in listing["exporters"]} == {"huggingface", "nemo", "lhotse", "kaldi"}
    (within,) = (
        function["parameters"]["within"]
        for function in listing["labeling_functions"]
        if function["name"] == "rapid_repetition"
    )
    assert within == "10s"
    run("plugins", "--json", "-p", "no:builtin")
    assert json.loads(capsys.readouterr().out)["labeling_functions"] == []


def test_plugins_are_listed_as_a_table_that_fits_a_terminal(folder, capsys, monkeypatch):
    monkeypatch.setattr(console, "width", 80)
    run("plugins")
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    # One row for all that comes with the package, though it is several plugins.
    assert out.count("│ weaklabel ") == 1
    (first,) = (line for line in out.splitlines() if "rephrasing_edit_distance" in line)
    assert "Reject a query" in first
    cells = [line.split("│")[1].strip() for line in out.splitlines() if line.startswith("│")]
    after = cells.index("rephrasing_edit_distance")
    assert cells[after + 1].startswith("family ")
    assert cells[after + 2 : after + 5] == ["scope session", "row-wise", "on request"]
    assert "scope log" in cells
    assert "label models: label-model, majority, logistic\n" in out


def test_a_plugin_is_listed_with_how_many_functions_it_has(folder, capsys, monkeypatch):
    info = folder / "acme-0.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 0.3\n")
    (info / "entry_points.txt").write_text("[weaklabel]\nmain = acme_lfs\n")
    (folder / "acme_lfs.py").write_text(
        "import weaklabel\n"
        "from weaklabel import Exporter, labeling_function\n"
        "@labeling_function(rowwise=True)\n"
        "def one(row):\n"
        "    return 0\n"
        "@weaklabel.hookimpl\n"
        "def weaklabel_labeling_functions(register):\n"
        "    register(one)\n"
        "@weaklabel.hookimpl\n"
        "def weaklabel_exporters(register):\n"
        "    register(Exporter('lines', 'lines', (), print))\n"
    )
    monkeypatch.syspath_prepend(folder)
    run("plugins")
    out = capsys.readouterr().out
    assert [
        cell.strip()
        for cell in next(line for line in out.splitlines() if "acme" in line).split("│")[1:-1]
    ] == ["acme", "0.3", "main (1 labeling function, 1 exporter)"]
    assert "exporters: huggingface, nemo, lhotse, kaldi, lines" in out
    sys.modules.pop("acme_lfs")


def test_progress_is_for_terminals(folder, capsys):
    run("apply", "queries.parquet", "--out", "votes.parquet")
    assert capsys.readouterr().err == ""


def test_patterns_of_two_sites_fit_as_all_rows_do(folder):
    queries = pl.read_parquet("queries.parquet")
    apply()
    votes = pl.read_parquet("votes.parquet")
    assert votes.height == queries.height
    metadata = {"weaklabel": pl.read_parquet_metadata("votes.parquet")["weaklabel"]}
    votes.head(120).write_parquet("a.parquet", metadata=metadata)
    votes.tail(180).write_parquet("b.parquet", metadata=metadata)
    run("patterns", "a.parquet", "--out", "counts.parquet")
    assert "query_id" not in pl.read_parquet("counts.parquet").columns
    run("fit", "votes.parquet", "--out", "whole.json", "--model", "majority")
    run("fit", "counts.parquet", "b.parquet", "--out", "sites.json", "--model", "majority")
    assert json.loads((folder / "whole.json").read_text()) == json.loads(
        (folder / "sites.json").read_text()
    )


def test_gold_anchors_a_model(folder, capsys):
    apply()
    run(
        *("fit", "votes.parquet", "--out", "model.json", "--model", "logistic"),
        *("--gold", "gold.parquet", "--queries", "queries.parquet"),
    )
    assert "60 of them checked" in capsys.readouterr().out
    run("label", "votes.parquet", "--model", "model.json", "--out", "labels.csv")
    assert pl.read_csv("labels.csv").height == 300


def test_refused_rows_are_written_and_the_others_labeled(folder, capsys):
    queries = pl.read_parquet("queries.parquet")
    nameless = pl.when(pl.col("query_id") >= 7).then("transcript").alias("transcript")
    queries.with_columns(nameless).write_parquet("queries.parquet")
    assert main(["apply", "queries.parquet", "--out", "votes.parquet"]) == 2
    assert "'transcript' is null in 7 rows" in capsys.readouterr().err
    apply("--reject", "refused.csv")
    assert "7 of 300 rows refused" in capsys.readouterr().err
    assert pl.read_csv("refused.csv").height == 7
    assert pl.read_parquet("votes.parquet").height == 293


def test_a_second_recognizer_comes_as_a_table(folder):
    queries = pl.read_parquet("queries.parquet").drop("second_transcript")
    queries.write_parquet("queries.parquet")
    queries.select("query_id", pl.lit("other").alias("source"), text="transcript").write_parquet(
        "hypotheses.parquet"
    )
    apply(
        *("--hypotheses", "hypotheses.parquet", "--source", "other"),
        *("--lf", "second_asr_agreement"),
    )
    assert set(pl.read_parquet("votes.parquet")["lf:second_asr_agreement"]) == {1}


def test_a_folder_of_parts_is_resumed(folder, capsys):
    apply("--partitions", 3, out="votes")
    parts = sorted((folder / "votes").glob("*.parquet"))
    assert len(parts) == 3
    before = pl.read_parquet(parts[1])
    parts[1].write_bytes(parts[1].read_bytes()[:-20])
    assert main(["apply", "queries.parquet", "--out", "votes", "--resume"]) == 2
    assert "remove this part, and go on with resume (--resume)" in capsys.readouterr().err
    parts[1].unlink()
    assert main(["fit", "votes", "--out", "model.json"]) == 2
    assert "--resume" in capsys.readouterr().err
    apply("--partitions", 3, "--resume", out="votes")
    assert "2 of 3 parts were there already\n" in capsys.readouterr().out
    after = pl.read_parquet(parts[1])
    assert before.sort("query_id").equals(after.sort("query_id"))
    run("fit", "votes", "--out", "model.json", "--model", "majority")
    apply("--resume", "--set", "dwell.long=1", out="votes")
    assert "computed in parts that were there: dwell\n" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["rename", "reject", "hypotheses"])
def test_a_folder_is_resumed_where_the_log_is_read_as_before(folder, capsys, option):
    log = pl.read_parquet("queries.parquet").with_columns(sure=1 - pl.col("confidence"))
    if option == "reject":
        log = log.with_columns(dwell=pl.when(pl.col("query_id") > 2).then("dwell").otherwise(-1.0))
    log.drop("second_transcript").write_parquet("queries.parquet")
    texts = log.select("query_id", source=pl.lit("other"), text="transcript")
    texts.write_parquet("texts.parquet")
    as_before = {
        "rename": ["--rename", "confidence=old", "--rename", "sure=confidence"],
        "reject": ["--reject", "refused.csv"],
        "hypotheses": ["--hypotheses", "texts.parquet"],
    }[option]
    apply("--partitions", 3, *as_before, out="votes")
    parts = sorted((folder / "votes").glob("*.parquet"))
    before = pl.read_parquet(parts[1]).sort("query_id")
    parts[1].unlink()
    apply("--resume", *as_before, out="votes")
    assert "2 of 3 parts were there already\n" in capsys.readouterr().out
    assert pl.read_parquet(parts[1]).sort("query_id").equals(before)
    if option == "hypotheses":
        texts.with_columns(text=pl.lit("other")).write_parquet("texts.parquet")
    else:
        as_before = ["--no-check"]
    arguments = ["apply", "queries.parquet", "--out", "votes", "--resume", *as_before]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert "votes cannot be resumed: how the log is read: checked" in said
    assert "then, checked, --hypotheses" in said or "then, as it stands now" in said


@pytest.mark.parametrize("clocks", ["%FT%T", "%FT%TZ"])
def test_a_folder_is_resumed_where_options_are_written_otherwise(folder, capsys, clocks):
    log = pl.read_parquet("queries.parquet").rename({"transcript": "text", "dwell": "stay"})
    sure = pl.when(pl.col("query_id") > 2).then("confidence").otherwise(-1)
    log = log.with_columns(pl.col("timestamp").dt.strftime(clocks), confidence=sure)
    log.drop("second_transcript").write_parquet("queries.parquet")
    log.select("query_id", "text", source=pl.lit("other")).write_parquet("texts.parquet")
    options = ["--rename", "text=transcript", "--rename", "stay=dwell", "--timezone", "UTC"]
    options += ["--reject", "refused.csv", "--hypotheses", "texts.parquet"]
    apply("--partitions", 3, *options, out="votes")
    (folder / "votes/part-00001-of-00003.parquet").unlink()
    command = ["apply", folder / "queries.parquet", "--out", "votes", "--resume"]
    command += ["--rename", "stay = dwell", "--rename", "text=transcript"]
    command += ["--reject", "others.csv", "--hypotheses", folder / "texts.parquet"]
    zone = ["--timezone", "Etc/UTC"] if clocks == "%FT%T" else []
    refused = [[*zone, "--keep", "dwell"], *([["--timezone", "Asia/Tokyo"]] if zone else [])]
    for more in refused:
        assert main([*map(str, command), *more]) == 2
    said = capsys.readouterr().err
    assert "the columns kept" in said
    if zone:
        assert "--rename text=transcript, --timezone UTC, --hypotheses texts.parquet (" in said
    assert not (folder / "others.csv").exists()
    run(*command, *zone)
    assert "2 of 3 parts were there already\n" in capsys.readouterr().out
    assert "is not within" in (folder / "others.csv").read_text()


def test_check_writes_what_it_accepts(folder, capsys):
    run("check", "queries.parquet", "--requires", "dwell", "--out", "clean.jsonl")
    assert pl.read_ndjson("clean.jsonl").height == 300
    assert "300 queries accepted" in capsys.readouterr().out


def test_hypotheses_are_combined(folder, capsys):
    pl.DataFrame(
        {
            "query_id": [1, 1, 1, 2],
            "source": ["a", "b", "c", "a"],
            "text": ["play the news", "play the news", "lay the new", "stop"],
        }
    ).write_csv("hypotheses.csv")
    run("combine", "hypotheses.csv", "--out", "combined.csv", "--no-progress")
    combined = pl.read_csv("combined.csv").sort("query_id")
    assert combined["transcript"].to_list() == ["play the news", "stop"]
    assert "2 transcripts" in capsys.readouterr().out


def test_each_source_may_have_a_file_of_its_own(folder):
    said = {"a": "play the news", "b": "play a news", "c": "lay the news"}
    for name, text in said.items():
        (folder / f"{name}.txt").write_text(f"utt-1 {text}\nutt-2 stop\n")
    files = [f"{name}={name}.txt" for name in said]
    run("combine", *files, "--out", "combined.csv", "--no-progress")
    assert pl.read_csv("combined.csv")["transcript"].to_list() == ["play the news", "stop"]
    assert main(["combine", "a.txt", "b=b.txt", "--out", "c.csv"]) == 2


def test_transcripts_are_compared(folder, capsys):
    (folder / "ref.txt").write_text("Play the news.\nstop\n")
    (folder / "hyp.txt").write_text("play a news\nstop\n")
    run("wer", "ref.txt", "hyp.txt", "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["corpus_wer"]["point"] == 0.25
    assert found["normalizer"] == "basic"


def test_labels_are_exported(folder, capsys):
    pipeline()
    run(
        *("export", "labels.parquet", "--queries", "queries.parquet", "--out", "training"),
        *("--format", "huggingface", "--no-check-audio", "--threshold", "0.5"),
    )
    weights = pl.read_parquet("labels.parquet")["weight"]
    rows = pl.read_parquet(next((folder / "training").rglob("*.parquet")))
    assert rows.height == (weights >= 0.5).sum()
    assert "below 0.5" in capsys.readouterr().out


def test_a_plugins_model_is_fitted_and_reported(folder, capsys):
    (folder / "models.py").write_text(
        "from dataclasses import dataclass\n"
        "import weaklabel\n"
        "from weaklabel.baselines import FittedMajority, MajorityVote\n"
        "@dataclass(frozen=True)\n"
        "class FittedMine(FittedMajority):\n"
        "    kind = 'mine'\n"
        "@dataclass(frozen=True)\n"
        "class Mine(MajorityVote):\n"
        "    def fit(self, votes, *, gold=None):\n"
        "        found = super().fit(votes, gold=gold)\n"
        "        return FittedMine(found.functions, found.prior)\n"
        "@weaklabel.hookimpl\n"
        "def weaklabel_label_models(register):\n"
        "    register(weaklabel.Kind('mine', Mine, FittedMine))\n"
    )
    apply()
    mine = ("--functions", "models.py")
    run("fit", "votes.parquet", "--out", "mine.json", "--model", "mine", *mine)
    run("label", "votes.parquet", "--model", "mine.json", "--out", "labels.parquet", *mine)
    run("report", "votes.parquet", "--model", "mine.json", *mine)
    assert "mine" in capsys.readouterr().out


def test_a_narrow_terminal_shows_every_function(folder, capsys, monkeypatch):
    pipeline()
    monkeypatch.setattr(console, "width", 44)
    capsys.readouterr()
    run("report", "votes.parquet", "--model", "model.json")
    out = "".join(capsys.readouterr().out.split())
    assert "second_asr_" in out
    assert "dwell" in out


def test_a_report_says_how_good_the_weights_are(folder, capsys):
    pipeline()
    run(
        *("report", "votes.parquet", "--model", "model.json", "--gold", "gold.parquet"),
        *("--queries", "queries.parquet", "--html", "report.html", "--json", "report.json"),
    )
    out = capsys.readouterr().out
    assert "corpus WER" in out
    assert "dwell" in (folder / "report.html").read_text()
    assert json.loads((folder / "report.json").read_text())


MISTAKES = {
    "no such log": (["apply", "absent.parquet", "--out", "v.parquet"], "absent.parquet"),
    "no such folder": (["apply", "queries.parquet", "--out", "no/v.parquet"], "no folder no"),
    "no such function": (
        ["apply", "queries.parquet", "--out", "v.parquet", "--lf", "dwel"],
        "did you mean 'dwell'",
    ),
    "no such parameter": (
        ["apply", "queries.parquet", "--out", "v.parquet", "--set", "dwell.longer=1"],
        "no parameter 'longer'",
    ),
    "no value": (
        ["apply", "queries.parquet", "--out", "v.parquet", "--set", "dwell.long"],
        "FUNCTION.PARAMETER=VALUE",
    ),
    "wrong value": (
        ["apply", "queries.parquet", "--out", "v.parquet", "--set", "dwell.long=ages"],
        "expected a finite number",
    ),
    "broken functions": (
        ["apply", "queries.parquet", "--out", "v.parquet", "--functions", "broken.py"],
        "ZeroDivisionError",
    ),
    "no such engine": (
        ["apply", "queries.parquet", "--out", "v.parquet", "--engine", "abacus"],
        "abacus",
    ),
    "a missing column": (
        ["apply", "bare.csv", "--out", "v.parquet", "--lf", "dwell"],
        "'dwell' requires 'dwell'",
    ),
    "no function of use": (
        ["apply", "bare.csv", "--out", "v.parquet", "-p", "no:builtin", "--functions", "far.py"],
        "each labeling function requires something else",
    ),
    "no function at all": (
        ["apply", "queries.parquet", "--out", "v.parquet", "-p", "no:builtin"],
        "there is no labeling function",
    ),
    "zoneless timestamps": (["check", "zoneless.csv"], "column 'timestamp'"),
    "an empty log": (["check", "empty.csv"], "empty"),
    "a broken log": (["check", "broken.parquet"], "broken.parquet"),
    "an unknown suffix": (["check", "log.xlsx"], "log.xlsx"),
    "a parameterless block": (["plugins", "-p", "builtin"], "no:NAME"),
    "an unknown block": (["plugins", "-p", "no:nobody"], "no plugin 'nobody'"),
    "parts in one file": (
        ["apply", "queries.parquet", "--out", "v.parquet", "--resume"],
        "without .parquet",
    ),
    "source alone": (
        ["apply", "queries.parquet", "--out", "v.parquet", "--source", "a"],
        "--source belongs to --hypotheses",
    ),
    "no votes": (["fit", "queries.parquet", "--out", "m.json"], "no columns of votes"),
    "no such model": (
        ["fit", "queries.parquet", "--out", "m.json", "--model", "oracle"],
        "no label model 'oracle'",
    ),
    "an option of another type": (
        ["fit", "v1.parquet", "--out", "m.json", "--option", "smoothing=much"],
        "smoothing must be a number",
    ),
    "an option of another type to a regression": (
        ["fit", "v1.parquet", "--out", "m.json", "--model", "logistic", "--option", 'c="a"'],
        "c must be a number, got 'a'",
    ),
    "an option in two forms": (
        ["fit", "v1.parquet", "--out", "m.json", "--prior", "0.5", "--option", "prior=0.7"],
        "--prior and --option prior=… are the same",
    ),
    "a condition that is no condition": (
        ["apply", "bare.csv", "--out", "v.parquet", "--functions", "counts.py", "--lf", "counts"],
        "'counts' gives accept a condition that is Int64",
    ),
    "a typing error in a column": (
        ["apply", "bare.csv", "--out", "v.parquet", "--functions", "counts.py", "--lf", "typo"],
        "'typo' cannot be computed",
    ),
    "votes cut short": (["fit", "broken.parquet", "--out", "m.json"], "was cut short"),
    "a file in UTF-16": (["check", "wide.csv"], "iconv -f utf-16"),
    "an option the model lacks": (
        ["fit", "v1.parquet", "--out", "m.json", "--model", "majority", "--families", "ignore"],
        "does not take these options",
    ),
    "gold without the log": (
        ["fit", "v1.parquet", "--out", "m.json", "--gold", "gold.parquet"],
        "--queries",
    ),
    "not a model": (
        ["label", "v1.parquet", "--model", "gold.parquet", "--out", "l.parquet"],
        "gold.parquet",
    ),
    "a flag that is none": (["apply", "queries.parquet", "--uot", "v"], "--uot"),
    "no output": (["apply", "queries.parquet"], "--out"),
    "no such format": (
        ["export", "v1.parquet", "--queries", "queries.parquet", "--out", "e", "--format", "csv"],
        "no format 'csv'",
    ),
    "no weights": (
        ["export", "v1.parquet", "--queries", "queries.parquet", "--out", "e"],
        "weight",
    ),
    "no normalizer": (["wer", "a.txt", "a.txt", "--normalizer", "mine"], "basic"),
    "unequal lines": (["wer", "a.txt", "b.txt"], "lines"),
    "votes as text": (["apply", "queries.parquet", "--out", "v.csv"], "votes are Parquet"),
    "patterns as text": (["patterns", "v1.parquet", "--out", "p.csv"], "ends in .parquet"),
    "a cluster for one process": (
        ["apply", "queries.parquet", "--out", "v.parquet", "--master", "spark://host:7077"],
        "--engine spark",
    ),
    "memory of another engine": (
        ["apply", "queries.parquet", "--out", "v", "--memory-limit", "2GB", "--engine", "polars"],
        "--engine duckdb or spark",
    ),
    "no hypotheses": (["combine", "bare.csv", "--out", "c.csv"], "'source'"),
    "a source of two families": (
        ["combine", "bare.csv", "--out", "c.csv", "--family", "x=a,b", "--family", "y=b"],
        "'b' is in 'x' already",
    ),
    "a prior that leaves no doubt": (
        ["fit", "v1.parquet", "--out", "m.json", "--prior", "1"],
        "prior must lie between 0 and 1",
    ),
    "no function to show": (
        ["show", "v1.parquet", "--where", "aa=1"],
        "no labeling function in v1.parquet 'aa' (did you mean 'a'?)",
    ),
    "no model without plugins": (
        ["fit", "v1.parquet", "--out", "m.json", "-p", "no:weaklabel"],
        "no label model 'label-model': there are none: do WEAKLABEL_PLUGINS",
    ),
    "no id to show": (["show", "nameless.parquet", "--where", "a=1"], "no column"),
    "a function asked for twice": (["show", "v1.parquet", "--where", "a=1,a=0"], "'a' is given"),
    "no vote to show": (["show", "v1.parquet", "--where", "a=2"], "a vote is 1 (accept)"),
    "nothing to show": (["show", "v1.parquet", "--where", "a"], "write NAME=VOTE,NAME=VOTE"),
    "patterns to show": (["show", "p.parquet", "--where", "a=1"], "holds patterns"),
    "a target above all": (
        ["label", "v1.parquet", "--model", "m", "--out", "l", "--gold", "g", "--target-wer", "5"],
        "write 5% or 0.05",
    ),
    "a target without gold": (
        ["label", "v1.parquet", "--model", "m", "--out", "l", "--target-wer", "5%"],
        "--gold belongs to --target-wer and --calibrate",
    ),
    "gold for nothing": (
        ["label", "v1.parquet", "--model", "m", "--out", "l", "--gold", "gold.parquet"],
        "--gold belongs to --target-wer and --calibrate",
    ),
    "two thresholds": (
        [
            *("label", "v1.parquet", "--model", "m", "--out", "l", "--gold", "g"),
            *("--target-wer", "5%", "--threshold", "0.5"),
        ],
        "leave out --threshold",
    ),
    "no such time zone": (["check", "zoneless.csv", "--timezone", "Berlin"], "Europe/Berlin"),
    "nothing to rename": (["check", "bare.csv", "--rename", "id=query_id"], "cannot rename"),
    "a renaming that is none": (["check", "bare.csv", "--rename", "id"], "write OLD=NEW"),
    "a check that is needed": (
        ["apply", "bare.csv", "--out", "v", "--no-check", "--rename", "a=b"],
        "--no-check goes without --rename",
    ),
}


@pytest.mark.parametrize(("arguments", "said"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_named_and_leaves_nothing(folder, capsys, arguments, said):
    files = {
        "broken.py": "1 / 0",
        "far.py": "from weaklabel import labeling_function\n"
        "@labeling_function(requires=['nowhere'], rowwise=True)\n"
        "def far(row): return 0\n",
        "bare.csv": "query_id,transcript\n1,play\n2,stop\n",
        "zoneless.csv": "query_id,transcript,timestamp\n1,play,2026-01-01T00:00:00\n",
        "empty.csv": "",
        "broken.parquet": "PAR1 not PAR1",
        "log.xlsx": "x",
        "counts.py": "import narwhals.stable.v2 as nw\n"
        "from weaklabel import accept_if, labeling_function\n"
        "@labeling_function(requires=['query_id'])\n"
        "def counts(): return accept_if(nw.col('query_id'))\n"
        "@labeling_function(requires=['transcript'])\n"
        "def typo(): return accept_if(nw.col('transcrpt') == 'play')\n",
        "a.txt": "a\n",
        "b.txt": "a\nb\n",
    }
    (folder / "wide.csv").write_bytes("query_id,transcript\n1,é".encode("utf-16"))
    for name, text in files.items():
        (folder / name).write_text(text)
    pl.DataFrame({"query_id": [1, 2], "lf:a": [1, -1]}).write_parquet("v1.parquet")
    pl.DataFrame({"lf:a": [1, -1]}).write_parquet("nameless.parquet")
    Patterns.of(["a"], [[1]]).save("p.parquet")
    before = sorted(folder.iterdir())
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.startswith("weaklabel: error: ")
    # One line, but for a list of what is wrong with a log.
    assert all(line.startswith((" ", "repair")) for line in captured.err.splitlines()[1:])
    assert sorted(folder.iterdir()) == before


def test_a_faulty_plugin_is_named_once(folder, capsys, monkeypatch):
    info = folder / "broken-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[weaklabel]\nmain = no_such_module\n")
    monkeypatch.syspath_prepend(folder)
    run("plugins")
    message = capsys.readouterr().err
    assert message.count("broken 0.1") == message.count("\n") == 1
    monkeypatch.setenv("WEAKLABEL_STRICT", "1")
    assert main(["plugins"]) == 2
    assert capsys.readouterr().err.count("broken 0.1") == 1
    monkeypatch.delenv("WEAKLABEL_STRICT")
    run("plugins", "--json")
    (fault,) = json.loads(capsys.readouterr().out)["faults"]
    assert "Traceback" in fault["details"]


@pytest.mark.parametrize(
    "arguments", [["--help"], ["apply", "--help"], ["label", "--uot"]], ids=str
)
def test_help_and_a_mistyped_flag_import_nothing_that_takes_long(arguments):
    probe = (
        f"import sys; from weaklabel.cli import main; main({arguments});"
        "print(sys.modules.keys() & {'polars', 'numpy', 'narwhals', 'pyarrow', 'pandas', 'duckdb',"
        " 'pyspark', 'sklearn', 'matplotlib', 'jinja2', 'jiwer', 'tqdm', 'pluggy'})"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("set()")


def test_help_names_the_commands(capsys):
    run("--help")
    listed = capsys.readouterr().out
    for command in (
        *("plugins", "check", "apply", "show", "patterns", "fit", "label", "report"),
        *("combine", "export", "wer"),
    ):
        assert f" {command} " in listed


CHATTY = """
import weaklabel
print("a plugin says hello")
@weaklabel.hookimpl
def weaklabel_labeling_functions(register):
    print("and so does its hook")
@weaklabel.hookimpl
def weaklabel_normalizers(register):
    def loud(text):
        print("and its rule")
        return text.lower()
    register(weaklabel.Normalizer("loud", "in lower case", loud))
"""


def test_what_a_plugin_prints_is_not_in_a_commands_json(folder, capsys):
    (folder / "chatty.py").write_text(CHATTY)
    run("plugins", "--json", "--functions", "chatty.py")
    captured = capsys.readouterr()
    assert json.loads(captured.out)["plugins"][-1]["name"] == "chatty"
    assert captured.err == "a plugin says hello\nand so does its hook\n"
    (folder / "a.txt").write_text("Play\n")
    run("wer", "a.txt", "a.txt", "--normalizer", "loud", "--json", "--functions", "chatty.py")
    captured = capsys.readouterr()
    assert json.loads(captured.out)["normalizer"] == "loud"
    assert "and its rule\n" in captured.err


def test_queries_are_shown_by_how_functions_voted(folder, capsys):
    apply()
    votes = pl.read_parquet("votes.parquet").join(pl.read_parquet("queries.parquet"), on="query_id")
    split = votes.filter(pl.col("lf:dwell") == 1, pl.col("lf:asr_confidence") == -1)
    assert split.height > 3
    asked = ("show", "votes.parquet", "--where", "dwell=1, asr_confidence=-1", "--limit", "3")
    capsys.readouterr()
    run(*asked, "--queries", "queries.parquet", "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["queries"] == split.height
    assert [query["query_id"] for query in found["shown"]] == split["query_id"][:3].to_list()
    for query, row in zip(found["shown"], split.iter_rows(named=True), strict=False):
        assert query["transcript"] == row["transcript"]
        assert query["votes"] == {
            name.removeprefix("lf:"): vote for name, vote in row.items() if name.startswith("lf:")
        }
    run(*asked, "--queries", "queries.parquet")
    out = capsys.readouterr().out
    assert split["transcript"][0] in out
    assert f"3 of {split.height} queries" in out
    run("show", "votes.parquet", "--where", "dwell=null", "--json")
    assert json.loads(capsys.readouterr().out)["queries"] == votes["lf:dwell"].null_count() > 0


def test_shown_transcripts_are_those_that_votes_carry_and_are_no_markup(folder, capsys):
    pl.DataFrame(
        {"query_id": ["a", "b"], "transcript": ["[red]play[/red]", "[/]\x1b[2J"], "lf:f": [1, 1]},
        schema_overrides={"lf:f": pl.Int8},
    ).write_parquet("votes.parquet")
    run("show", "votes.parquet", "--where", "f=1")
    out = capsys.readouterr().out
    assert "[red]play[/red]" in out
    assert "\x1b[2J" not in out
    assert "2 of 2 queries" in out


def test_a_column_is_renamed_and_a_zone_given(folder, capsys):
    (folder / "log.csv").write_text(
        "id,transcript,session_id,timestamp\n"
        "1,play,a,2026-01-01T00:00:00\n"
        "2,play,a,2026-01-01T00:00:05\n"
    )
    settled = ("--rename", "id=query_id", "--timezone", "Europe/Berlin")
    run("check", "log.csv", *settled, "--out", "log.parquet")
    assert pl.read_parquet("log.parquet")["timestamp"][0].isoformat() == "2025-12-31T23:00:00+00:00"
    run("apply", "log.csv", *settled, "--out", "votes.parquet", "--lf", "rapid_repetition")
    assert pl.read_parquet("votes.parquet").rows() == [(1, -1), (2, 0)]


RAISES = """
from weaklabel import labeling_function
@labeling_function(requires=["transcript"], rowwise=True)
def picky(row):
    return 1 if row["query_id"] else 1 // 0
"""


def test_a_row_that_raises_costs_its_own_vote_alone(folder, capsys):
    (folder / "lfs.py").write_text(RAISES)
    chosen = ("--functions", "lfs.py", "--lf", "picky", "--lf", "dwell")
    apply(*chosen)
    votes = pl.read_parquet("votes.parquet").sort("query_id")
    assert votes["lf:picky"].to_list() == [None] + [1] * 299
    assert votes["lf:dwell"].null_count() < 300
    captured = capsys.readouterr()
    assert "'picky' raised on 1 rows" in captured.err
    row = next(line for line in captured.out.splitlines() if "picky" in line)
    assert [cell.strip() for cell in row.split("│")[2:-1]] == ["299", "0", "0", "1", "1", "100.0%"]
    assert main(["apply", "queries.parquet", "--out", "v", *chosen, "--on-error", "fail"]) == 2
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_votes_of_other_parameters_are_refused_unless_allowed(folder, capsys):
    apply()
    run("fit", "votes.parquet", "--out", "model.json")
    apply("--set", "dwell.long=10", "--set", "asr_confidence.high=0.01")
    capsys.readouterr()
    for command in (
        ["label", "votes.parquet", "--model", "model.json", "--out", "labels.parquet"],
        ["report", "votes.parquet", "--model", "model.json"],
    ):
        assert main(command) == 2
        message = capsys.readouterr().err
        assert "dwell (long 60.0 → 10.0)" in message
        assert "asr_confidence (high 0.9 → 0.01)" in message
        assert main([*command, "--allow-changed"]) == 0
        assert "warning: these functions are not those" in capsys.readouterr().err


@pytest.fixture
def checked(folder):
    """A command that labels, and gold of 200 queries: the lower half by weight is often wrong."""
    pipeline()
    labels = pl.read_parquet("labels.parquet").head(200)
    doubtful = (pl.col("weight") < labels["weight"].median()) & (pl.col("query_id") % 2 == 0)
    pl.read_parquet("queries.parquet").head(200).join(labels, on="query_id").select(
        "query_id", transcript=pl.when(doubtful).then(pl.lit("other")).otherwise("transcript")
    ).write_parquet("gold.parquet")
    return ("label", "votes.parquet", "--model", "model.json", "--out", "labels.parquet")


def test_labels_keep_a_word_error_rate_of_gold(checked, capsys):
    gold = ("--gold", "gold.parquet", "--queries", "queries.parquet")
    run(*checked, "--target-wer", "10%", *gold)
    assert "gold queries that it accepts (target 10%)" in capsys.readouterr().out
    labels = pl.read_parquet("labels.parquet")
    about = json.loads(pl.read_parquet_metadata("labels.parquet")["weaklabel"])
    assert about["threshold"] > labels["weight"].min()
    accepted = labels["label"] == 1
    assert (accepted == (labels["weight"] >= about["threshold"])).all()
    log = pl.read_parquet("queries.parquet").rename({"transcript": "written"})
    said = pl.read_parquet("gold.parquet").join(log, on="query_id").join(labels, on="query_id")
    kept = said.filter(pl.col("label") == 1)
    assert compare(kept["transcript"].to_list(), kept["written"].to_list()).corpus_wer.point <= 0.1


def test_weights_are_calibrated_on_gold(checked, capsys):
    before = pl.read_parquet("labels.parquet")["weight"]
    run(*checked, "--calibrate", "--gold", "gold.parquet", "--queries", "queries.parquet")
    assert "calibrated on 200 gold queries" in capsys.readouterr().out
    labels = pl.read_parquet("labels.parquet")
    assert (labels["weight"] - before).abs().max() > 0.01
    assert ((labels["label"] == 1) == (labels["weight"] >= 0.5)).all()
    # The order of the queries stays, and the mean over gold is what gold says.
    assert labels["weight"].rank("dense").equals(before.rank("dense"))
    gold = pl.read_parquet("gold.parquet")
    right = 1 - (gold["transcript"] == "other").mean()
    assert labels["weight"][:200].mean() == pytest.approx(right, abs=0.01)
    about = json.loads(pl.read_parquet_metadata("labels.parquet")["weaklabel"])
    assert about["calibration"]["queries"] == 200


def test_a_models_options_are_flags(folder):
    apply("--lf", "dwell", "--lf", "asr_confidence", "--lf", "follow_up_action")
    options = {"abstain": "ignore", "missing": "evidence", "families": "ignore", "prior": 0.75}
    flags = [word for name, value in options.items() for word in (f"--{name}", value)]
    run("fit", "votes.parquet", "--out", "flags.json", *flags)
    run("fit", "votes.parquet", "--out", "default.json")
    with pytest.warns(WeakLabelWarning):
        LabelModel(**options).fit(count_files(["votes.parquet"])).save("library.json")
    flags, default, library = (
        (folder / f"{name}.json").read_text() for name in ("flags", "default", "library")
    )
    assert flags == library != default


def test_families_of_sources_share_a_vote(folder, capsys):
    copies = {f"copy{index}": "lay the new" for index in range(3)}
    said = {**copies, "one": "play the news", "two": "play the news"}
    pl.DataFrame(
        [
            {"query_id": q, "source": name, "text": text}
            for q in range(4)
            for name, text in said.items()
        ]
    ).write_csv("hypotheses.csv")
    family = ("--family", "same=copy0, copy1,copy2")
    run("combine", "hypotheses.csv", "--out", "c.csv", "--no-progress", "--rounds", "0", *family)
    assert set(pl.read_csv("c.csv")["transcript"]) == {"play the news"}


OVERWRITES = [
    ["apply", "queries.parquet", "--out", "queries.parquet"],
    ["apply", "./queries.parquet", "--out", "queries.parquet", "--no-check"],
    ["apply", "*.parquet", "--out", "new.parquet"],
    ["apply", ".", "--out", "new.parquet"],
    ["apply", "queries.parquet", "--out", "new", "--reject", "queries.parquet"],
    ["apply", "queries.parquet", "--out", "new.parquet", "--reject", "new.parquet"],
    ["apply", "queries.parquet", "--out", "linked.parquet"],
    ["check", "queries.parquet", "--out", "queries.parquet"],
    ["patterns", "votes.parquet", "--out", "votes.parquet"],
    ["fit", "votes.parquet", "--out", "votes.parquet"],
    ["fit", "votes.parquet", "--out", "gold.parquet", "--gold", "gold.parquet"],
    ["label", "votes.parquet", "--model", "model.json", "--out", "votes.parquet"],
    ["label", "votes.parquet", "--model", "model.json", "--out", "model.json"],
    ["report", "votes.parquet", "--model", "model.json", "--json", "model.json"],
    ["report", "votes.parquet", "--model", "model.json", "--json", "r", "--html", "r"],
    ["combine", "hypotheses.csv", "--out", "hypotheses.csv"],
    ["export", "votes.parquet", "--queries", "queries.parquet", "--out", "queries.parquet"],
]


@pytest.mark.parametrize("arguments", OVERWRITES, ids=" ".join)
def test_what_is_read_is_never_replaced(folder, capsys, arguments):
    apply()
    run("fit", "votes.parquet", "--out", "model.json", "--model", "majority")
    (folder / "linked.parquet").symlink_to("queries.parquet")
    (folder / "hypotheses.csv").write_text("query_id,source,text\n1,a,play\n")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    capsys.readouterr()
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert "would replace" in message or "written twice" in message
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.skipif(sys.platform == "win32", reason="has no pipes among files")
@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "queries.parquet", "--out", "pipe.parquet"),
        ("check", "queries.parquet", "--reject", "pipe.parquet"),
        ("apply", "queries.parquet", "--out", "pipe.parquet"),
        ("apply", "queries.parquet", "--out", "pipe"),
        ("fit", "votes.parquet", "--out", "pipe"),
        ("patterns", "votes.parquet", "--out", "pipe.parquet"),
        ("report", "votes.parquet", "--model", "model.json", "--html", "pipe"),
    ],
    ids=" ".join,
)
def test_a_pipe_is_refused_as_an_output_before_anything_is_read(
    arguments, tmp_path, monkeypatch, capsys
):
    os.mkfifo(tmp_path / "pipe.parquet")
    os.mkfifo(tmp_path / "pipe")
    # Of the inputs none is there: the output is looked at first.
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert "is a pipe, expected a file" in capsys.readouterr().err
    assert all(path.is_fifo() for path in tmp_path.iterdir())


def test_a_folder_given_for_a_model_is_told_what_is_expected(tmp_path, capsys):
    assert main(["label", "v.parquet", "--model", str(tmp_path), "--out", "labels.parquet"]) == 2
    assert f"{tmp_path} is a folder: give the JSON file that `weaklabel fit` wrote" in (
        capsys.readouterr().err
    )


def test_parameters_of_a_function_that_is_not_applied_are_named(folder, capsys):
    apply("--set", "second_asr_agreement.other=nowhere", "--set", "dwell.long=5")
    captured = capsys.readouterr()
    assert "parameters are set for second_asr_agreement, not applied here" in captured.err
    assert "second_asr_agreement (transcript, nowhere)" in captured.out


def test_the_version_is_printed(capsys):
    run("--version")
    assert capsys.readouterr().out == f"weaklabel {weaklabel.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "queries.parquet", "--out", "ok.parquet"],
        ["wer", "ref.txt", "hyp.txt"],
        ["wer", "ref.txt", "hyp.txt", "--json"],
        ["plugins"],
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_output_that_is_not_utf_8_holds_what_it_can(folder, arguments):
    (folder / "ref.txt").write_text("le père 电影\n", encoding="utf-8")
    (folder / "hyp.txt").write_text("la mère 电影\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", "from weaklabel.cli import script; script()", *arguments],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert (done.returncode, done.stderr) == (0, b"")
    said = done.stdout.decode("ascii")
    if "--json" in arguments:
        assert json.loads(said)["worst"][0]["reference"] == "le père 电影"


@pytest.mark.skipif(os.name == "nt", reason="no signals as in POSIX")
@pytest.mark.parametrize(("signal", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_an_ended_run_leaves_nothing_and_no_traceback(folder, signal, code):
    (folder / "slow.py").write_text(
        "import os, signal\n"
        "from weaklabel import labeling_function\n"
        "@labeling_function(requires=['transcript'], rowwise=True)\n"
        "def slow(row):\n"
        f"    os.kill(os.getpid(), signal.{signal})\n"
        "    return 1\n"
    )
    before = sorted(folder.iterdir())
    done = subprocess.run(
        [
            *(sys.executable, "-c", "from weaklabel.cli import script; script()"),
            *("apply", "queries.parquet", "--out", "v.parquet", "--functions", "slow.py"),
            *("--lf", "slow", "--no-progress"),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert sorted(folder.iterdir()) == before


@pytest.mark.skipif(os.name == "nt", reason="no signals as in POSIX")
def test_a_command_ends_while_a_plugin_is_imported(folder):
    """A plugin that hangs can be ended: it is not taken for one that raised."""
    (folder / "hangs.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\n")
    command = "from weaklabel.cli import script; script()"
    done = subprocess.run(
        [sys.executable, "-c", command, "plugins", "--functions", "hangs.py"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "")
