# exit_jax with the versions of constraints.txt; of further packages, what setup.py's extras name.
#
#   docker build -t exit-jax .
#   docker build -t exit-jax:cuda --build-arg EXTRAS=cuda,math .
#   docker run --rm -v "$PWD/runs:/work/runs" exit-jax --config sudoku          # with CUDA: --gpus all
ARG PYTHON=3.12

FROM python:${PYTHON}-slim-bookworm AS build
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}-slim-bookworm
ARG EXTRAS=math
COPY --from=build /wheels /wheels
COPY constraints.txt /wheels/
RUN pip install --no-cache-dir -c /wheels/constraints.txt "$(echo /wheels/*.whl)[${EXTRAS}]"
WORKDIR /work
ENTRYPOINT ["exit-jax"]
