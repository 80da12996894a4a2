"""The second delivery finds the message_id of the first in the ledger: it and the effect are one transaction.

Break it: `lessons/run.sh 9` makes the effect an e-mail, which no transaction reaches. What is left? See `worker.py`."""

import os
import signal  # 7
import sqlite3  # 9
import sys
import time
from concurrent.futures import ThreadPoolExecutor, wait  # 6

import pika

QUEUE = "lesson-9"
stopping = []  # 7: not empty once a signal has come


def run(body, message_id):  # 9
    name, seconds = body.decode().split(":")
    print(name, "begun")
    time.sleep(float(seconds))
    with sqlite3.connect("lesson-9.db") as ledger:  # 9: one transaction: a crash in it leaves nothing behind
        ledger.execute("CREATE TABLE IF NOT EXISTS done (message_id PRIMARY KEY, name)")  # 9
        first = ledger.execute("INSERT OR IGNORE INTO done VALUES (?, ?)", [message_id, name]).rowcount  # 9
    print(name, "done" if first else "was done before")  # 9


def main():
    with pika.BlockingConnection(pika.URLParameters(os.environ.get("RABBITMQ_URL", "amqp://localhost"))) as connection:
        channel = connection.channel()
        channel.queue_declare(QUEUE, durable=True)  # RabbitMQ 4.3 lets no other kind be shared
        channel.queue_declare(QUEUE + ".dead", durable=True)  # 8
        back = {"x-message-ttl": 1000, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": QUEUE}  # 8
        channel.queue_declare(QUEUE + ".retry", durable=True, arguments=back)  # 8
        channel.confirm_delivery()  # 5: each publish waits for the broker's word
        channel.basic_qos(prefetch_count=1)  # 4: unacknowledged tasks that a worker may hold
        while sys.argv[2:]:  # send: each task is a name and its seconds, as soup:1
            persistent = pika.BasicProperties(delivery_mode=2, message_id=os.urandom(8).hex())  # 9
            channel.basic_publish("", QUEUE, sys.argv[2], persistent, mandatory=True)  # 5
            print("sent", sys.argv.pop(2))
        while "work" in sys.argv and not stopping:  # 7
            method, properties, body = next(channel.consume(QUEUE, inactivity_timeout=0.5))  # 8
            if not method:  # 7: nothing came
                continue  # 7
            future = ThreadPoolExecutor(1).submit(run, body, properties.message_id)  # 9
            while not wait([future], timeout=0.5).done:  # 6
                connection.process_data_events(0)  # 6: reads, writes, answers heartbeats
            if future.exception():  # 7
                properties.headers = {"tries": 1 + (properties.headers or {}).get("tries", 0)}  # 8
                aside = ".retry" if properties.headers["tries"] < 3 else ".dead"  # 8
                channel.basic_publish("", QUEUE + aside, body, properties, mandatory=True)  # 8: a confirmed copy
            channel.basic_ack(method.delivery_tag)  # 2


signal.signal(signal.SIGINT, lambda *_: stopping.append(True))  # 7: Ctrl-C; `kill` would be SIGTERM
while not stopping:  # 7
    try:  # 7
        sys.exit(main())  # 7
    except pika.exceptions.AMQPConnectionError:  # 7
        time.sleep(1)  # 7: and then connect again
