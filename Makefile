# Two commands matter: `make demo` and `make test`. `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SUDO := $(shell [ "$$(id -u)" = 0 ] || command -v sudo)
APT := $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# The package is for the python3 of the distribution, whatever other one comes first on the PATH.
ARCH = $(shell dpkg --print-architecture)
DEB_PYTHON = $(if $(filter python3,$(PYTHON)),$(shell /usr/bin/python3 -c 'import sys; print("3.%d" % sys.version_info[1])'),$(PYTHON))

# Complete once its known answers are there.
REAL_MODEL := .real-model/SmolLM2-135M-Instruct/known_answers.json
# Random weights, a vocabulary of 262,144.
LARGE_VOCABULARY := .real-model/large-vocabulary/genai_config.json

# The Debian that `make test-system` boots, and its python3.
RELEASE ?= bookworm
PYTHON_bookworm := python3.11
PYTHON_trixie := python3.13

# The oldest onnxruntime that edged takes, one in between, and the newest beside its oracle.
RUNTIMES := 'onnxruntime==1.23.2' 'onnxruntime==1.28.*' 'onnxruntime-genai'

.PHONY: check unit broker $(shell awk -F: '/^[a-z-]+:.*\#\#/ {print $$1}' $(MAKEFILE_LIST))

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.demo ## broker, daemon and model in one: asks and answers
	@$(BIN)/edged demo

test: check unit broker ## everything quick: lint, types, unit tests, tests over a real broker

test-loaded: $(VENV)/.dev | mosquitto ## make test beside stress-ng, which keeps processors and disk busy: N=5 times (an hour or more)
	@command -v stress-ng >/dev/null || { $(APT) update -qq && $(APT) install -qq -y --no-install-recommends stress-ng >/dev/null; }
	@N=$(or $(N),5) tests/loaded.sh

check: $(VENV)/.dev
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

unit: $(VENV)/.dev
	@$(BIN)/pytest -q -n 2 -m "not slow" tests/unit

broker: $(VENV)/.dev | mosquitto
	@$(BIN)/pytest -q -n 3 -m "not slow" tests/broker

test-slow: $(VENV)/.dev | mosquitto ## floods, bombs, crash loops, packages that change (minutes)
	@$(BIN)/pytest -q -n 3 -m slow tests/unit tests/broker

test-examples: $(VENV)/.dev ## the tests of random documents with five times the examples (EXAMPLES=searching: new ones; minutes)
	@$(BIN)/pytest -q -n 2 -m hypothesis --hypothesis-profile $(or $(EXAMPLES),thorough) tests/unit

.PHONY: bit-flips
bit-flips: $(VENV)/.dev ## 200 single-bit flips in each file of a package, the spool, its log and a prefix: what finds each (SEED=N; minutes)
	@EDGED_BIT_FLIPS=$(or $(FLIPS),200) EDGED_BIT_FLIPS_SEED=$(or $(SEED),14) $(BIN)/pytest -q tests/unit/test_bit_flips.py

families: $(VENV)/.dev ## every family of models against onnxruntime-genai's ids, 52 prompts each (two minutes)
	@$(BIN)/pytest -q tests/families

test-pull: $(VENV)/.dev ## edged model pull from a real nginx: cuts, damage, full disks (root for the disks; two minutes)
	@{ command -v nginx && command -v openssl && command -v mkfs.ext4; } >/dev/null || { \
		echo "installing nginx and openssl …"; \
		$(APT) update -qq && $(APT) install -qq -y --no-install-recommends nginx-light openssl e2fsprogs >/dev/null; \
		[ ! -d /run/systemd/system ] || $(SUDO) systemctl disable --quiet --now nginx; }
	@$(BIN)/pytest -q tests/pull

