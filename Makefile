# `make train` and `make test` do everything on a fresh machine; both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
MOSAIC := .cache/photo_mosaic

CONFIG ?= configs/photo_mosaic/unethead_lite0-s8-guided_1xb8-amp-400_photo-mosaic-160x160.py
ARGS ?=

.PHONY: setup train test test-openmmlab gpu-check lint docs clean
.DEFAULT_GOAL := setup

setup: $(STAMP)

$(STAMP): requirements.txt setup.py weights/pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --requirement requirements.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable . --editable ./weights
	touch $@

# Writes the embedded set on the first call, and says so and returns on the next ones.
train: setup
	$(BIN)/python tools/dataset_converters/photo_mosaic.py --out $(MOSAIC)
	$(BIN)/python tools/train.py $(CONFIG) $(ARGS)

test: setup
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(ARGS)

# The suite with mmengine, mmcv and mmsegmentation as OpenMMLab released them (docs/installation.md).
test-openmmlab:
	PYTHON=$(PYTHON) .ci/test-openmmlab $(ARGS)

# The tests that need a GPU, and the benchmark on it (docs/performance.md#on-a-gpu).
gpu-check: setup
	$(BIN)/python -c "import sys, torch; torch.cuda.is_available() or sys.exit('gpu-check: torch finds no GPU')"
	$(BIN)/python -m pytest -m gpu $(ARGS)
	$(BIN)/python tools/benchmark.py layer --device cuda --dtypes fp32 bf16 \
	    --memory-formats contiguous channels_last --out docs/benchmarks/gpu_layers.csv --overwrite
	$(BIN)/python tools/benchmark.py model --device cuda --dtypes fp32 bf16 \
	    --memory-formats contiguous channels_last --out docs/benchmarks/gpu_models.csv --overwrite

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The pages of docs/ as a site. A warning, such as a link that leads nowhere, is an error.
docs: setup
	$(BIN)/sphinx-build -q -W --keep-going docs build/site
	@echo "Wrote build/site/index.html"

clean:
	rm -rf $(VENV) .venv-openmmlab .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info \
		weights/build weights/*.egg-info
