"""A stream that is opened again when the connection is lost: one task receives, one sends what there is to say."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod

from reverb_async.client.connector import Connector
from reverb_async.client.retry import Retry
from reverb_async.client.transport import StreamKind
from reverb_async.errors import Closed, ReplayError, TableClosed, Unavailable
from reverb_async.protocol.message import Duplex, Message


class Conversation(ABC):
    """Keeps a stream open from `start` on, until it is finished or fails.

    Whatever the caller's task says is noted in the subclass's state, followed by `poke`; `compose` is asked for it in
    the next turn of the event loop. So a caller never waits for the network to take a message, a cancelled caller
    leaves no half-sent one, and all that is noted in one turn of the event loop travels in one message. The sending
    task is woken only for a message that cannot go out at once.

    Args:
        connector: opens the stream and owns the tasks.
        kind: the stream's kind.
        name: for messages and tasks: "sampling from 'replay'".

    Attributes:
        connected: the stream is open: what is noted now goes out on it.
        finishing: nothing follows after what is noted now.
    """

    def __init__(self, connector: Connector, kind: StreamKind, name: str) -> None:
        self.connector = connector
        self.name = name
        self.connected = False
        self.finishing = False
        self._kind: StreamKind = kind
        self._runner: asyncio.Task[None] | None = None
        self._idle: asyncio.Future[None] | None = None
        self._duplex: Duplex | None = None
        self._held: Message | None = None
        self._speaking: asyncio.Handle | None = None
        self._heard = False
        self._outcome: ReplayError | None = None

    @abstractmethod
    def opened(self) -> None:
        """Note that the stream was opened, perhaps again: its other end knows nothing of what was said before."""

    @abstractmethod
    def compose(self) -> Message | None:
        """Return what is to be said now, None if nothing is; it counts as said."""

    @abstractmethod
    def take(self, message: Message) -> None:
        """Work off a received message."""

    async def absorb(self, message: Message) -> None:
        """Work off a received message, also if that takes a while; the next one is received afterwards."""
        self.take(message)

    @abstractmethod
    def closed(self, error: ReplayError | None) -> None:
        """Note that the stream is closed until `start` is called again; None: it was finished, or is not needed now."""

    def interrupted(self) -> None:
        """Note that the stream has ended, for now or for good."""
        return

    async def prepare(self) -> None:
        """Ask what must be known before the stream is opened."""
        return

    @property
    @abstractmethod
    def needed(self) -> bool:
        """Whether a lost connection is to be replaced before there is something to say."""

    @property
    def running(self) -> bool:
        """Whether the stream is open or being opened."""
        return self._runner is not None

    def start(self) -> None:
        """Open the stream, unless that was done."""
        if self._runner is None:
            self._outcome = Closed(f"{self.name}: this was closed while it waited")
            self._runner = self.connector.spawn(self._run(), self.name)
            self._runner.add_done_callback(self._ended)

    def poke(self) -> None:
        """Have `compose` called soon."""
        if self._speaking is None and self._idle is not None and not self._idle.done():
            self._speaking = asyncio.get_running_loop().call_soon(self._speak)

    def speak_now(self) -> None:
        """Say at once what a `poke` in this turn was to say soon: nothing more will be noted before it is answered."""
        if self._speaking is not None:
            self._speaking.cancel()
            self._speak()

    def _speak(self) -> None:
        """Say what there is to say without the sending task, or wake it if that would wait."""
        self._speaking = None
        if self._idle is None or self._idle.done():
            return  # The task is at it, or gone.
        assert self._duplex is not None
        try:
            while self._held is None and (message := self.compose()) is not None:
                if not self._duplex.try_send(message):
                    self._held = message
        except ReplayError as error:
            self._idle.set_exception(error)
            return
        if self._held is not None or self.finishing:
            self._idle.set_result(None)

    async def finish(self, limit: float) -> None:
        """Say what is left, then let the other end close the stream; after `limit` seconds it is broken off."""
        self.finishing = True
        runner = self._runner
        if runner is None:
            return
        try:
            if self.connected:
                self.poke()
                await asyncio.wait({runner}, timeout=limit)
        finally:
            runner.cancel()
        await asyncio.wait({runner})

    async def _run(self) -> None:
        try:
            await self._keep_talking()
            self._outcome = None
        except ReplayError as error:
            self._outcome = error

    def _ended(self, runner: asyncio.Task[None]) -> None:
        self._runner = None
        if self._outcome is None and self.needed and not (self.finishing or self.connector.closed):
            self.start()  # Something was said just when the stream was given up for lack of it.
        else:
            self.closed(self._outcome)

    async def _keep_talking(self) -> None:
        retry = Retry(self.connector, self.name)
        loop = asyncio.get_running_loop()
        while True:
            await self.prepare()
            duplex = await self.connector.open(self._kind)
            since = loop.time()
            try:
                lost = await self._talk(duplex)
            except TableClosed as error:
                self.connector.lost(error, since)
                raise
            if lost is None:
                return
            if self.finishing:
                raise lost
            if not self.needed:
                self.connector.lost(lost, since)
                return
            if self._heard:
                retry = Retry(self.connector, self.name)
            await retry.after(lost, since)

    async def _talk(self, duplex: Duplex) -> Unavailable | None:
        """Talk until the stream ends; returns why it was lost, None if it was not."""
        sending = None
        try:
            self.connected, self._heard = True, False
            self.opened()
            sending = self.connector.spawn(self._send(duplex), f"{self.name}: sending")
            while (message := await duplex.receive()) is not None:
                self._heard = True
                await self.absorb(message)
            return None if self.finishing else Unavailable("the server ended the stream")
        except TableClosed:
            raise
        except Unavailable as error:
            return error
        finally:
            self.connected = False
            self.interrupted()
            duplex.abort()
            if sending is not None:
                sending.cancel()
                await asyncio.wait({sending})

    async def _send(self, duplex: Duplex) -> None:
        self._duplex, self._held = duplex, None
        try:
            while True:
                message, self._held = self._held or self.compose(), None
                if message is not None:
                    await duplex.send(message)
                elif self.finishing:
                    await duplex.end()
                    return
                else:
                    self._idle = asyncio.get_running_loop().create_future()
                    await self._idle
        except ReplayError:
            return  # Receiving tells why, with the server's own words if it had any.
