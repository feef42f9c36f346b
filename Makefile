# Each target builds its own environment in .venv first; nothing but Python 3.10+, pip and make is needed.

PYTHON ?= python3
VENV ?= .venv
CHECKPOINT ?= $(CURDIR)/checkpoints/showattend-resnet50-flickr8k
RUNS ?= runs/checkpoint
TOKENIZER ?= bert-base-uncased
# The recipe reads these two from its environment, so that a path may hold spaces and quotes.
export IMAGE CHECKPOINT

export PIP_DISABLE_PIP_VERSION_CHECK := 1
PIP_INSTALL = "$(VENV)/bin/python" -m pip install -c constraints.txt -e

ifneq ($(filter checkpoint,$(MAKECMDGOALS)),)
ifeq ($(strip $(DATASET)),)
$(error usage: make checkpoint DATASET=flickr8k/ [CHECKPOINT=folder] [TOKENIZER=vocab.txt])
endif
endif

ifneq ($(filter caption,$(MAKECMDGOALS)),)
ifeq ($(strip $(IMAGE)),)
$(error usage: make caption IMAGE=path/to/photo.jpg [CHECKPOINT=folder])
endif
endif

.PHONY: help caption checkpoint test check

help:
	@echo 'make caption IMAGE=photo.jpg   caption a photo (CHECKPOINT=folder chooses another model)'
	@echo 'make checkpoint DATASET=folder train the captioner in checkpoints/ again (CHECKPOINT=folder: elsewhere)'
	@echo 'make test                      run the tests'
	@echo 'make check                     lint, check the formatting and the types'
	@echo 'make help                      list the targets'
	@echo 'PYTHON=python3.12 chooses the interpreter of a new .venv.'

caption: $(VENV)/.runtime-installed
	@"$(VENV)/bin/python" scripts/caption.py --checkpoint "$$CHECKPOINT" "$$IMAGE"

