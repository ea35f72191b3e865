# An image with dupr-tf, for configs/cluster/kubernetes.yaml. Not run here: no Docker was at hand.
# Command: docker build -t dupr_tf:0.1.0 .
# On machines without GPUs: docker build --build-arg TENSORFLOW=tensorflow-cpu==2.21.0 -t dupr_tf:0.1.0 .
FROM python:3.11-slim

ARG TENSORFLOW=tensorflow[and-cuda]==2.21.0
WORKDIR /app

COPY requirements.txt .
RUN sed -i "s/^tensorflow-cpu==.*/${TENSORFLOW}/" requirements.txt \
    && pip install --no-cache-dir -r requirements.txt

COPY pyproject.toml README.md LICENSE ./
COPY dupr_tf dupr_tf
COPY configs configs
RUN pip install --no-cache-dir --no-deps .

RUN useradd --create-home dupr
USER dupr
CMD ["dupr-tf", "--help"]