chaos: $(VENV)/.dev | mosquitto chaos-tools ## kills, cuts and broken networks: no job lost, none run twice (SEED=N repeats a run; KILLS=N in each stage, 50; minutes; all of it as root)
	@$(BIN)/python tests/chaos/run.py $(if $(SEED),--seed $(SEED)) $(if $(KILLS),--kills $(KILLS))

chaos-selftest: $(VENV)/.dev | mosquitto ## whether `make chaos` would notice three broken promises (a minute and a half)
	@$(BIN)/python tests/chaos/selftest.py $(if $(SEED),--seed $(SEED))

.PHONY: simulate simulate-selftest
simulate: $(VENV)/.dev ## rollouts and shared jobs in a fleet under virtual time and faults: SEED=n SEEDS=1 BOARDS=500 DAYS=30 (minutes)
	@PYTHONPATH=tests $(BIN)/python -m simulator.run $(if $(SEED),--seed $(SEED)) --seeds $(or $(SEEDS),1) --boards $(or $(BOARDS),500) --days $(or $(DAYS),30)

simulate-selftest: $(VENV)/.dev ## whether `make simulate` would notice broken promises, one at a time (minutes)
	@PYTHONPATH=tests $(BIN)/python -m simulator.selftest $(if $(SEED),--seed $(SEED)) --seeds $(or $(SEEDS),3)

soak: $(VENV)/.dev | mosquitto ## 100,000 jobs (JOBS=N) through one process, over lost connections and brokers; the slope of its memory
	@$(BIN)/python tests/chaos/soak.py $(if $(SEED),--seed $(SEED)) $(if $(JOBS),--jobs $(JOBS))

test-system: DEB_PYTHON = $(or $(PYTHON_$(RELEASE)),$(error RELEASE=$(RELEASE): must be bookworm or trixie))
test-system: $(VENV)/.dev deb ## the package on a booted Debian 12 (RELEASE=trixie: 13), from installation to purge (root, systemd-nspawn; minutes, 400 MB)
	@{ command -v debootstrap && command -v systemd-nspawn; } >/dev/null || { \
		echo "installing debootstrap and systemd-nspawn …"; \
		$(APT) update -qq && $(APT) install -qq -y --no-install-recommends debootstrap systemd-container >/dev/null; }
	@RELEASE=$(RELEASE) $(BIN)/pytest -q -rP tests/system

test-cuda: ## a package for a GPU on a real GPU, with the python3 and the onnxruntime-gpu that are installed here
	@$(PYTHON) -m pytest -q -rs tests/cuda

test-faults: $(VENV)/.dev | mosquitto ## floods, 50,000 jobs, a day offline, erasure on a raw disk: with figures (root for some; minutes)
	@command -v faketime >/dev/null || { $(APT) update -qq && $(APT) install -qq -y --no-install-recommends faketime >/dev/null; }
	@$(BIN)/pytest -q -rsP tests/faults

test-governor: $(VENV)/.dev | mosquitto ## the governor in a real daemon under a quota of processor time, with sensors that follow its load (root; six minutes)
	@$(BIN)/pytest -q -rsP tests/faults/test_governed.py

show-promtool: $(VENV)/.dev | mosquitto ## what promtool says to the rules, their tests and the metrics of each board
	@cd deploy/prometheus && promtool check rules alerts.yml rules.yml gen_ai.yml && promtool test rules alerts_test.yml rules_test.yml gen_ai_test.yml
	@$(BIN)/pytest -q -k promtool tests/unit/test_metrics.py tests/unit/test_dashboards.py

test-clients: $(VENV)/.dev | mosquitto ## every example of docs/clients.md with the client that it is for (Node.js, Node-RED; minutes the first time)
	@command -v npm >/dev/null || { $(APT) update -qq && $(APT) install -qq -y --no-install-recommends nodejs npm >/dev/null; }
	@[ -d $(VENV)-clients/node_modules/@asyncapi ] || npm install --silent --no-audit --no-fund --prefix $(VENV)-clients mqtt node-red @asyncapi/parser
	@[ -d $(VENV)-clients/python ] || $(BIN)/python -m pip install --quiet --no-deps --target $(VENV)-clients/python aiomqtt
	@CLIENTS_NODE=$(abspath $(VENV)-clients) PYTHONPATH=$(abspath $(VENV)-clients/python) $(BIN)/pytest -q -rs tests/clients

