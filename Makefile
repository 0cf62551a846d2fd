# Each target sets up what it needs. You need Python 3.11 or newer, and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WHEEL_VENV := .venv-wheel
GPU_WHEEL := .onnxruntime-gpu
GPU_BASELINES := .gpu-baselines
GPU_SERVE := .gpu-serve
INFINITY := .infinity
TENSORRT_RTX := .tensorrt-rtx
GPU_PYTHON ?= 3.12
TRANSFORMERS_5 := .transformers-5
SENTENCE_TRANSFORMERS_6 := .sentence-transformers-6
SERVING_CLIENTS := .serving-clients
CLUSTER := .cluster
SPARK := .spark
PYTHONS_DIR := .pythons
MADE := $(CURDIR)/.made
EXAMPLES := .examples
DOCS := .docs
SITE := docs/_build
TOOLS := .tools
LICENCES := .licences
PYTHONS ?= 3.12 3.13 3.14
PIP_FLAGS := --quiet --disable-pip-version-check

# With every core, where pip takes one. It fails on what packages hold of templates.
COMPILE := $(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true

PYTEST := $(BIN)/pytest -n auto --dist worksteal

# Percent of the lines that tests must run. Processes that tests start are not measured.
RUNTIME_FLOOR := 85
EXPORT_FLOOR := 92
COVERAGE = --cov-report=$(COVERAGE_REPORT) --cov-fail-under

.PHONY: demo examples charts docs docs-links test forget-made check lint unit cov slow built-wheel wheel \
    pythons gpu-wheel tensorrt-rtx \
    gpu-baselines gpu-serve infinity transformers-5 sentence-transformers-6 serving-clients cluster spark clean \
    release-check extras licences

# Where the tests' environment is there, it will do.
demo: $(or $(wildcard $(VENV)/.ready),$(VENV)/.demo)  ## Export a trained model, embed with it, and show how fast that was
	@$(BIN)/python -m bge_bench.cli.demo

examples: $(VENV)/.ready  ## Search a bulk job's shards in Qdrant, Milvus Lite and LanceDB, beside bge-bench's score
	$(BIN)/python -W ignore examples/prepare.py $(EXAMPLES)
	for database in qdrant milvus lancedb; do \
	    $(BIN)/python -W ignore examples/search_$$database.py $(addprefix $(EXAMPLES)/,model vectors beir) || exit 1; \
	done
	$(BIN)/bge-bench retrieval $(EXAMPLES)/model --task $(EXAMPLES)/beir --precision fp32 --reference transformers

charts: $(VENV)/.ready  ## Charts, pictures and tables of the pages, from raw files in benchmarks/results
	$(BIN)/python -m docs.generate

docs: $(DOCS)/.ready  ## The documentation site, in docs/_build/html; broken links are errors
	$(DOCS)/bin/sphinx-build -q -E -a -W --keep-going -b html docs $(SITE)/html

docs-links: $(DOCS)/.ready  ## Also ask the servers that the pages link to
	$(DOCS)/bin/sphinx-build -q -b linkcheck docs $(SITE)/links

# What the first tests make of checkpoints and bundles is there for those that follow.
test: export BGE_TESTS_MADE_ONCE := $(MADE)
test: forget-made check docs transformers-5 sentence-transformers-6 serving-clients cluster wheel pythons  ## Everything CI runs

forget-made:
	rm -rf $(MADE)

check: lint unit

lint: $(VENV)/.ready $(TOOLS)/.ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(TOOLS)/bin/check-jsonschema -q --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(TOOLS)/bin/check-jsonschema -q --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/[!c]*.yml
	$(TOOLS)/bin/check-jsonschema -q --builtin-schema vendor.dependabot .github/dependabot.yml
	$(TOOLS)/bin/zizmor --offline --quiet --no-progress .github
	$(TOOLS)/bin/codespell *.md .github benchmarks/*.md benchmarks/bge_bench docs examples export runtime tests --skip docs/_build,tests/data
	$(BIN)/python tests/prose.py

unit: $(VENV)/.ready  ## All tests but the exporter's, which `transformers-5` runs
	$(PYTEST) -m "not network and not slow" --ignore tests/export \
	    --cov bge_runtime --cov bge_bench $(COVERAGE) $(RUNTIME_FLOOR)

cov: COVERAGE_REPORT := term-missing:skip-covered
cov: unit transformers-5  ## The same tests, and the lines of the three packages that they do not run

slow: $(VENV)/.ready  ## The larger BGE shapes at full size against FlagEmbedding, and a gigabyte of weights
	$(BIN)/pytest -m slow

built-wheel: $(VENV)/.ready
	rm -rf dist
	$(BIN)/pip wheel $(PIP_FLAGS) --no-deps --wheel-dir dist .

wheel: built-wheel  ## Install the built wheel with the runtime's dependencies only, and use it
	rm -rf $(WHEEL_VENV)
	$(PYTHON) -m venv $(WHEEL_VENV)
	$(WHEEL_VENV)/bin/pip install $(PIP_FLAGS) -c constraints.txt "$$(ls dist/*.whl)[cpu]"
	$(BIN)/python tests/wheel/make_bundle.py dist/bundle
	cd dist && ../$(WHEEL_VENV)/bin/python ../tests/wheel/check_wheel.py bundle *.whl
	$(BIN)/python tests/wheel/check_contents.py dist/*.whl

release-check: $(TOOLS)/.ready  ## Build wheel and sdist as for PyPI; check their metadata and their contents
	rm -rf dist
	$(TOOLS)/bin/python -m build --outdir dist .
	$(TOOLS)/bin/twine check --strict dist/*
	$(TOOLS)/bin/python tests/wheel/check_contents.py dist/*

licences: release-check  ## Write the table of dependencies' licences into THIRD_PARTY.md
	rm -rf $(LICENCES)
	$(PYTHON) -m venv $(LICENCES)
	$(LICENCES)/bin/pip install $(PIP_FLAGS) --no-compile -c constraints.txt "$$(ls dist/*.whl)[cpu,serve,bulk,sparse]"
	sed -i '/^<!-- generated -->/q' THIRD_PARTY.md
	echo >>THIRD_PARTY.md
	$(TOOLS)/bin/pip-licenses --python $(LICENCES)/bin/python --format markdown --no-version \
	    --ignore-packages bge-runtime pip setuptools >>THIRD_PARTY.md

extras: release-check  ## Let pip resolve every extra, alone and beside the newest peers; needs PyPI
	$(TOOLS)/bin/python tests/wheel/resolve_extras.py dist/*.whl

pythons: built-wheel  ## The runtime's tests on newer Pythons, those that are installed
	$(BIN)/python tests/pythons/run.py $(PYTHONS_DIR) dist/*.whl $(PYTHONS)

transformers-5: $(TRANSFORMERS_5)/.ready  ## The exporter's tests with what the extra `export` installs
	env -u BGE_TESTS_MADE_ONCE PYTHONPATH=$(CURDIR)/$(TRANSFORMERS_5) $(PYTEST) -m "not network and not slow" tests/export \
	    --cov bge_export $(COVERAGE) $(EXPORT_FLOOR)

sentence-transformers-6: $(SENTENCE_TRANSFORMERS_6)/.ready  ## Bundles in its OpenVINO backend
	PYTHONPATH=$(CURDIR)/$(SENTENCE_TRANSFORMERS_6) $(BIN)/pytest -q tests/test_interop.py \
	    -k sentence_transformers_on_openvino

# The servers they call, and the vectors they must get, are of the other environment. Warnings are
# of the clients: some leave sockets open, or use what is deprecated.
serving-clients: $(VENV)/.ready $(SERVING_CLIENTS)/.ready  ## Clients of other servers, against bge-serve
	$(SERVING_CLIENTS)/bin/pytest -q -W ignore --confcutdir tests/serving_clients tests/serving_clients

# Tiny bundles are made by the other environment, which has PyTorch. Warnings are of Ray.
cluster: $(VENV)/.ready $(CLUSTER)/.ready  ## Ray's Data, Serve and jobs on three nodes on this machine
	tests/cluster/on_loopback.sh $(CLUSTER)/bin/pytest -q -W ignore --confcutdir tests/cluster tests/cluster

spark: $(VENV)/.ready $(SPARK)/.ready  ## The recipe for Spark, which is 455 MB and needs Java
	$(SPARK)/bin/pytest -q -W ignore --confcutdir tests/spark tests/spark

gpu-wheel: $(VENV)/.ready  ## What the wheel for GPUs does on a machine without one
	$(BIN)/pip install $(PIP_FLAGS) --no-deps --upgrade --target $(GPU_WHEEL) onnxruntime-gpu==1.31.1
	PYTHONPATH=$(GPU_WHEEL) $(BIN)/pytest \
	    tests/runtime/engines/test_gpu_errors.py tests/runtime/engines/test_cuda_graphs.py \
	    tests/runtime/engines/test_uniform_length.py tests/runtime/engines/test_tensorrt.py

tensorrt-rtx: $(VENV)/.ready  ## NVIDIA's builder makes engines of TensorRT's graphs: needs wine, no GPU
	@command -v wine >/dev/null || { echo "make $@ needs wine; on Debian: apt install wine"; exit 1; }
	$(BIN)/pip install $(PIP_FLAGS) --no-deps --no-compile --upgrade --target $(TENSORRT_RTX) \
	    --platform win_amd64 --python-version 3.11 --only-binary=:all: onnxruntime-trt-rtx==1.23.2
	$(BIN)/pip install $(PIP_FLAGS) --no-deps --no-compile --upgrade --target $(TENSORRT_RTX) \
	    ziglang==0.13.0
	$(BIN)/pytest -m slow tests/export/test_tensorrt_rtx.py

gpu-baselines: $(VENV)/.ready  ## Pack PyTorch's baselines, in the versions tested here, for run_on_gpu.sh
	rm -rf $(GPU_BASELINES)*
	$(BIN)/pip list --format=freeze >$(GPU_BASELINES).txt
	$(BIN)/pip install $(PIP_FLAGS) --no-deps --no-compile -c $(GPU_BASELINES).txt \
	    --target $(GPU_BASELINES) FlagEmbedding
	$(BIN)/pip install $(PIP_FLAGS) --no-deps --no-compile -c $(GPU_BASELINES).txt \
	    --python-version $(GPU_PYTHON) --only-binary=:all: --target $(GPU_BASELINES) \
	    datasets dill huggingface-hub multiprocess sentence-transformers tokenizers transformers
	cd $(GPU_BASELINES) && ../$(BIN)/python -W ignore -c \
	    'from FlagEmbedding import FlagModel; import sentence_transformers'
	mkdir -p gpu-wheels
	tar -cJf gpu-wheels/baselines.tar.xz --exclude=__pycache__ -C $(GPU_BASELINES) .

gpu-serve: $(VENV)/.ready  ## Pack what bge-serve and bge-bench serve import, for serve_on_gpu.sh
	rm -rf $(GPU_SERVE)*
	$(BIN)/pip list --format=freeze >$(GPU_SERVE).txt
	$(BIN)/pip install $(PIP_FLAGS) --no-compile -c $(GPU_SERVE).txt \
	    --python-version $(GPU_PYTHON) --only-binary=:all: --target $(GPU_SERVE) \
	    httptools msgspec orjson prometheus-client psutil starlette uvicorn uvloop
	mkdir -p gpu-wheels
	tar -cJf gpu-wheels/serve.tar.xz --exclude=__pycache__ -C $(GPU_SERVE) .

infinity: $(INFINITY)/.ready  ## The server that bge-bench serve compares with, in an environment of its own

# It needs numpy 1 and an older uvicorn, which its own requirements do not say.
$(INFINITY)/.ready: Makefile
	rm -rf $(INFINITY)
	$(PYTHON) -m venv $(INFINITY)
	$(INFINITY)/bin/pip install $(PIP_FLAGS) "infinity-emb[ct2,optimum,server,torch]==0.0.78" \
	    "numpy<2" "optimum==2.1.0" "optimum-onnx==0.1.0" "torch==2.13.0" "transformers==4.57.6" \
	    "uvicorn<0.33"
	touch $@

$(VENV)/.torch: constraints-common.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install $(PIP_FLAGS) --upgrade "pip>=25.1"
	$(BIN)/pip install $(PIP_FLAGS) --no-compile -c constraints-common.txt torch
	touch $@

# Half of what tests and benchmarks need, with the newest transformers, as users have it.
$(VENV)/.demo: $(VENV)/.torch pyproject.toml constraints.txt
	$(BIN)/pip install $(PIP_FLAGS) --no-compile -c constraints.txt --group demo -e ".[export]"
	$(COMPILE)
	touch $@

$(VENV)/.ready: $(VENV)/.torch pyproject.toml constraints-peers.txt
	$(BIN)/pip install $(PIP_FLAGS) --no-compile -c constraints-peers.txt --group dev -e ".[bench]"
	$(COMPILE)
	touch $@

# The rest of what they need is in the environment. Compiled, since PyTest's workers would each do it,
# and since what Python warns of in other people's files would be errors there.
$(TRANSFORMERS_5)/.ready: constraints.txt $(VENV)/.ready
	rm -rf $(TRANSFORMERS_5)
	$(BIN)/pip install $(PIP_FLAGS) --no-deps --target $(TRANSFORMERS_5) -c constraints.txt \
	    transformers huggingface-hub tokenizers
	touch $@

# The newest that optimum-intel, the backend, admits.
$(SENTENCE_TRANSFORMERS_6)/.ready: Makefile $(VENV)/.ready
	rm -rf $(SENTENCE_TRANSFORMERS_6)
	$(BIN)/pip install $(PIP_FLAGS) --no-deps --target $(SENTENCE_TRANSFORMERS_6) \
	    sentence-transformers==6.2.0 optimum==2.3.0 optimum-intel==2.2.0 transformers==5.5.4 \
	    huggingface-hub==1.21.0
	touch $@

$(TOOLS)/.ready: pyproject.toml constraints-common.txt
	rm -rf $(TOOLS)
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/pip install $(PIP_FLAGS) --upgrade "pip>=25.1"
	$(TOOLS)/bin/pip install $(PIP_FLAGS) -c constraints-common.txt --group tools
	touch $@

# They need a newer huggingface_hub than the peers admit.
$(SERVING_CLIENTS)/.ready: tests/serving_clients/requirements.txt
	rm -rf $(SERVING_CLIENTS)
	$(PYTHON) -m venv $(SERVING_CLIENTS)
	$(SERVING_CLIENTS)/bin/pip install $(PIP_FLAGS) --no-compile -r $<
	touch $@

# As users install it, with the versions that the other environments have.
$(CLUSTER)/.ready: pyproject.toml constraints.txt constraints-common.txt tests/cluster/requirements.txt
	rm -rf $(CLUSTER)
	$(PYTHON) -m venv $(CLUSTER)
	$(CLUSTER)/bin/pip install $(PIP_FLAGS) --no-compile -c constraints.txt \
	    --editable ".[cpu,ray]" -r tests/cluster/requirements.txt
	touch $@

$(SPARK)/.ready: pyproject.toml constraints.txt constraints-common.txt tests/spark/requirements.txt
	rm -rf $(SPARK)
	$(PYTHON) -m venv $(SPARK)
	$(SPARK)/bin/pip install $(PIP_FLAGS) --no-compile -c constraints.txt \
	    --editable ".[cpu,bulk]" -r tests/spark/requirements.txt
	touch $@

# LlamaIndex, mteb and Ray are left out: docs/conf.py has their modules read without them.
$(DOCS)/.ready: pyproject.toml constraints.txt constraints-common.txt
	rm -rf $(DOCS)
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/pip install $(PIP_FLAGS) --upgrade "pip>=25.1"
	$(DOCS)/bin/pip install $(PIP_FLAGS) --no-compile -c constraints.txt --group docs \
	    --editable ".[serve,bulk,langchain,chroma]"
	touch $@

clean:
	rm -rf $(VENV) $(WHEEL_VENV) $(GPU_WHEEL) $(GPU_BASELINES)* $(GPU_SERVE)* $(TENSORRT_RTX) \
	    $(TRANSFORMERS_5) $(SENTENCE_TRANSFORMERS_6) $(SERVING_CLIENTS) $(CLUSTER) $(SPARK) $(INFINITY) \
	    $(PYTHONS_DIR) $(MADE) $(EXAMPLES) $(DOCS) $(SITE) $(TOOLS) $(LICENCES) dist demo-bundle
