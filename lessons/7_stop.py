"""A signal only sets a flag: the worker finishes, acknowledges, and ends. If the broker goes away, it connects again.

Break it: `lessons/run.sh 7` sends a task that always fails. Where should a failing task wait?"""

import os
import signal  # 7
import sys
import time
from concurrent.futures import ThreadPoolExecutor, wait  # 6

import pika

QUEUE = "lesson-7"
stopping = []  # 7: not empty once a signal has come


def run(body):
    name, seconds = body.decode().split(":")
    print(name, "begun")
    time.sleep(float(seconds))
    print(name, "done")


def main():
    with pika.BlockingConnection(pika.URLParameters(os.environ.get("RABBITMQ_URL", "amqp://localhost"))) as connection:
        channel = connection.channel()
        channel.queue_declare(QUEUE, durable=True)  # RabbitMQ 4.3 lets no other kind be shared
        channel.confirm_delivery()  # 5: each publish waits for the broker's word
        channel.basic_qos(prefetch_count=1)  # 4: unacknowledged tasks that a worker may hold
        while sys.argv[2:]:  # send: each task is a name and its seconds, as soup:1
            persistent = pika.BasicProperties(delivery_mode=2)  # 3
            channel.basic_publish("", QUEUE, sys.argv[2], persistent, mandatory=True)  # 5
            print("sent", sys.argv.pop(2))
        while "work" in sys.argv and not stopping:  # 7
            method, _, body = next(channel.consume(QUEUE, inactivity_timeout=0.5))  # 7: wakes to look at the flag
            if not method:  # 7: nothing came
                continue  # 7
            future = ThreadPoolExecutor(1).submit(run, body)  # 6: a thread for the work
            while not wait([future], timeout=0.5).done:  # 6
                connection.process_data_events(0)  # 6: reads, writes, answers heartbeats
            if future.exception():  # 7
                channel.basic_nack(method.delivery_tag)  # 7: back into the queue
                continue  # 7
            channel.basic_ack(method.delivery_tag)  # 2


signal.signal(signal.SIGINT, lambda *_: stopping.append(True))  # 7: Ctrl-C; `kill` would be SIGTERM
while not stopping:  # 7
    try:  # 7
        sys.exit(main())  # 7
    except pika.exceptions.AMQPConnectionError:  # 7
        time.sleep(1)  # 7: and then connect again
