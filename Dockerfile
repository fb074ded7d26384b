# The package with its configs, for TPUs or GPUs.
#   docker build --build-arg EXTRA=tpu --build-arg COMMIT="$(git rev-parse HEAD)" --tag IMAGE .
# Pin what it starts from with --build-arg BASE=python:3.11-slim@sha256:...
ARG BASE=python:3.11-slim
FROM ${BASE}
ARG EXTRA=tpu
ARG COMMIT=unknown

RUN useradd --uid 1000 --create-home sparsecod
WORKDIR /app
ENV PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore PYTHONUNBUFFERED=1

# What the package depends on is a layer of its own, which a change of the code leaves as it is.
COPY pyproject.toml setup.py README.md ./
COPY constraints constraints
COPY sparsecod_jax/__init__.py sparsecod_jax/
RUN python_version=$(python -c 'import sys; print("%d%d" % sys.version_info[:2])') \
    && pip install --constraint "constraints/py${python_version}.txt" ".[${EXTRA},gcs]"

COPY sparsecod_jax sparsecod_jax
COPY configs configs
COPY launch launch
# The version ends with the commit, which the manifest of every run then shows.
RUN sed --in-place "s/^__version__ = \"\([^\"]*\)\"/__version__ = \"\1+g${COMMIT}\"/" \
        sparsecod_jax/__init__.py \
    && pip install --no-deps --force-reinstall . \
    && rm -r build sparsecod_jax

USER 1000
ENTRYPOINT ["sparsecod"]
CMD ["--help"]
