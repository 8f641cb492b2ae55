"""From a query log to weighted transcripts, with labeling functions as plugins.

    @labeling_function(requires=["session_id", "timestamp"], family="session")
    def rapid_repetition(within=timedelta(seconds=10)):
        return reject_if(next_in_session("timestamp") - nw.col("timestamp") < within)

    votes = apply(load_labeling_functions(columns=queries.columns), queries)
    labels = LabelModel().fit(votes).label(votes)   # + weight = P(the transcript is right)

The idea is the weak supervision of SpeechNet (Tang et al., arXiv 2211.11740): what users did next
says whether a recognised query was understood, and no human labels anything.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from weaklabel.baselines import LogisticRegression as LogisticRegression
    from weaklabel.baselines import MajorityVote as MajorityVote
    from weaklabel.errors import WeakLabelError as WeakLabelError
    from weaklabel.errors import WeakLabelWarning as WeakLabelWarning
    from weaklabel.gold import Gold as Gold
    from weaklabel.gold import gold_patterns as gold_patterns
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
    from weaklabel.transcripts import combine as combine
    from weaklabel.votes import ABSTAIN as ABSTAIN
    from weaklabel.votes import ACCEPT as ACCEPT
    from weaklabel.votes import MISSING as MISSING
    from weaklabel.votes import REJECT as REJECT
    from weaklabel.votes import accept_if as accept_if
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
_HOME = {
    "ABSTAIN": "votes",
    "ACCEPT": "votes",
    "Exporter": "plugins",
    "Gold": "gold",
    "Identity": "labeling",
    "Kind": "plugins",
    "LabelModel": "label_model",
    "LabelingFunction": "labeling",
    "LogisticRegression": "baselines",
    "MISSING": "votes",
    "MajorityVote": "baselines",
    "Patterns": "patterns",
    "REJECT": "votes",
    "Registry": "plugins",
    "WeakLabelError": "errors",
    "WeakLabelWarning": "errors",
    "accept_if": "votes",
    "apply": "runs",
    "combine": "transcripts",
    "gold_patterns": "gold",
    "hookimpl": "plugins",
    "join_gold": "gold",
    "labeling_function": "labeling",
    "load_labeling_functions": "plugins",
    "load_model": "models",
    "load_registry": "plugins",
    "next_in_session": "votes",
    "normalized": "votes",
    "occurrences": "votes",
    "position_in_session": "votes",
    "previous_in_session": "votes",
    "reject_if": "votes",
    "session_length": "votes",
    "vote": "votes",
}
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