test-brokers: $(VENV)/.dev | mosquitto ## the promises of the contract on other brokers: which hold, and what edged says otherwise (ONLY=name; minutes)
	@{ command -v nats-server && command -v ejabberdctl && command -v npm && [ -x /usr/lib/rabbitmq/bin/rabbitmq-server ]; } >/dev/null || { \
		echo "installing ejabberd, NATS, Node.js and RabbitMQ …"; \
		$(APT) update -qq && $(APT) install -qq -y --no-install-recommends ejabberd nats-server nodejs npm rabbitmq-server >/dev/null; \
		[ ! -d /run/systemd/system ] || $(SUDO) systemctl disable --quiet --now ejabberd nats-server rabbitmq-server; }
	@[ -d $(VENV)-brokers/node_modules/aedes ] || npm install --silent --no-audit --no-fund --prefix $(VENV)-brokers aedes
	@[ -x $(VENV)-brokers/python/bin/amqtt ] || { $(BIN)/python -m venv $(VENV)-brokers/python && $(VENV)-brokers/python/bin/python -m pip install --quiet --disable-pip-version-check amqtt; }
	@BROKERS_NODE=$(abspath $(VENV)-brokers)/node_modules BROKERS_AMQTT=$(abspath $(VENV)-brokers)/python/bin/amqtt \
		$(BIN)/python tests/brokers/run.py --only '$(ONLY)'

show-brokers: $(VENV)/.dev | mosquitto ## a result that the broker does not take, in a queue, and ten minutes with a short keep-alive time (SECONDS=N)
	@$(BIN)/python tests/brokers/show.py $(if $(SECONDS),--seconds $(SECONDS))

test-fleet: $(VENV)/.dev | mosquitto ## twenty real daemons (DAEMONS=N) at a broker that is locked down: rollouts, kills, shared jobs, stolen keys; what they send (half an hour, 2 GB; PICTURE=FILE.svg)
	@DAEMONS=$(or $(DAEMONS),20) $(if $(PICTURE),FLEET_PICTURE=$(PICTURE)) $(BIN)/pytest -q -rP tests/fleet

show-fleet: $(VENV)/.dev | mosquitto ## as many real daemons as fit in memory (DAEMONS=N): load of the broker, seconds until all know of a rollout
	@$(BIN)/python tests/fleet/many.py $(if $(DAEMONS),--daemons $(DAEMONS))

test-cluster: $(VENV)/.dev | mosquitto ## two ejabberd nodes in one cluster, each killed and back, with jobs and a rollout under way; a site's broker bridged to a centre (ten minutes)
	@command -v ejabberdctl >/dev/null || { \
		echo "installing ejabberd …"; \
		$(APT) update -qq && $(APT) install -qq -y --no-install-recommends ejabberd >/dev/null; \
		[ ! -d /run/systemd/system ] || $(SUDO) systemctl disable --quiet --now ejabberd; }
	@$(BIN)/pytest -q tests/cluster

test-page: $(VENV)/.dev | mosquitto ## the page at / in a real Chromium, light and dark, 360 and 1280 pixels wide; with axe-core (PICTURES=FOLDER; a minute)
	@command -v chromium >/dev/null || { $(APT) update -qq && $(APT) install -qq -y --no-install-recommends chromium fonts-dejavu-core >/dev/null; }
	@command -v npm >/dev/null || { $(APT) update -qq && $(APT) install -qq -y --no-install-recommends nodejs npm >/dev/null; }
	@[ -d $(VENV)-page/node_modules/axe-core ] || npm install --silent --no-audit --no-fund --prefix $(VENV)-page axe-core
	@AXE=$(abspath $(VENV)-page)/node_modules/axe-core/axe.min.js PAGE_PICTURES=$(PICTURES) $(BIN)/pytest -q -rs tests/page

