"""The machinery behind sender.py and worker.py, one role a file."""
