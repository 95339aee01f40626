# Every target makes what it needs, the virtual environment in .venv first of all.
#
#   make demo-grpo          train, and see before and after on held-out problems (any method: demo-NAME)
#   make demo-grpo STEPS=5  the same, cut short
#   make demo-grpo-long     the same on sums twice as long, six minutes
#   make demo-dialogue      dialogues of several turns, by SFT on the assistant's turns alone
#   make demo-lora          GRPO with LoRA alone; also tiny-lora, adalora, prefix, bottleneck and qlora
#   make demo-tot           a test-time method, before and after (N=20: on so many problems)
#   make demos              every method's demo and one table; LINES=10 trims what each one prints, SEEDS=3
#   make test               the whole suite, on every core
#   make quick              what a change needs before a commit: lint, types, its own tests; seconds
#   make lint               ruff and mypy
#   make prove              hold every method against an oracle that knows all answers: tables
#   make exercise-cut       check your answer to an exercise of docs/learn.md (any: exercise-NAME)
#   make learn              write the code that docs/learn.md shows anew, from the files
#   make museum             put historic bugs into our code, one by one: which test catches each
#   make base               train checkpoints/base again, from nothing
#   make student            the same for checkpoints/student, from which distillation starts
#   make thinker            train checkpoints/thinker, which the test-time methods ask, from the base
#   make seeker             train checkpoints/seeker, from which R1-Zero and R1 start, from the base
#   make verifier           train checkpoints/verifier, which chooses among the thinker's hurried answers
#   make chooser            train checkpoints/chooser, which says on what most of some answers agree
#   make polisher           train checkpoints/polisher, which says a sum in clearer words
#   make card               measure them and write their model cards
#   make data               write data/simple_tasks.jsonl again from its tables
#   make bench              measure what BENCHMARKS.md says (installs TRL and transformers)
#   make compare            the RL methods at an equal budget of tokens: table and plot (matplotlib)
#   make compute-optimal    accuracy against tokens, test-time methods and GRPO: table and plot (matplotlib)
#   make study-pass-at-k    try a paper's finding at nano scale: table, plot, verdict (docs/studies.md)
#   make studies            all of them, and one table of verdicts
#   make ablations          what one part of a method adds, arm by arm: table
#   make compare-offline    SFT, RFT, DPO, RPO, KTO and OREO on one fixed set of answers: table

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
STEPS ?=
LINES ?=
N ?=
# What a change is measured against by `make quick`.
SINCE ?= HEAD
# A file in minipost/test_time/ is a test-time method.
TEST_TIME = $(subst _,-,$(basename $(notdir $(wildcard minipost/test_time/[a-z]*.py))))

# Demos that no file is named for.
OTHERS = dialogue lora tiny-lora adalora prefix bottleneck qlora

# A file in scripts/studies/ is a study.
STUDIES = $(subst _,-,$(basename $(notdir $(wildcard scripts/studies/[a-z]*.py))))

.PHONY: help test quick lint prove learn museum demos base student thinker seeker verifier chooser polisher card data bench compare ablations compare-offline compute-optimal studies clean
.PRECIOUS: $(VENV)/.%

help:
	@sed -n 's/^#  *\(make .*\)/  \1/p' Makefile

$(VENV)/.core: pyproject.toml constraints.txt
	@echo "installing into $(VENV) ..."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "minipost needs Python 3.11 or later")'
	@$(PYTHON) -m venv $(VENV)
	@$(INSTALL) -e .
	@touch $@

# An extra of pyproject.toml: test, lint, interop, bench or plot.
$(VENV)/.%: $(VENV)/.core
	@echo "installing the extra $* ..."
	@$(INSTALL) -e ".[$*]"
	@touch $@

$(addprefix demo-,$(TEST_TIME)): demo-%: $(VENV)/.core
	@$(BIN)/python -m minipost.evaluate --method $* --out runs/demo-$* $(if $(N),--n $(N))

