"""Studies: configs x seeds, run to the end whatever interrupts them, and compared by pairs of equal seeds.

``study_file`` reads the ``plan`` of what is to be run, ``configs`` makes its configs, ``execute`` trains
and scores one run, ``together`` several that share what is frozen, ``pool`` keeps processes busy,
``conduct`` runs what is left of a study, ``results`` holds a row a run, ``summary`` compares the arms and
``report`` writes the tables and the picture.
"""

from .conduct import check_runs, conduct, find_group, find_run, results_of, runs_left
from .configs import run_config
from .execute import execute
from .plan import Arm, Run, Selection, Study, Together
from .pool import follow_study, gpus, run_all
from .report import write_summary
from .results import ResultFile, choose_learning_rates
from .study_file import load_study
from .summary import summarise
from .together import execute_together

__all__ = [
    "Arm",
    "ResultFile",
    "Run",
    "Selection",
    "Study",
    "Together",
    "check_runs",
    "choose_learning_rates",
    "conduct",
    "execute",
    "execute_together",
    "find_group",
    "find_run",
    "follow_study",
    "gpus",
    "load_study",
    "results_of",
    "run_all",
    "run_config",
    "runs_left",
    "summarise",
    "write_summary",
]