show-page: $(VENV)/.dev $(if $(MODEL),,$(REAL_MODEL)) | mosquitto ## the page of a daemon with a real model and jobs into docs/, and edged top [MODEL=FOLDER] [MINUTES=10] (chromium)
	@$(BIN)/python tests/page/show.py $(or $(MODEL),$(dir $(REAL_MODEL))) $(or $(MINUTES),10)

test-dashboards: $(VENV)/.dev ## Grafana's published types take the dashboards of deploy/grafana (Node.js; a minute the first time)
	@command -v npm >/dev/null || { $(APT) update -qq && $(APT) install -qq -y --no-install-recommends nodejs npm >/dev/null; }
	@[ -d $(VENV)-grafana/node_modules/@grafana ] || npm install --silent --no-audit --no-fund --prefix $(VENV)-grafana @grafana/schema ts-json-schema-generator ajv
	@GRAFANA_NODE=$(abspath $(VENV)-grafana)/node_modules $(BIN)/pytest -q tests/unit/test_dashboards.py

test-arm: $(VENV)/.dev | mosquitto ## the package for Arm, emulated on the processors of a Pi 4 and a Pi 5 (root, Linux 6.7; half an hour, 400 MB)
	@{ command -v debootstrap && command -v qemu-aarch64-static; } >/dev/null || { \
		echo "installing debootstrap and qemu-user-static …"; \
		$(APT) update -qq && $(APT) install -qq -y --no-install-recommends debootstrap qemu-user-static >/dev/null; }
	@$(MAKE) --no-print-directory deb ARCH=arm64 PYTHON=python3.11
	@$(BIN)/pytest -q -rP tests/arm

deb: ## the package for this machine's distribution: make deb [PYTHON=python3.13] [ARCH=arm64] (no root; a minute)
	@[ -x $(BIN)/python ] || $(MAKE) --no-print-directory PYTHON=python3 $(BIN)/python
	@$(BIN)/python deploy/debian/package.py --python $(DEB_PYTHON) --arch $(ARCH)

sbom: deb ## the package, then what it carries and under which licences (CycloneDX in dist/)
	@cat dist/root-*/usr/share/doc/edged/licences.txt

deb-resolve: $(VENV)/.dev ## pin anew what packages carry, for each Python and processor, and print a table
	@$(PIP) uv
	@$(BIN)/python deploy/debian/resolve.py

bench: $(VENV)/.dev | mosquitto ## the engine beside onnxruntime alone, on a full-size package: make bench MODEL=FOLDER
	@$(BIN)/python tests/benchmarks/engine.py $(MODEL)

bench-peers: $(VENV)-peers/.done ## the engine beside llama.cpp and onnxruntime-genai: make bench-peers MODEL=FOLDER
	@$(VENV)-peers/bin/python tests/benchmarks/peers.py $(MODEL)

.PHONY: bench-digests
bench-digests: $(VENV)/.dev ## a load with and without the check of the package's files: make bench-digests MODEL=FOLDER
	@$(BIN)/python tests/benchmarks/digests.py $(MODEL)

test-runtimes: ## the engine and known answers under older onnxruntimes and beside onnxruntime-genai
	@set -e; for runtime in $(RUNTIMES); do \
		venv=$(VENV)-$$(echo "$$runtime" | tr -d '=*'); \
		[ -x $$venv/bin/pytest ] || { \
			echo "installing $$runtime and what the tests need (a minute or two) …"; $(PYTHON) -m venv $$venv; \
			$$venv/bin/python -m pip install --quiet --disable-pip-version-check "$$runtime" -e '.[dev]'; }; \
		echo "$$runtime:"; \
		$$venv/bin/pytest -q tests/unit/test_known_answers.py tests/unit/test_engine.py tests/unit/test_mapped_weights.py -k 'test_verify or not (gemma2 or sliding)'; \
	done

