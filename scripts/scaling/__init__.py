"""What autoscale.py is made of.

queues and events ──► load.py ──► rule.py: how many, and why ──► workers.py: real processes, each with leashed.py
                      retries.py      a pure function                starts, drains, replaces
simulation.py runs the rule through a day without any process, and picture.py draws that day
"""
