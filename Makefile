# The two commands of the README: `make demo` and `make test`.

PYTHON ?= python3
VENV := .venv
# Processes for tests and for training the pocket model.
WORKERS ?= 2
BIN := $(VENV)/bin
# With a CUDA card pip picks torch's default build; without one, the constraint names a CPU build.
CONSTRAINT := $(shell command -v nvidia-smi >/dev/null 2>&1 || echo "-c constraints-cpu.txt")

.PHONY: demo test lint types unit browser pocket clean

demo: $(VENV)/.run
	$(BIN)/python . run workflows/text_to_image.json

test: lint types unit demo

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/pyright

# Each process has one thread: small models gain nothing from more.
unit: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

# Needs COMFYUI_PATH and a Chromium; see CONTRIBUTING.md.
browser: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet playwright
	$(BIN)/python -m pytest tests/browser

$(VENV)/.run: requirements.txt constraints-cpu.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(CONSTRAINT) -r requirements.txt
	touch $@

$(VENV)/.dev: $(VENV)/.run requirements-dev.txt
	$(BIN)/python -m pip install --quiet $(CONSTRAINT) -r requirements-dev.txt
	touch $@

# Trains the pocket model again from nothing; hours on a CPU. Interrupted, it goes on where it was.
TRAIN := $(BIN)/torchrun --nproc-per-node $(WORKERS) -m tools.pocket
pocket: $(VENV)/.dev
	$(BIN)/python -m tools.pocket.train_text
	$(TRAIN).train_vae
	$(BIN)/python -m tools.pocket.export
	$(BIN)/python -m tools.pocket.cache --side 128 --count 16000
	$(TRAIN).train_transformer --side 128
	$(BIN)/python -m tools.pocket.cache --side 256 --count 10000
	$(TRAIN).train_transformer --side 256 --count 10000 --steps 6000 --batch 32 --init transformer_128
	$(BIN)/python -m tools.pocket.cache --side 256 --count 2000 --blurred 1
	$(TRAIN).train_controlnet
	$(TRAIN).train_redux
	$(TRAIN).train_edit
	$(BIN)/python -m tools.pocket.export
	$(BIN)/python -m tools.pocket.score
	$(BIN)/python -m tools.pocket.score_redux
	$(BIN)/python -m tools.pocket.score_edit

clean:
	rm -rf $(VENV) output .pytest_cache .ruff_cache
