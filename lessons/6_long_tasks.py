"""The main thread answers heartbeats and acknowledges, as the connection is its own; another thread does the work.

Break it: `lessons/run.sh 6` presses Ctrl-C in mid-task. How does a worker end without throwing work away?"""

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor, wait  # 6

import pika

QUEUE = "lesson-6"


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
        while "work" in sys.argv:
            method, _, body = next(channel.consume(QUEUE))  # 2
            future = ThreadPoolExecutor(1).submit(run, body)  # 6: a thread for the work
            while not wait([future], timeout=0.5).done:  # 6
                connection.process_data_events(0)  # 6: reads, writes, answers heartbeats
            future.result()  # 6: raises what the work has raised
            channel.basic_ack(method.delivery_tag)  # 2


main()