# Fourteen phases, and averages of their weights (docs/training/tries.md says why). A phase that is complete is gone through
# in seconds.
TRAIN = "$(VENV)/bin/accelerate" launch scripts/train.py --dataset "$(DATASET)"
MIX = "$(VENV)/bin/python" scripts/mix_checkpoints.py
# What a captioner says of all photos, and training that learns it of the training photos.
TELL = "$(VENV)/bin/python" scripts/caption.py "$(DATASET)" --resume --output
DISTIL = $(TRAIN) --preset two_stages --epochs 3 --metric-for-best-model cider --teacher-captions
LAST_STAGES = --encoder-learning-rate 1e-5 --min-crop 0.75 --finetune-last-stages
checkpoint: $(VENV)/.dev-installed
	test -e "$(RUNS)/resnet50.safetensors" || \
	"$(VENV)/bin/python" scripts/fetch_original_resnet50.py "$(RUNS)/resnet50.safetensors"
	$(TRAIN) --output-dir "$(RUNS)/1" --preset frozen --tokenizer "$(TOKENIZER)" \
		--encoder-weights "$(RUNS)/resnet50.safetensors" --stride-in-1x1 true
	$(TRAIN) --output-dir "$(RUNS)/2" --preset finetune --init-from "$(RUNS)/1/best"
	$(TRAIN) --output-dir "$(RUNS)/3" --preset self_critical --init-from "$(RUNS)/2/best"
	$(MIX) "$(RUNS)/mixed-3" "$(RUNS)/2/best" "$(RUNS)/3/best" 0.25
	$(TRAIN) --output-dir "$(RUNS)/4" --preset regularise --init-from "$(RUNS)/mixed-3"
	$(TRAIN) --output-dir "$(RUNS)/5" --preset self_critical --init-from "$(RUNS)/4/best" $(LAST_STAGES)=1
	$(MIX) "$(RUNS)/mixed-5" "$(RUNS)/mixed-3" "$(RUNS)/4/best" 0.35 "$(RUNS)/5/best" 0.3
	$(TRAIN) --output-dir "$(RUNS)/6" --preset two_stages --init-from "$(RUNS)/mixed-5" --seed 43
	$(TRAIN) --output-dir "$(RUNS)/7" --preset self_critical --init-from "$(RUNS)/6/best" $(LAST_STAGES)=2
	$(MIX) "$(RUNS)/mixed-7" "$(RUNS)/mixed-5" "$(RUNS)/6/best" 0.45 "$(RUNS)/7/best" 0.15
	$(TRAIN) --output-dir "$(RUNS)/8" --preset two_stages --init-from "$(RUNS)/mixed-7" --seed 44 --epochs 4
	$(MIX) "$(RUNS)/mixed-8" "$(RUNS)/mixed-5" "$(RUNS)/6/best" 0.2 "$(RUNS)/7/best" 0.13 "$(RUNS)/8/best" 0.42
	$(TRAIN) --output-dir "$(RUNS)/9" --preset two_stages --init-from "$(RUNS)/mixed-8" --seed 45 --epochs 3
	$(TELL) "$(RUNS)/told-8.jsonl" --checkpoint "$(RUNS)/mixed-8" --num-beams 5
	$(TELL) "$(RUNS)/told-9.jsonl" --checkpoint "$(RUNS)/9/best" --num-beams 5
	$(DISTIL) "$(RUNS)/told-8.jsonl" "$(RUNS)/told-9.jsonl" \
		--output-dir "$(RUNS)/10" --init-from "$(RUNS)/mixed-8" --seed 46
	$(MIX) "$(RUNS)/mixed-10" "$(RUNS)/mixed-8" "$(RUNS)/10/best" 0.5
	$(TRAIN) --output-dir "$(RUNS)/11" --preset self_critical --init-from "$(RUNS)/mixed-10" --seed 47 $(LAST_STAGES)=2
	$(MIX) "$(RUNS)/mixed-11" "$(RUNS)/mixed-8" "$(RUNS)/10/best" 0.25 "$(RUNS)/11/best" 0.25
	$(TELL) "$(RUNS)/sampled-8.jsonl" --checkpoint "$(RUNS)/mixed-8" --sample --num-captions 10 --temperature 0.8
	$(TELL) "$(RUNS)/told-11.jsonl" --checkpoint "$(RUNS)/mixed-11" --num-captions 5 --num-beams 5 --length-penalty 1.3
	$(DISTIL) "$(RUNS)"/told-8.jsonl "$(RUNS)"/told-9.jsonl "$(RUNS)"/sampled-8.jsonl "$(RUNS)"/told-11.jsonl \
		--output-dir "$(RUNS)/12" --init-from "$(RUNS)/mixed-11" --seed 48
	$(MIX) "$(RUNS)/mixed-12" "$(RUNS)/mixed-8" "$(RUNS)/11/best" 0.2 "$(RUNS)/12/best" 0.4
	$(TELL) "$(RUNS)/told-12.jsonl" --checkpoint "$(RUNS)/mixed-12" --num-captions 5 --num-beams 5 --length-penalty 1.3
	$(DISTIL) "$(RUNS)"/told-*.jsonl "$(RUNS)/sampled-8.jsonl" \
		--output-dir "$(RUNS)/13" --init-from "$(RUNS)/mixed-12" --seed 49
	$(MIX) "$(RUNS)/mixed-13" "$(RUNS)/mixed-8" "$(RUNS)/12/best" 0.3 "$(RUNS)/13/best" 0.3
	$(TRAIN) --output-dir "$(RUNS)/14" --preset self_critical --init-from "$(RUNS)/mixed-13" --seed 50 $(LAST_STAGES)=2 \
		--meteor-weight 5
	$(MIX) "$(RUNS)/mixed-14" "$(RUNS)/mixed-8" "$(RUNS)/12/best" 0.2 "$(RUNS)/13/best" 0.2 "$(RUNS)/14/best" 0.2
	"$(VENV)/bin/python" scripts/pack_checkpoint.py "$(RUNS)/mixed-14" "$(CHECKPOINT)" --num-beams 5 \
		--no-repeat-ngram-size 3

test: $(VENV)/.dev-installed
	@"$(VENV)/bin/python" -m pytest -n 2 --dist loadfile

check: $(VENV)/.dev-installed
	"$(VENV)/bin/python" -m ruff check
	"$(VENV)/bin/python" -m ruff format --check
	"$(VENV)/bin/python" -m mypy

$(VENV)/.created:
	@command -v "$(PYTHON)" >/dev/null || { echo 'error: $(PYTHON) was not found; install Python 3.10 or newer, or name one with PYTHON=.' >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.version_info >= (3, 10) or sys.exit("error: $(PYTHON) is Python %d.%d, but 3.10 or newer is needed; name one with PYTHON=." % sys.version_info[:2])'
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { echo 'error: $(PYTHON) cannot create virtual environments; install its venv module (Debian and Ubuntu: apt install python3-venv).' >&2; exit 1; }
	@"$(PYTHON)" -m venv "$(VENV)"
	@touch $@

$(VENV)/.runtime-installed: $(VENV)/.created pyproject.toml constraints.txt
	@echo 'Installing what captioning needs into $(VENV), once; PyTorch is a large download.'
	@$(PIP_INSTALL) .
	@touch $@

$(VENV)/.dev-installed: $(VENV)/.created pyproject.toml constraints.txt
	@echo 'Installing what the tests need into $(VENV), once; PyTorch is a large download.'
	@$(PIP_INSTALL) '.[dev]'
	@touch "$(VENV)/.runtime-installed" $@
