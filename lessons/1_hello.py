"""A queue between two programs: one sends tasks and goes on, the other does them when it gets to it.

Break it: `lessons/run.sh 1` kills the worker in its second task. How could the broker know that a task is done?"""

import os
import sys
import time

import pika

QUEUE = "lesson-1"


def run(body):
    name, seconds = body.decode().split(":")
    print(name, "begun")
    time.sleep(float(seconds))
    print(name, "done")


def main():
    with pika.BlockingConnection(pika.URLParameters(os.environ.get("RABBITMQ_URL", "amqp://localhost"))) as connection:
        channel = connection.channel()
        channel.queue_declare(QUEUE, durable=True)  # RabbitMQ 4.3 lets no other kind be shared
        while sys.argv[2:]:  # send: each task is a name and its seconds, as soup:1
            channel.basic_publish("", QUEUE, sys.argv[2])
            print("sent", sys.argv.pop(2))
        while "work" in sys.argv:
            _, _, body = next(channel.consume(QUEUE, auto_ack=True))
            run(body)


main()
