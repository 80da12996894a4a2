"""The sender knows because the broker confirms each message, and returns a mandatory one that fits no queue.

Break it: `lessons/run.sh 5` lets a task outlast the heartbeat. Who answers heartbeats while you work?"""

import os
import sys
import time

import pika

QUEUE = "lesson-5"


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
            run(body)
            channel.basic_ack(method.delivery_tag)  # 2


main()
