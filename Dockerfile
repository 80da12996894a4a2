# Sender and worker: docker compose builds this for both.
FROM python:3.13-slim

WORKDIR /app
COPY requirements.txt .
RUN pip install --no-cache-dir --require-hashes -r requirements.txt
COPY *.py ./
COPY workqueue workqueue
COPY deploy/container.py deploy/health.py deploy/

# no root, and no shell in between: SIGTERM reaches the worker itself. Run it with an init (docker run --init)
RUN useradd --no-create-home --uid 10001 worker
USER 10001
ENTRYPOINT ["python", "deploy/container.py"]
CMD ["worker.py"]
