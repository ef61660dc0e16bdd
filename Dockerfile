# cai in an image, built in this folder; docs/install.md says how to run it.
#   docker build -t cai .
#   docker build --build-arg LOCK=cuda -t cai:cuda .
#
# A tag's image changes when Debian or Python is mended. For the same image each time, pin its digest, which
# `docker buildx imagetools inspect TAG` prints: --build-arg BASE=python:3.11.14-slim-trixie@sha256:DIGEST
ARG BASE=python:3.11-slim-trixie

FROM ${BASE} AS build
# cpu or cuda: a file of locks/
ARG LOCK=cpu
# torch's builds for a CPU; nothing of it fits the digests of cuda.txt
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
# the libraries first: they change less often than cai, and Docker keeps the layer
COPY locks locks
RUN python -m venv /opt/cai \
  && /opt/cai/bin/python -m pip install --require-hashes --extra-index-url "${TORCH_INDEX}" -r "locks/${LOCK}.txt"
RUN python -m venv /opt/build && /opt/build/bin/python -m pip install --require-hashes -r locks/build.txt
COPY pyproject.toml README.md LICENSE ./
COPY conf conf
COPY principles principles
COPY cai cai
RUN /opt/build/bin/python -m pip wheel --no-deps --no-build-isolation --wheel-dir /dist . \
  && /opt/cai/bin/python -m pip install --no-deps /dist/*.whl

# nothing that builds, and none of the sources
FROM ${BASE}
RUN useradd --create-home --uid 1000 cai \
  && mkdir -p /cache/cai /cache/huggingface /work \
  && chown -R cai:cai /cache /work
COPY --from=build /opt/cai /opt/cai
ENV PATH=/opt/cai/bin:$PATH CAI_CACHE=/cache/cai HF_HOME=/cache/huggingface PYTHONUNBUFFERED=1
# downloaded and converted models, and the runs
VOLUME ["/cache", "/work"]
WORKDIR /work
USER 1000
ENTRYPOINT ["cai"]
CMD ["--help"]
