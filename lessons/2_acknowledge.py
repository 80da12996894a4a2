"""The broker knows that a task is done because the worker says so, after the work; until then it keeps the task.

Break it: `lessons/run.sh 2` restarts the broker. What outlives the broker?"""

import os
import sys
import time

import pika

QUEUE = "lesson-2"


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
            method, _, body = next(channel.consume(QUEUE))  # 2
            run(body)
            channel.basic_ack(method.delivery_tag)  # 2


main()