# Sums twice as long, of which the model gets one in ten right before.
demo-grpo-long: $(VENV)/.core
	@$(BIN)/python -m minipost.train --algo grpo --task arithmetic --hurried True --terms 12 \
	  --model checkpoints/thinker --max-new-tokens 128 --steps $(or $(STEPS),200) --ask 33 \
	  --out runs/demo-grpo-long --overwrite

# A method with flags, which scripts/demos.py names.
$(addprefix demo-,$(OTHERS)): demo-%: $(VENV)/.core
	@$(BIN)/python -m scripts.demos $* $(if $(STEPS),--steps $(STEPS))

demo-%: $(VENV)/.core
	@$(BIN)/python -m minipost.train --algo $* --out runs/demo-$* --overwrite $(if $(STEPS),--steps $(STEPS))

demos: $(VENV)/.core
	@$(BIN)/python -m scripts.demos $(if $(SEEDS),--seeds $(SEEDS)) $(if $(LINES),--lines $(LINES)) $(if $(STEPS),--steps $(STEPS)) $(if $(N),--n $(N))

test: $(VENV)/.test
	@$(BIN)/python -m pytest --numprocesses auto --dist worksteal

lint: $(VENV)/.lint
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy

quick: lint $(VENV)/.test
	@$(BIN)/python -m scripts.quick --since $(SINCE)

prove: $(VENV)/.core
	@$(BIN)/python -m minipost.prove

learn: $(VENV)/.core
	@$(BIN)/python -m scripts.learn page

exercise-%: $(VENV)/.core
	@$(BIN)/python -m scripts.learn check $* || :  # the sentence says it; make would add a second

museum: $(VENV)/.test
	@$(BIN)/python -m tests.museum

base: $(VENV)/.core
	@$(BIN)/python -m scripts.pretrain

student: $(VENV)/.core
	@$(BIN)/python -m scripts.pretrain --shape student

thinker: $(VENV)/.core
	@$(BIN)/python -m scripts.pretrain --shape thinker

seeker: $(VENV)/.core
	@$(BIN)/python -m scripts.pretrain --shape seeker

verifier: $(VENV)/.core
	@$(BIN)/python -m minipost.train --algo prm --out runs/verifier --overwrite
	@cp -r runs/verifier/model/. checkpoints/verifier

chooser: $(VENV)/.core
	@$(BIN)/python -m minipost.train --algo sft --task choose --model checkpoints/thinker \
	  --max-new-tokens 160 --steps 1500 --batch-size 32 --optimizer muon --lr 4e-3 \
	  --out runs/chooser --overwrite
	@mkdir -p checkpoints/chooser && cp -r runs/chooser/model/. checkpoints/chooser

polisher: $(VENV)/.core
	@$(BIN)/python -m minipost.train --algo sft --task polish --model checkpoints/thinker \
	  --max-new-tokens 64 --steps 1500 --optimizer muon --lr 4e-3 --out runs/polisher --overwrite
	@mkdir -p checkpoints/polisher && cp -r runs/polisher/model/. checkpoints/polisher

card: $(VENV)/.core
	@$(BIN)/python -m scripts.card

data: $(VENV)/.core
	@$(BIN)/python -m scripts.make_facts

bench: $(VENV)/.bench
	@$(BIN)/python -m scripts.bench

compare: $(VENV)/.plot
	@$(BIN)/python -m scripts.compare

compute-optimal: $(VENV)/.plot
	@$(BIN)/python -m scripts.compute_optimal

$(addprefix study-,$(STUDIES)): study-%: $(VENV)/.plot
	@$(BIN)/python -m scripts.studies $*

studies: $(VENV)/.plot
	@$(BIN)/python -m scripts.studies

ablations: $(VENV)/.core
	@$(BIN)/python -m scripts.ablations

compare-offline: $(VENV)/.core
	@$(BIN)/python -m scripts.compare_offline

clean:
	rm -rf $(VENV) runs
