"""What watch.py is made of.

live.py, recording.py ──► model.py ──► one plain dict, the state ──► terminal.py, web.py, metrics.py
events and counts         runs.py      verdict.py: what it means     draw it, and know nothing else
events.py, facts.py
"""
