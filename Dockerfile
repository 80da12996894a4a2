# Sender and worker: docker compose builds this for both.
FROM python:3.13-slim

WORKDIR /app
COPY requirements.txt .
RUN pip install --no-cache-dir --require-hashes -r requirements.txt
COPY *.py .
COPY workqueue workqueue

# no root, and no shell in between: SIGTERM reaches the worker itself
RUN useradd --system worker
USER worker
CMD ["python", "worker.py"]
