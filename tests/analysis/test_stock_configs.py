"""mmseg's own configs with a guided upsampler: a few of them, and what is said of those that cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from pixeldcl_plugin.analysis import stock_configs, stock_report
from pixeldcl_plugin.analysis.stock_configs import Outcome

PASS = [
    "fastscnn/fast_scnn_8xb4-160k_cityscapes-512x1024.py",
    "ocrnet/ocrnet_hr18s_4xb2-40k_cityscapes-512x1024.py",
]


def run(*names: str) -> list[Outcome]:
    root, _ = stock_configs.config_files()
    return list(stock_configs.outcomes([root / name for name in names], root))


@pytest.mark.parametrize("name", PASS)
def test_passes_every_stage(name: str) -> None:
    (outcome,) = run(name)
    assert (outcome.passed, outcome.reason) == ("predict", "")


def test_equal_models_run_once_and_others_say_why() -> None:
    first, second, other, missing = run(
        PASS[0], PASS[0], "maskformer/maskformer_r50-d32_8xb2-160k_ade20k-512x512.py", "no/such.py"
    )
    assert first.same_as == ""
    assert second.same_as == first.config
    assert other.reason
    assert missing.reason.startswith("FileNotFoundError")


def test_knows_all_configs() -> None:
    root, files = stock_configs.config_files()
    assert len(files) > 500
    assert all(isinstance(file, Path) and file.is_relative_to(root) for file in files)


def test_the_docs_count_what_the_file_holds() -> None:
    docs = Path(__file__).parents[2] / "docs"
    outcomes = [row.outcome for row in stock_report.read(docs / "results/stock_configs.csv").values()]
    passed = sum(outcome.passed == "predict" for outcome in outcomes)
    assert f"{passed} of {len(outcomes)} configs pass every stage" in (docs / "guided.md").read_text()