test-templates: $(VENV)-templates/.done ## published chat templates, rendered as transformers renders them, and calls of tools (minutes; downloads 500 MB once)
	@PYTHONPATH=. $(VENV)-templates/bin/python tests/templates/compare.py $(VENV)-templates/published
	@PYTHONPATH=. $(VENV)-templates/bin/python tests/templates/guard.py $(VENV)-templates/published
	@PYTHONPATH=. $(VENV)-templates/bin/python tests/templates/tools.py $(VENV)-templates/published

fields: $(VENV)/.dev ## each field of a job that changes what is chosen or asked, beside its reference on random cases
	@$(BIN)/python tests/benchmarks/fields.py

bench-jobs: $(VENV)/.dev | mosquitto ## what a job costs beyond the model: overhead, jobs/s, memory, bytes written
	@$(BIN)/python tests/benchmarks/jobs.py

.PHONY: bench-sharing
bench-sharing: $(VENV)/.dev | mosquitto ## jobs of a group whose eight members share their load, two of them slow, beside a central queue and a blind broker (minutes)
	@$(BIN)/python tests/benchmarks/sharing.py

bench-scrape: $(VENV)/.dev | mosquitto ## what a scrape of the metrics costs, alone and beside eight jobs, and what it costs them
	@$(BIN)/python tests/benchmarks/scrape.py

bench-sampling: $(VENV)/.dev $(if $(MODEL),,$(LARGE_VOCABULARY)) ## what the choice of a token costs beside a step, for each option of a job: make bench-sampling [MODEL=FOLDER]
	@$(BIN)/python tests/benchmarks/sampling.py $(or $(MODEL),$(dir $(LARGE_VOCABULARY)))

.PHONY: bench-prefill
bench-prefill: $(VENV)/.dev $(if $(MODEL),,$(REAL_MODEL) $(LARGE_VOCABULARY)) ## prompts through the served graph and as published: two models, or MODEL=FOLDER (minutes)
	@$(BIN)/python tests/benchmarks/prefill.py $(or $(MODEL),$(dir $(REAL_MODEL)) $(dir $(LARGE_VOCABULARY)))

.PHONY: bench-int8
bench-int8: $(VENV)/.dev $(REAL_MODEL) ## an int8 KV cache beside the published one: memory, perplexity, speed [MODEL=FOLDER] (minutes)
	@$(BIN)/python tests/benchmarks/int8.py $(MODEL)

.PHONY: bench-packed
bench-packed: $(VENV)/.dev $(REAL_MODEL) ## why a prompt's chunk and other rows' tokens are steps of their own: time and bits in one step [MODEL=FOLDER] (minutes)
	@$(BIN)/python tests/benchmarks/packed.py $(MODEL)

.PHONY: bench-speculation
bench-speculation: $(VENV)/.dev $(REAL_MODEL) ## guessed tokens beside single steps: a real model's wall time, the same ids [MODEL=FOLDER] (minutes)
	@$(BIN)/python tests/benchmarks/speculation.py $(MODEL)

bench-card: $(VENV)/.dev | mosquitto ## what a job writes to the card, counted at the block device (root; four minutes)
	@$(BIN)/python tests/benchmarks/card.py

bench-streaming: $(VENV)/.dev ## what a token costs on its way to text, for each kind of tokenizer: make bench-streaming [MODEL=FOLDER]
	@$(BIN)/python tests/benchmarks/streaming.py $(MODEL)

show-governor: $(VENV)/.dev ## an hour of jobs on a simulated Raspberry Pi 5, with and without the governor: a table, and docs/governor.svg
	@PYTHONPATH=. $(BIN)/python tests/unit/simulated_board.py

