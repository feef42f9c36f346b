# Each target builds its own environment in .venv first; nothing but Python 3.10+, pip and make is needed.

PYTHON ?= python3
VENV ?= .venv
CHECKPOINT ?= $(CURDIR)/checkpoints/showattend-resnet50-flickr8k
RUNS ?= runs/checkpoint
TOKENIZER ?= bert-base-uncased
# The recipe reads these two from its environment, so that a path may hold spaces and quotes.
export IMAGE CHECKPOINT

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Version constraints for pip: constraints.txt, the oldest versions that pyproject.toml allows, or none.
VERSIONS ?= -c constraints.txt
PIP_INSTALL = "$(VENV)/bin/python" -m pip install $(VERSIONS) -e
OLDEST ?= .venv-oldest
NEWEST ?= .venv-newest

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

.PHONY: help caption checkpoint test test-conformance test-versions test-oldest test-newest check copy-code

help:
	@echo 'make caption IMAGE=photo.jpg   caption a photo (CHECKPOINT=folder chooses another model)'
	@echo 'make checkpoint DATASET=folder train the captioner in checkpoints/ again (CHECKPOINT=folder: elsewhere)'
	@echo 'make test                      run the tests'
	@echo 'make test-conformance          run the tests that transformers has for every model (downloads its sdist)'
	@echo 'make test-versions             run them with the oldest versions, those of constraints.txt, and the newest'
	@echo 'make copy-code                 copy the code that travels with a checkpoint into checkpoints/'
	@echo 'make check                     lint, check the formatting and the types'
	@echo 'make help                      list the targets'
	@echo 'PYTHON=python3.12 chooses the interpreter of a new .venv.'

caption: $(VENV)/.runtime-installed
	@"$(VENV)/bin/python" scripts/caption.py --checkpoint "$$CHECKPOINT" "$$IMAGE"

# Five phases of training; docs/training says why each. The same command resumes: a phase that is complete is skipped.
# Without `accelerate launch`, which gives a process on a CPU one thread unless OMP_NUM_THREADS is set.
TRAIN = "$(VENV)/bin/python" -m showattend train --dataset "$(DATASET)"
checkpoint: $(VENV)/.dev-installed
	test -e "$(RUNS)/resnet50.safetensors" || \
		"$(VENV)/bin/python" -m showattend fetch-original-resnet50 "$(RUNS)/resnet50.safetensors"
	$(TRAIN) --preset finetune --output-dir "$(RUNS)/1" --tokenizer "$(TOKENIZER)" \
		--encoder-weights "$(RUNS)/resnet50.safetensors" --stride-in-1x1 true
	$(TRAIN) --preset self_critical --output-dir "$(RUNS)/2" --init-from "$(RUNS)/1/best"
	$(TRAIN) --preset distil --output-dir "$(RUNS)/3" --init-from "$(RUNS)/2/best"
	$(TRAIN) --preset self_critical --output-dir "$(RUNS)/4" --init-from "$(RUNS)/3/best"
	$(TRAIN) --preset distil_again --output-dir "$(RUNS)/5" --init-from "$(RUNS)/4/best" --average-with "$(RUNS)/2/best"
	"$(VENV)/bin/python" -m showattend pack-checkpoint "$(RUNS)/5/best" "$(CHECKPOINT)" --num-beams 3 \
		--no-repeat-ngram-size 3

test: $(VENV)/.dev-installed
	@"$(VENV)/bin/python" -m pytest -n 2 --dist loadfile

# Not with the other tests: it needs PyPI, and marks that are not ours.
test-conformance: $(VENV)/.dev-installed
	@"$(VENV)/bin/python" -m pytest -q -o addopts= -W ignore tests/conformance/conformance.py

test-versions: test-oldest test test-newest

# With Python 3.10 to 3.12: numpy 2.0 has no wheel for 3.13.
test-oldest:
	@mkdir -p "$(OLDEST)"
	@"$(PYTHON)" scripts/versions.py oldest > "$(OLDEST)/oldest.txt"
	@$(MAKE) --no-print-directory VENV="$(OLDEST)" VERSIONS='-c "$(OLDEST)/oldest.txt"' test

# What pip chooses here today, upgraded each time.
test-newest:
	@rm -f "$(NEWEST)/.dev-installed"
	@$(MAKE) --no-print-directory VENV="$(NEWEST)" VERSIONS="--upgrade --upgrade-strategy eager" test test-conformance \
		|| { "$(NEWEST)/bin/python" scripts/versions.py moved; exit 1; }

copy-code:
	cp modeling_showattend/*_showattend.py checkpoints/showattend-resnet50-flickr8k/

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
