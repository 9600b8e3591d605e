# make figures    every figure, from the committed records; SCALE=smoke|quick|paper trains what that scale lacks
# make test       the tests
# make claims     docs/claims.md and the numbers that documents quote, from the records
# make site       build/site/index.html: executed notebooks, documents, reference, search; readable offline
# make bench      speed and memory, one core
# make clean      remove what was built, but for .venv
# make lock       requirements.lock anew, from pyproject.toml in an empty environment
# All need python3 (3.11 or later; or PYTHON=...) and build .venv from requirements.lock where it is missing or older.

PYTHON ?= python3
SCALE ?=
ARGS ?=
PY := .venv/bin/python
STAMP := .venv/.from-requirements.lock
SITE := build/site-venv

export OMP_NUM_THREADS := 1

.PHONY: figures test claims site bench clean lock venv
figures: $(STAMP)
	$(PY) -m snakemake --cores 4 $(ARGS) $(if $(SCALE),--config scale=$(SCALE))

test: $(STAMP)
	$(PY) -m pytest -n 2 --dist worksteal $(ARGS)

claims: $(STAMP)
	$(PY) -m flowrl claims $(ARGS)

site: figures $(SITE)/.from-requirements.txt
	$(SITE)/bin/python docs/make.py build/$(if $(filter smoke,$(SCALE)),smoke/)notebooks build/site

bench: $(STAMP)
	$(PY) -m benchmarks $(ARGS)

clean:
	rm -rf build .snakemake data/runs/smoke .pytest_cache .ruff_cache .hypothesis
	find flowrl tests notebooks -name __pycache__ -prune -exec rm -rf {} +

lock:
	$(PYTHON) -m venv --clear build/lock
	build/lock/bin/pip install --quiet '.[all]' 'soupsieve<3' # later ones refuse Debian 12's Python, 3.11.2
	echo "# Every package at the version that make installs; made by make lock." > build/lock/requirements.lock
	build/lock/bin/pip freeze --all --exclude pip --exclude flowrl-iar | sed 's/+cpu$$//' >> build/lock/requirements.lock
	mv build/lock/requirements.lock requirements.lock

venv: $(STAMP)

$(STAMP): requirements.lock
	@command -v $(PYTHON) > /dev/null || { echo "no $(PYTHON) here; flowrl needs Python 3.11 or later" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("flowrl needs Python 3.11 or later; " \
	  "$(PYTHON) is %d.%d. Name another one: make PYTHON=python3.12" % v[:2])'
	$(PYTHON) -m venv --clear .venv
	$(PY) -m pip install --quiet -r requirements.lock
	$(PY) -m pip install --quiet --no-deps --no-build-isolation --config-settings editable_mode=compat -e .
	@touch $@

# Sphinx and its kin; flowrl and what it imports are .venv's
$(SITE)/.from-requirements.txt: docs/requirements.txt $(STAMP)
	$(PYTHON) -m venv --clear $(SITE)
	$(SITE)/bin/pip install --quiet -r docs/requirements.txt -c requirements.lock
	$(PY) -c 'import site; print("import site; site.addsitedir(%r)" % site.getsitepackages()[0])' \
	  > $$($(SITE)/bin/python -c 'import site; print(site.getsitepackages()[0])')/flowrl.pth
	@touch $@
