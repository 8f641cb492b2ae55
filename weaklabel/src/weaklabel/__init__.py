"""From a query log to weighted transcripts, with labeling functions as plugins.

    @labeling_function(requires=["session_id", "timestamp"], family="session")
    def rapid_repetition(within=timedelta(seconds=10)):
        return reject_if(next_in_session("timestamp") - nw.col("timestamp") < within)

    functions = load_labeling_functions(columns=queries.columns)
    votes = apply(functions, queries)
    model = LabelModel().fit(votes, functions=functions)
    labels = model.label(votes)  # + weight = P(the transcript is right)

The idea is the weak supervision of SpeechNet (Tang et al., arXiv 2211.11740): what users did next
says whether a recognized query was understood, and no human labels anything.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from weaklabel.baselines import LogisticRegression as LogisticRegression
    from weaklabel.baselines import MajorityVote as MajorityVote
    from weaklabel.errors import WeakLabelError as WeakLabelError
    from weaklabel.errors import WeakLabelWarning as WeakLabelWarning
    from weaklabel.gold import Gold as Gold
    from weaklabel.gold import join_gold as join_gold
    from weaklabel.label_model import LabelModel as LabelModel
    from weaklabel.labeling import Identity as Identity
    from weaklabel.labeling import LabelingFunction as LabelingFunction
    from weaklabel.labeling import labeling_function as labeling_function
    from weaklabel.models import load_model as load_model
    from weaklabel.patterns import Patterns as Patterns
    from weaklabel.plugins import Exporter as Exporter
    from weaklabel.plugins import Kind as Kind
    from weaklabel.plugins import Registry as Registry
    from weaklabel.plugins import hookimpl as hookimpl
    from weaklabel.plugins import load_labeling_functions as load_labeling_functions
    from weaklabel.plugins import load_registry as load_registry
    from weaklabel.runs import apply as apply
    from weaklabel.runs import apply_files as apply_files
    from weaklabel.text import Normalizer as Normalizer
    from weaklabel.transcripts import combine as combine
    from weaklabel.votes import ABSTAIN as ABSTAIN
    from weaklabel.votes import ACCEPT as ACCEPT
    from weaklabel.votes import MISSING as MISSING
    from weaklabel.votes import REJECT as REJECT
    from weaklabel.votes import accept_if as accept_if
    from weaklabel.votes import log_length as log_length
    from weaklabel.votes import next_in_session as next_in_session
    from weaklabel.votes import normalized as normalized
    from weaklabel.votes import occurrences as occurrences
    from weaklabel.votes import position_in_session as position_in_session
    from weaklabel.votes import previous_in_session as previous_in_session
    from weaklabel.votes import reject_if as reject_if
    from weaklabel.votes import session_length as session_length
    from weaklabel.votes import vote as vote

    __version__: str

# Imported at first use: a plugin needs the decorator, not the label model.
_MODULES = {
    "baselines": "LogisticRegression MajorityVote",
    "errors": "WeakLabelError WeakLabelWarning",
    "gold": "Gold join_gold",
    "label_model": "LabelModel",
    "labeling": "Identity LabelingFunction labeling_function",
    "models": "load_model",
    "patterns": "Patterns",
    "plugins": "Exporter Kind Registry hookimpl load_labeling_functions load_registry",
    "runs": "apply apply_files",
    "text": "Normalizer",
    "transcripts": "combine",
    "votes": (
        "ABSTAIN ACCEPT MISSING REJECT accept_if log_length next_in_session normalized"
        " occurrences position_in_session previous_in_session reject_if session_length vote"
    ),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names.split()}
__all__ = [*_HOME]


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("weaklabel")
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME, "__version__"])