power: $(VENV)/.dev | mosquitto ## cut the power at every fsync and at 1,000 instants between, and look what is left in the spool
	@command -v gcc >/dev/null || { echo "installing gcc …"; $(APT) update -qq && $(APT) install -qq -y --no-install-recommends gcc libc6-dev >/dev/null; }
	@$(BIN)/python tests/power/cut.py

eval-demo: $(VENV)/.dev ## score the demo model on what it has not seen
	@$(BIN)/python deploy/demo-model/evaluate.py

demo-model: $(VENV)-demo-model/.done ## train the demo model anew (three quarters of an hour on two cores)
	@$(VENV)-demo-model/bin/python deploy/demo-model/train.py

.PHONY: test-schemas
test-schemas: $(VENV)/.dev ## real JSON schemas with judged values: make test-schemas SCHEMAS=FOLDER [MODELS='FOLDER …'] (minutes)
	@$(BIN)/python tests/schemas/check.py $(or $(SCHEMAS),$(error SCHEMAS=FOLDER: .jsonl or .jsonl.gz with name, schema, tests)) $(or $(MODELS),$(sort $(wildcard tests/fixtures/models/phi3 $(dir $(REAL_MODEL)) $(dir $(LARGE_VOCABULARY)))))

.PHONY: real-model test-real bench-real bench-structured
real-model: $(REAL_MODEL) ## build a package of SmolLM2-135M-Instruct in .real-model (minutes; gigabytes the first time)

test-real: $(VENV)/.dev $(VENV)-genai/.done $(REAL_MODEL) | mosquitto ## a real model's ids beside onnxruntime-genai's: alone, in company, over MQTT, from disk (ten minutes)
	@$(BIN)/pytest -q --durations=0 --durations-min=1 tests/real

bench-real: $(REAL_MODEL) $(VENV)-peers/.done ## the real model beside llama.cpp with the same weights (minutes)
	@$(VENV)-peers/bin/python tests/benchmarks/real.py

bench-structured: $(VENV)/.dev $(REAL_MODEL) ## a choice, a ranking, and forced tokens beside single steps, with the real model [DOCUMENTS=FILE] (minutes)
	@$(BIN)/python tests/benchmarks/structured.py $(DOCUMENTS)

.PHONY: bench-rank
bench-rank: $(VENV)/.dev $(REAL_MODEL) ## questions on the docs: how often the real model ranks the right section first, beside word overlap (minutes)
	@$(BIN)/python tests/benchmarks/rank.py

.PHONY: bench-grammar-memory
bench-grammar-memory: $(VENV)/.dev $(if $(MODEL),,$(LARGE_VOCABULARY)) ## memory of structured answers with a vocabulary of 262,144 tokens [MODEL=FOLDER]
	@$(BIN)/python tests/benchmarks/grammar_memory.py $(or $(MODEL),$(dir $(LARGE_VOCABULARY)))

# What builds it has gigabytes, and is installed only where there is no model yet; to build it anew, delete .real-model.
$(REAL_MODEL):
	@$(MAKE) --no-print-directory $(VENV)-demo-model/.done
	@$(VENV)-demo-model/bin/python deploy/real-model/build.py

$(LARGE_VOCABULARY): tests/benchmarks/large_vocabulary.py
	@$(MAKE) --no-print-directory $(VENV)-demo-model/.done
	@$(VENV)-demo-model/bin/python tests/benchmarks/large_vocabulary.py $(dir $@)

# With the onnxruntime of the tests, so that both compute the same.
$(VENV)-genai/.done: $(VENV)/.dev
	@[ -x $(VENV)-genai/bin/python ] || $(PYTHON) -m venv $(VENV)-genai
	@echo "installing onnxruntime-genai (a minute) …"
	@$(VENV)-genai/bin/python -m pip install --quiet --disable-pip-version-check 'onnxruntime-genai>=0.18' \
		onnxruntime==$$($(BIN)/python -c 'import importlib.metadata as m; print(m.version("onnxruntime"))')
	@touch $@

