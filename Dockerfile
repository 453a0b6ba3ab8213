# The slim runtime: petseg-run and nothing to build or train with.
#   docker build -t petseg .
#   docker run --rm --network none --user "$(id -u):$(id -g)" -v /path/to/scans:/scans petseg /scans/scan.nii.gz
FROM python:3.13-slim AS build
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY petseg_runtime petseg_runtime
COPY petseg_train petseg_train
COPY export export
RUN python -m venv /opt/petseg
RUN /opt/petseg/bin/python -m pip install --no-cache-dir --constraint constraints.txt .
RUN /opt/petseg/bin/python -m pip uninstall --yes pip

FROM python:3.13-slim
COPY --from=build /opt/petseg /opt/petseg
RUN useradd --create-home --uid 10001 petseg
USER petseg
ENV ORT_DISABLE_TELEMETRY=1
WORKDIR /home/petseg
ENTRYPOINT ["/opt/petseg/bin/petseg-run"]
