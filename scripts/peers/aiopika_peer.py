"""aio-pika:  aiopika_peer.py publish N | work PREFETCH"""

from __future__ import annotations

import asyncio
import os
import sys
import time

import aio_pika
from recorder import Recorder

IN_FLIGHT = 1000


async def publish(count: int) -> None:
    connection = await aio_pika.connect(os.environ["RABBITMQ_URL"])
    async with connection:
        channel = await connection.channel(publisher_confirms=True)
        queue = await channel.declare_queue(os.environ["TASK_QUEUE"], durable=True)
        room = asyncio.Semaphore(IN_FLIGHT)

        async def one(number: int) -> None:
            body = b'{"id": %d, "task": "Clear cache", "difficulty": 0}' % number
            message = aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
            await channel.default_exchange.publish(message, routing_key=queue.name, mandatory=True)
            room.release()

        started = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for number in range(count):
                await room.acquire()
                tasks.create_task(one(number))
        print(count / (time.perf_counter() - started))


async def work(prefetch: int) -> None:
    record = Recorder()
    connection = await aio_pika.connect(os.environ["RABBITMQ_URL"])
    async with connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=prefetch)
        queue = await channel.declare_queue(os.environ["TASK_QUEUE"], durable=True)

        async def handle(message: aio_pika.abc.AbstractIncomingMessage) -> None:
            record()
            await message.ack()

        await queue.consume(handle)
        await asyncio.Future()


if __name__ == "__main__":
    asyncio.run({"publish": publish, "work": work}[sys.argv[1]](int(sys.argv[2])))
