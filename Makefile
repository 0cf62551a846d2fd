# Each goal does its own set-up: Python >= 3.11 and make are all it takes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WHEEL_VENV := .venv-wheel
GPU_WHEEL := .onnxruntime-gpu
GPU_BASELINES := .gpu-baselines
TENSORRT_RTX := .tensorrt-rtx
GPU_PYTHON ?= 3.12
TRANSFORMERS_5 := .transformers-5
PIP_FLAGS := --quiet --disable-pip-version-check

# With every core, where pip takes one. It fails on what packages hold of templates.
COMPILE := $(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true

PYTEST := $(BIN)/pytest -n auto --dist worksteal

.PHONY: demo test check lint unit slow wheel gpu-wheel tensorrt-rtx gpu-baselines transformers-5 clean

demo: $(VENV)/.demo  ## Export a trained model, embed with it, and show how fast that was
	@$(BIN)/python -m bge_bench.demo

test: check transformers-5 wheel  ## Everything CI runs

check: lint unit

lint: $(VENV)/.ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

unit: $(VENV)/.ready
	$(PYTEST) -m "not network and not slow"

slow: $(VENV)/.ready  ## The larger BGE shapes at full size against FlagEmbedding, and a gigabyte of weights
	$(BIN)/pytest -m slow

wheel: $(VENV)/.ready  ## Install the built wheel with the runtime's dependencies only, and use it
	rm -rf dist $(WHEEL_VENV)
	$(BIN)/pip wheel $(PIP_FLAGS) --no-deps --wheel-dir dist .
	$(PYTHON) -m venv $(WHEEL_VENV)
	$(WHEEL_VENV)/bin/pip install $(PIP_FLAGS) -c constraints.txt "$$(ls dist/*.whl)[cpu]"
	$(BIN)/python tests/wheel/make_bundle.py dist/bundle
	cd dist && ../$(WHEEL_VENV)/bin/python ../tests/wheel/check_wheel.py bundle *.whl

transformers-5: $(TRANSFORMERS_5)/.ready  ## What the extra `export` installs where no peer holds it to 4.57
	PYTHONPATH=$(TRANSFORMERS_5) $(PYTEST) tests/export/test_passes.py tests/export/test_gate.py \
	    tests/export/test_decoder_graph.py

gpu-wheel: $(VENV)/.ready  ## What the wheel for GPUs does on a machine without one
	$(BIN)/pip install $(PIP_FLAGS) --no-deps --upgrade --target $(GPU_WHEEL) onnxruntime-gpu==1.31.1
	PYTHONPATH=$(GPU_WHEEL) $(BIN)/pytest tests/runtime/test_gpu_engines.py

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

# Half of what tests and benchmarks need.
$(VENV)/.demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install $(PIP_FLAGS) --upgrade "pip>=25.1"
	$(BIN)/pip install $(PIP_FLAGS) --no-compile -c constraints.txt torch
	$(BIN)/pip install $(PIP_FLAGS) --no-compile -c constraints.txt --group demo -e ".[export]"
	$(COMPILE)
	touch $@

$(VENV)/.ready: $(VENV)/.demo
	$(BIN)/pip install $(PIP_FLAGS) --no-compile -c constraints.txt --group dev -e ".[bench]"
	$(COMPILE)
	touch $@

# The rest of what they need is in the environment.
$(TRANSFORMERS_5)/.ready: Makefile $(VENV)/.ready
	rm -rf $(TRANSFORMERS_5)
	$(BIN)/pip install $(PIP_FLAGS) --no-deps --no-compile --target $(TRANSFORMERS_5) \
	    transformers==5.24.0 huggingface-hub==2.4.0 tokenizers==0.23.3
	touch $@

clean:
	rm -rf $(VENV) $(WHEEL_VENV) $(GPU_WHEEL) $(GPU_BASELINES)* $(TENSORRT_RTX) \
	    $(TRANSFORMERS_5) dist demo-bundle
