"""Studies: configs x seeds, run to the end whatever interrupts them, and compared by pairs of equal seeds.

``plan`` reads what is to be run, ``execute`` trains and scores one run, ``pool`` keeps several processes
busy, ``conduct`` runs what is left of a study, ``results`` holds a row a run, ``summary`` compares the arms
and ``report`` writes the tables and the picture.
"""

from .conduct import check_runs, conduct, find_run, results_of, runs_left
from .execute import execute, run_config
from .plan import Arm, Run, Selection, Study, load_study
from .pool import follow_study, gpus, run_all
from .report import write_summary
from .results import ResultFile, choose_learning_rates
from .summary import summarise

__all__ = [
    "Arm",
    "ResultFile",
    "Run",
    "Selection",
    "Study",
    "check_runs",
    "choose_learning_rates",
    "conduct",
    "execute",
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
