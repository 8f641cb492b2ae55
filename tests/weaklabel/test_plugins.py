"""Plugins are found by entry points, one by one; a broken one is named and disturbs nobody."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weaklabel import (
    WeakLabelError,
    apply,
    functions,
    hookimpl,
    load_labeling_functions,
    load_registry,
    plugins,
)
from weaklabel.plugins import Loader, Plugin, Registry

BUILTIN = [
    "session_position",
    "asr_confidence",
    "rapid_repetition",
    "dwell",
    "follow_up_action",
    "rephrasing",
    "rephrasing_edit_distance",
    "rarity",
    "second_asr_agreement",
    "second_asr_wer",
]

GOOD = """
import narwhals.stable.v2 as nw
import weaklabel
from weaklabel import accept_if, labeling_function

@labeling_function(requires=["transcript"], name="{name}")
def anything(least: int = 3):
    '''Accept transcripts of some length.'''
    return accept_if(nw.col("transcript").str.len_chars() >= least)

@weaklabel.hookimpl
def weaklabel_labeling_functions(register):
    register(anything)
"""

FILE = GOOD.partition("@weaklabel.hookimpl")[0]

AGAIN = """
    from dataclasses import replace
    register(replace(anything, name="own"))
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Make an installed distribution of one module, as `importlib.metadata` finds them."""
    monkeypatch.delenv("WEAKLABEL_PLUGINS", raising=False)
    monkeypatch.delenv("WEAKLABEL_STRICT", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    modules = []

    def make(distribution, source, *, module=None, entry_point="main", version="1.2"):
        module = module or f"plugin_{distribution.replace('-', '_')}"
        modules.append(module)
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(source))
        info = tmp_path / f"{distribution}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
        )
        (info / "entry_points.txt").write_text(f"[weaklabel]\n{entry_point} = {module}\n")

    yield make
    for module in modules:
        sys.modules.pop(module, None)


def test_the_built_in_functions_come_through_the_hook(install):
    registry = load_registry()
    assert list(registry.labeling_functions) == BUILTIN
    assert not registry.faults
    assert str(registry.plugins[0]) == "weaklabel:builtin"
    assert registry.plugins[0].location == "weaklabel.functions"


def test_built_in_models_and_formats_come_through_the_hooks(install):
    registry = load_registry()
    assert {plugin.distribution for plugin in registry.plugins} == {"weaklabel"}
    assert list(registry.label_models) == ["label-model", "majority", "logistic"]
    assert list(registry.exporters) == ["huggingface", "nemo", "lhotse", "kaldi"]
    assert {"basic", "none"} <= registry.normalizers.keys()
    without = load_registry(blocked=["simple_models", "exporters"])
    assert list(without.label_models) == ["label-model"]
    assert list(without.exporters) == []
    assert load_registry(blocked=["weaklabel"]) == Registry()


def test_an_installed_plugin_is_listed_after_the_built_in_ones(install):
    install("acme-lfs", GOOD.format(name="long_enough"))
    registry = load_registry()
    assert list(registry.labeling_functions) == [*BUILTIN, "long_enough"]
    function = registry.labeling_functions["long_enough"]
    identity = registry.identity(function)
    assert (identity.name, identity.distribution, identity.version, identity.parameters) == (
        "long_enough",
        "acme-lfs",
        "1.2",
        {"least": 3},
    )


def test_the_identity_follows_source_and_parameters(install):
    install("acme-lfs", GOOD.format(name="long_enough"))
    registry = load_registry()
    function = registry.labeling_functions["long_enough"]
    stricter = function.with_parameters(least=9)
    assert registry.identity(stricter).changes(registry.identity(function)) == ["least 3 → 9"]
    assert registry.identity(function.with_parameters(least=3)) == registry.identity(function)


@pytest.mark.parametrize(
    ("source", "stage", "message"),
    [
        ("import no_such_module_anywhere", "import", "no_such_module_anywhere"),
        ("raise SystemExit('leaving')", "import", "leaving"),
        ("x = (", "import", "SyntaxError"),
        (
            """
            import weaklabel
            @weaklabel.hookimpl
            def weaklabel_labeling_functions(register):
                raise KeyError("gone")
            """,
            "registration",
            "KeyError: 'gone'",
        ),
        (
            """
            import weaklabel
            @weaklabel.hookimpl
            def weaklabel_labelling_functions(register): pass
            """,
            "hooks",
            "did you mean 'weaklabel_labeling_functions'?",
        ),
        (
            """
            import weaklabel
            @weaklabel.hookimpl
            def weaklabel_labeling_functions(registry): pass
            """,
            "hooks",
            "registry",
        ),
        (
            """
            import weaklabel
            @weaklabel.hookimpl(wrapper=True)
            def weaklabel_labeling_functions(register): yield
            """,
            "hooks",
            "cannot be wrapped",
        ),
        ("def weaklabel_labeling_functions(register): pass", "hooks", "@weaklabel.hookimpl"),
        (
            """
            import weaklabel
            def plain(): pass
            @weaklabel.hookimpl
            def weaklabel_labeling_functions(register): register(plain)
            """,
            "name",
            "@labeling_function",
        ),
        (
            """
            import weaklabel
            @weaklabel.hookimpl
            def weaklabel_labeling_functions(register): return [1]
            """,
            "registration",
            "call register(...)",
        ),
        (GOOD.format(name="dwell"), "name", "'dwell' is taken by weaklabel:builtin"),
        (GOOD.format(name="Dwell"), "name", "'Dwell' is taken by weaklabel:builtin"),
    ],
    ids=[
        "import",
        "exit",
        "syntax",
        "raises",
        "misspelled",
        "signature",
        "wrapper",
        "unmarked",
        "plain function",
        "returns",
        "name taken",
        "name taken but for its case",
    ],
)
def test_a_fault_is_reported_and_the_others_work_on(
    install, caplog, monkeypatch, source, stage, message
):
    install("broken", source)
    install("zz-good", GOOD.format(name="long_enough"))
    registry = load_registry()
    assert list(registry.labeling_functions) == [*BUILTIN, "long_enough"]
    (fault,) = registry.faults
    assert fault.stage == stage
    assert message in fault.message
    assert "\n" not in fault.message
    assert (fault.plugin.distribution, fault.plugin.version) == ("broken", "1.2")
    assert "broken 1.2" in caplog.text
    assert registry.labeling_functions["dwell"] is functions.dwell
    if stage == "import":
        assert "Traceback" in fault.details
    monkeypatch.setenv("WEAKLABEL_STRICT", "1")
    with pytest.raises(WeakLabelError, match=r"broken 1\.2"):
        load_registry()


def test_nothing_of_a_hook_that_raised_is_used(install):
    install("halfway", GOOD.format(name="first") + "    raise ValueError('then this')\n")
    registry = load_registry()
    assert "first" not in registry.labeling_functions
    assert "then this" in registry.faults[0].details


def test_a_refused_name_leaves_the_plugins_other_functions(install):
    install("acme", GOOD.format(name="dwell") + AGAIN)
    registry = load_registry()
    assert [fault.stage for fault in registry.faults] == ["name"]
    assert list(registry.labeling_functions) == [*BUILTIN, "own"]


def test_the_variable_makes_faults_errors(install, monkeypatch):
    install("broken", "1 / 0")
    monkeypatch.setenv("WEAKLABEL_STRICT", "1")
    with pytest.raises(WeakLabelError, match="ZeroDivisionError"):
        load_registry()
    monkeypatch.setenv("WEAKLABEL_STRICT", "0")
    assert load_registry().faults


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [
        ("weaklabel:builtin, acme, other", ["weaklabel:builtin", "acme:main", "other:main"]),
        ("", []),
        ("acme", ["acme:main"]),
        ("builtin, other", ["weaklabel:builtin", "other:main"]),
        ("other:main", ["other:main"]),
    ],
)
def test_the_variable_limits_what_is_loaded(install, monkeypatch, allowed, expected):
    install("acme", GOOD.format(name="one"))
    install("other", GOOD.format(name="two"))
    monkeypatch.setenv("WEAKLABEL_PLUGINS", allowed)
    assert [str(plugin) for plugin in load_registry().plugins] == expected


def test_what_is_not_allowed_is_not_even_imported(install, monkeypatch):
    install("acme", "raise AssertionError('imported')")
    assert not load_registry(allowed=["builtin"]).faults
    assert not load_registry(blocked=["acme"]).faults
    assert load_registry(blocked=["builtin"]).faults


def test_a_name_that_is_nothing_installed_is_an_error(install):
    install("acme", GOOD.format(name="one"))
    with pytest.raises(WeakLabelError, match="did you mean 'acme'"):
        load_registry(blocked=["acmee"])


def test_hooks_may_ask_to_come_first(install):
    hurried = GOOD.replace("@weaklabel.hookimpl", "@weaklabel.hookimpl(tryfirst=True)")
    install("hurried", hurried.format(name="early"))
    assert list(load_registry().labeling_functions) == ["early", *BUILTIN]


def test_a_file_of_functions_needs_no_hook(install, tmp_path):
    file = tmp_path / "weaklabel_lfs.py"
    file.write_text(
        "import narwhals.stable.v2 as nw\n"
        "from weaklabel import labeling_function, reject_if\n"
        "from weaklabel.functions import dwell\n"  # is not registered a second time
        "@labeling_function(requires=['transcript'])\n"
        "def swears():\n"
        "    return reject_if(nw.col('transcript').str.contains('damn', literal=True))\n"
    )
    registry = load_registry(file=file)
    assert not registry.faults
    assert list(registry.labeling_functions) == [*BUILTIN, "swears"]
    assert (
        registry.identity(registry.labeling_functions["swears"]).distribution == "weaklabel_lfs.py"
    )


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("broken.py", "1 / 0", "ZeroDivisionError"),
        ("functions.txt", "x = 1", "not a Python file"),
        ("syntax.py", "def f(:\n", "SyntaxError: invalid syntax"),
        ("exit.py", "raise SystemExit(3)", "SystemExit: 3"),
        ("nothing.py", "def plain(row): return 1\n", "@labeling_function is enough"),
        ("imports.py", "from weaklabel.functions import dwell\n", "@labeling_function is enough"),
        ("taken.py", FILE.format(name="dwell"), "'dwell' is taken by weaklabel:builtin"),
        (
            "twice.py",
            FILE.format(name="f") + FILE.format(name="f").replace("anything", "other"),
            "'f' is taken by twice.py",
        ),
        (
            "hook.py",
            "import weaklabel\n@weaklabel.hookimpl\ndef weaklabel_functions(register): pass\n",
            "there is no hook 'weaklabel_functions'",
        ),
    ],
)
def test_a_file_that_does_not_load_is_an_error(install, tmp_path, name, text, message):
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(WeakLabelError, match=message):
        load_registry(file=file)


def test_a_file_that_is_not_there_is_an_error(install, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.py"):
        load_registry(file=tmp_path / "absent.py")


def test_a_file_may_rename_what_it_imports_and_name_a_function_twice(install, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from dataclasses import replace\n"
        "from weaklabel.functions import dwell\n"
        "patient = replace(dwell.with_parameters(long=900), name='patient')\n"
        "alias = patient\n"
    )
    registry = load_registry(file=file)
    assert list(registry.labeling_functions) == [*BUILTIN, "patient"]
    assert registry.labeling_functions["patient"].parameters["long"] == 900


def test_a_file_is_run_as_it_is_now_and_leaves_nothing_behind(install, tmp_path):
    file = tmp_path / "json.py"  # a name that other modules have
    modules = set(sys.modules)
    for least in (3, 4):
        # Of one size and within one clock tick: byte code by time and size would be the old one.
        file.write_text(
            "from __future__ import annotations\n"
            "from dataclasses import dataclass\n"
            "@dataclass\nclass Limits:\n    low: int = 1\n"
            + FILE.format(name="long_enough").replace("3", str(least))
        )
        registry = load_registry(file=file)
        assert registry.labeling_functions["long_enough"].parameters == {"least": least}
    assert not (tmp_path / "__pycache__").exists()
    assert not any("json" in name or "file" in name for name in set(sys.modules) - modules)


def test_plugins_of_one_name_differ_by_their_distributions(install):
    install("acme", GOOD.format(name="one"), entry_point="tv")
    install("other", GOOD.format(name="two"), entry_point="tv")
    names = [str(plugin) for plugin in load_registry(blocked=["weaklabel"]).plugins]
    assert names == ["acme:tv", "other:tv"]
    assert list(load_registry(allowed=["other:tv"]).labeling_functions) == ["two"]
    assert list(load_registry(blocked=["tv"]).labeling_functions) == BUILTIN


def test_an_installation_found_twice_on_the_path_is_loaded_once(install, tmp_path, monkeypatch):
    """As an editable one is, whose source folder is the current one."""
    install("acme", GOOD.format(name="one"))
    again = tmp_path / "again"
    shutil.copytree(tmp_path / "acme-1.2.dist-info", again / "acme-1.2.dist-info")
    monkeypatch.syspath_prepend(again)
    registry = load_registry(blocked=["weaklabel"])
    assert not registry.faults
    assert [str(plugin) for plugin in registry.plugins] == ["acme:main"]


def test_functions_are_chosen_by_the_columns_that_are_there(install):
    chosen = load_labeling_functions(columns=["transcript", "confidence", "second_transcript"])
    assert [function.name for function in chosen] == [
        "asr_confidence",
        "rarity",
        "second_asr_agreement",
    ]


def test_functions_are_chosen_by_name_in_the_order_given(install):
    chosen = load_labeling_functions(["dwell", "second_asr_wer", "dwell"])
    assert [function.name for function in chosen] == ["dwell", "second_asr_wer"]
    with pytest.raises(WeakLabelError, match="did you mean 'dwell'"):
        load_labeling_functions(["dwel"])


def test_parameters_are_set_by_function_and_name(install):
    registry = load_registry()
    chosen = registry.select(
        ["second_asr_agreement"], parameters={"second_asr_agreement": {"other": "hyp"}}
    )
    assert chosen[0].columns == ("transcript", "hyp")
    assert registry.labeling_functions["second_asr_agreement"].columns[1] == "second_transcript"
    with pytest.raises(WeakLabelError, match="no labeling function 'dwel'"):
        registry.select(parameters={"dwel": {}})


def test_the_packages_own_models_and_exporters_are_not_replaced(install):
    install(
        "acme",
        """
        import weaklabel
        from weaklabel import Exporter, Kind, Normalizer
        @weaklabel.hookimpl
        def weaklabel_label_models(register):
            register(Kind("majority", object, object))
            register(Kind("mine", object, object))
        @weaklabel.hookimpl
        def weaklabel_exporters(register):
            register(Exporter("Nemo", "something else", (), print))
            register(Exporter("lines", "lines", (), print))
        @weaklabel.hookimpl
        def weaklabel_normalizers(register):
            register(Normalizer("BASIC", "another", str.lower))
            register(Normalizer("shout", "in capitals", str.upper))
        """,
    )
    registry = load_registry()
    assert [fault.message for fault in registry.faults] == [
        "'majority' is taken by weaklabel:simple_models: rename it",
        "'Nemo' is taken by weaklabel:exporters: rename it",
        "'BASIC' is taken by weaklabel:normalizers: rename it",
    ]
    assert list(registry.label_models)[3:] == ["mine"]
    assert list(registry.exporters)[4:] == ["lines"]
    assert registry.normalizers["shout"]("a b") == "A B"


def test_what_is_not_of_a_hooks_kind_is_refused(install):
    install(
        "acme",
        """
        import weaklabel
        @weaklabel.hookimpl
        def weaklabel_label_models(register): register(dict)
        @weaklabel.hookimpl
        def weaklabel_exporters(register): register(print)
        @weaklabel.hookimpl
        def weaklabel_normalizers(register): register(str.upper)
        """,
    )
    assert [fault.message.rpartition(" is not ")[2] for fault in load_registry().faults] == [
        "a weaklabel.Kind",
        "a weaklabel.Exporter",
        "a weaklabel.Normalizer",
    ]


@pytest.mark.parametrize("hook", [False, True], ids=["importing", "registering"])
def test_a_plugin_that_takes_long_is_named_meanwhile(install, monkeypatch, caplog, hook):
    """It may never end, and then nothing else would say which one it is."""
    wait = "import threading\nthreading.Event().wait(0.5)\n"
    source = GOOD.format(name="late")
    install("slow", source + textwrap.indent(wait, "    ") if hook else wait + source)
    install("quick", GOOD.format(name="early"))
    monkeypatch.setattr(plugins, "PATIENCE", 0.1)
    registry = load_registry(blocked=["weaklabel"])
    assert list(registry.labeling_functions) == ["early", "late"]
    assert not registry.faults
    (message,) = caplog.messages
    doing = "in its hook weaklabel_labeling_functions" if hook else "importing"
    assert message.startswith(f"plugin 'main' of slow 1.2 has been {doing} for 0.1 s")


@given(st.permutations(["a", "b", "c"]), st.integers(0, 2))
def test_a_raising_plugin_never_changes_anothers_votes(order, broken):
    """Whatever raises, and wherever it stands among the plugins."""
    queries = pl.DataFrame({"query_id": [1, 2], "transcript": ["a", "abc"]})

    class Bad:
        @staticmethod
        def weaklabel_labeling_functions(register):
            raise RuntimeError("boom")

    def good(name):
        scope = {}
        exec(compile(GOOD.format(name=name), name, "exec"), scope)
        return type("Good", (), {"weaklabel_labeling_functions": staticmethod(scope.popitem()[1])})

    hookimpl(Bad.weaklabel_labeling_functions)
    loader = Loader()
    for place, name in enumerate(order):
        if place == broken:
            loader.register(Plugin("bad", "bad", "1", "bad"), Bad)
        loader.register(Plugin(name, name, "1", name), good(name))
    registry = loader.collect()
    assert len(registry.faults) == 1
    votes = apply(registry.select(), queries)
    for name in order:
        assert votes[f"lf:{name}"].to_list() == [0, 1]


def test_loading_plugins_imports_no_engine():
    """`weaklabel --help` and the list of plugins are answered at once."""
    probe = (
        "import sys; from weaklabel.plugins import load_registry; load_registry();"
        "print([m for m in ('torch','duckdb','pyspark','sklearn','matplotlib','jinja2','pandas')"
        " if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent,
        env={**os.environ, "WEAKLABEL_PLUGINS": "builtin"},
    )
    assert done.stdout.strip() == "[]"