$(VENV)-demo-model/.done: deploy/demo-model/requirements.txt
	@[ -x $(VENV)-demo-model/bin/python ] || $(PYTHON) -m venv $(VENV)-demo-model
	@echo "installing torch, transformers and onnxruntime-genai (minutes, gigabytes) …"
	@$(VENV)-demo-model/bin/python -m pip install --quiet --disable-pip-version-check -r deploy/demo-model/requirements.txt
	@touch $@

clean: ## remove what was installed and built here
	@rm -rf $(VENV) $(VENV)-* .system-root .chaos .arm-root .real-model build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Debian leaves ensurepip out of python3; its package python3-venv brings it.
$(BIN)/python:
	@echo "setting up a virtual environment in $(VENV) …"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "edged needs Python 3.10 or newer: make PYTHON=python3.11 …" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { $(APT) update -qq && $(APT) install -qq -y python3-venv >/dev/null; } \
		|| { echo "python3-venv is missing: apt-get install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(BIN)/python
	@echo "installing edged with onnxruntime and the demo's broker (a minute or two) …"
	@$(PIP) -e '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	@echo "installing edged and what its tests need (a minute or two) …"
	@$(PIP) -e '.[dev]'
	@touch $@

# llama.cpp is built here, for this very CPU, without its multimodal part, and without AMX: no board has that, and on a
# server that does its kernel for AMX ended in a segmentation fault (llama-cpp-python 0.3.36).
NO_AMX := -mno-amx-tile -mno-amx-int8 -mno-amx-bf16
$(VENV)-peers/.done: pyproject.toml
	@command -v g++ >/dev/null || { echo "installing g++ …"; $(APT) update -qq && $(APT) install -qq -y --no-install-recommends g++ >/dev/null; }
	@[ -x $(VENV)-peers/bin/python ] || $(PYTHON) -m venv $(VENV)-peers
	@echo "installing onnxruntime-genai and building llama.cpp (ten minutes or more) …"
	@case $$(uname -m) in x86_64) export CFLAGS='$(NO_AMX)' CXXFLAGS='$(NO_AMX)';; esac; \
	CMAKE_ARGS=-DLLAVA_BUILD=OFF $(VENV)-peers/bin/python -m pip install --quiet --disable-pip-version-check \
		-e '.[cpu]' psutil gguf 'onnxruntime-genai>=0.18' --no-cache-dir --no-binary llama-cpp-python llama-cpp-python
	@touch $@

$(VENV)-templates/.done: tests/templates/fetch.py tests/templates/requirements.txt
	@[ -x $(VENV)-templates/bin/python ] || $(PYTHON) -m venv $(VENV)-templates
	@echo "installing transformers and downloading published templates (a few minutes) …"
	@$(VENV)-templates/bin/python -m pip install --quiet --disable-pip-version-check -r tests/templates/requirements.txt
	@$(VENV)-templates/bin/python tests/templates/fetch.py $(VENV)-templates/published
	@touch $@

.PHONY: mosquitto
mosquitto:
	@{ command -v mosquitto && command -v mosquitto_pub && command -v openssl && command -v promtool && command -v curl; } >/dev/null || { \
		echo "installing mosquitto, its clients, openssl, curl and prometheus (promtool) …"; \
		$(APT) update -qq && $(APT) install -qq -y --no-install-recommends \
			mosquitto mosquitto-clients openssl curl prometheus >/dev/null; }

.PHONY: chaos-tools
chaos-tools:
	@{ command -v ip && command -v mkfs.ext4 && ls /usr/lib/*/faketime/libfaketimeMT.so.1; } >/dev/null 2>&1 || { \
		echo "installing faketime, iproute2 and e2fsprogs …"; \
		$(APT) update -qq && $(APT) install -qq -y --no-install-recommends faketime iproute2 e2fsprogs >/dev/null; }
