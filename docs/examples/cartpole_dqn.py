"""Solve CartPole-v1 with prioritized n-step double DQN: asynchronous actors, one learner, one replay server.

Actors are coroutines in processes of their own that talk gRPC to the server; the learner trains in a thread of the
server's process. ``--in-process`` puts everything into one process. Exits with 0 when the mean return of 20 greedy
evaluation episodes reaches 400, with 1 when the time is up first. The learning curve is saved as a PNG.

    python docs/examples/cartpole_dqn.py [--in-process] [--actors 4] [--minutes 3] [--plot learning_curve.png]

Double DQN: van Hasselt et al., arXiv:1509.06461. Prioritized replay: Schaul et al., arXiv:1511.05952. The actors' fixed
spread of exploration rates: Horgan et al. (Ape-X), arXiv:1803.00933.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import sys
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.live import Live
from rich.table import Table as TextTable

import reverb_async as ra

N_STEPS = 3
DISCOUNT = 0.99
BATCH_SIZE = 128
SAMPLES_PER_INSERT = 16.0
HIDDEN = 128
LEARNING_RATE = 5e-4
TARGET_PERIOD = 200
EVALUATION_PERIOD = 250
SOLVED = 400.0

Params = dict[str, NDArray[np.float32]]
Array = NDArray[Any]


def make_tables() -> list[ra.Table]:
    """Return the replay table, and a table of size 1 through which the learner publishes its weights."""
    return [
        ra.Table(
            "replay",
            max_size=50_000,
            sampler=ra.selectors.Prioritized(0.6),
            rate_limiter=ra.rate_limiters.SampleToInsertRatio(
                SAMPLES_PER_INSERT, min_size_to_sample=1000, error_buffer=100 * SAMPLES_PER_INSERT
            ),
        ),
        ra.Table("weights", max_size=1),
    ]


# -- the network -------------------------------------------------------------------------------------------------------


def initial_params(rng: np.random.Generator) -> Params:
    """Return weights of a network 4 -> 128 -> 128 -> 2."""
    params: Params = {}
    for number, (inputs, outputs) in enumerate([(4, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, 2)]):
        params[f"w{number}"] = (rng.standard_normal((inputs, outputs)) * np.sqrt(2 / inputs)).astype(np.float32)
        params[f"b{number}"] = np.zeros(outputs, np.float32)
    return params


def q_values(params: Params, obs: Array) -> Array:
    """Return the values of both actions, ``[..., 2]``."""
    hidden = np.maximum(obs @ params["w0"] + params["b0"], 0)
    hidden = np.maximum(hidden @ params["w1"] + params["b1"], 0)
    values: Array = hidden @ params["w2"] + params["b2"]
    return values


class Learner:
    """Double DQN with Adam, in NumPy."""

    def __init__(self, seed: int) -> None:
        self.params = initial_params(np.random.default_rng(seed))
        self._target = dict(self.params)
        self._moments = {name: (np.zeros_like(value), np.zeros_like(value)) for name, value in self.params.items()}
        self.updates = 0

    def train(self, data: dict[str, Array], weights: Array) -> Array:
        """Take one step on a batch; return the absolute TD errors, ``[B]``."""
        params, rows = self.params, np.arange(len(weights))
        best = q_values(params, data["next_obs"]).argmax(axis=1)
        target = data["return"] + data["discount"] * q_values(self._target, data["next_obs"])[rows, best]

        first = np.maximum(data["obs"] @ params["w0"] + params["b0"], 0)
        second = np.maximum(first @ params["w1"] + params["b1"], 0)
        values = second @ params["w2"] + params["b2"]
        error = values[rows, data["action"]] - target

        d_values = np.zeros_like(values)
        d_values[rows, data["action"]] = weights * np.clip(error, -1, 1) / len(weights)  # Huber loss
        d_second = (d_values @ params["w2"].T) * (second > 0)
        d_first = (d_second @ params["w1"].T) * (first > 0)
        self._step(
            {
                "w0": data["obs"].T @ d_first,
                "b0": d_first.sum(0),
                "w1": first.T @ d_second,
                "b1": d_second.sum(0),
                "w2": second.T @ d_values,
                "b2": d_values.sum(0),
            }
        )
        return np.abs(error)

    def _step(self, gradients: Params) -> None:
        self.updates += 1
        scale = LEARNING_RATE * np.sqrt(1 - 0.999**self.updates) / (1 - 0.9**self.updates)
        updated = {}
        for name, gradient in gradients.items():
            mean, square = self._moments[name]
            mean += 0.1 * (gradient - mean)
            square += 0.001 * (gradient**2 - square)
            updated[name] = (self.params[name] - scale * mean / (np.sqrt(square) + 1e-8)).astype(np.float32)
        self.params = updated
        if self.updates % TARGET_PERIOD == 0:
            self._target = dict(updated)


def evaluate(params: Params, episodes: int = 20) -> float:
    """Return the mean return of greedy episodes."""
    env = gymnasium.make("CartPole-v1")
    returns = []
    for episode in range(episodes):
        obs, _ = env.reset(seed=10_000 + episode)
        total, done = 0.0, False
        while not done:
            obs, reward, terminated, truncated, _ = env.step(int(q_values(params, obs).argmax()))
            total += float(reward)
            done = terminated or truncated
        returns.append(total)
    env.close()
    return float(np.mean(returns))


# -- actors ------------------------------------------------------------------------------------------------------------


async def act(client: ra.Client, number: int, num_actors: int) -> None:
    """Play for ever; write every n-step transition, and fetch new weights after each episode."""
    rng = np.random.default_rng(number)
    epsilon = 0.4 ** (1 + 4 * number / max(1, num_actors - 1))
    env = gymnasium.make("CartPole-v1")
    logging.getLogger("reverb_async").setLevel(
        logging.ERROR
    )  # In the end actors are cut off; what they lose is no loss.
    async with client.trajectory_writer(num_keep_alive_refs=N_STEPS + 1) as writer:
        for episode in range(sys.maxsize):
            params: Params = (await client.sample_one("weights")).data
            obs, _ = env.reset(seed=1000 * number + episode)
            rewards: deque[float] = deque(maxlen=N_STEPS)
            done, terminated = False, False
            while not done:
                action = int(rng.integers(2)) if rng.random() < epsilon else int(q_values(params, obs).argmax())
                next_obs, reward, terminated, truncated, _ = env.step(action)
                writer.append({"obs": obs, "action": action})
                if writer.episode_steps > N_STEPS:
                    await write_transition(writer, rewards, terminal=False)
                rewards.append(float(reward))
                obs, done = next_obs, terminated or truncated
            writer.append({"obs": obs})  # The last observation: nothing is done after it.
            while rewards and writer.episode_steps > len(rewards):
                await write_transition(writer, rewards, terminal=terminated)
                rewards.popleft()
            await writer.end_episode()


async def write_transition(writer: ra.TrajectoryWriter, rewards: deque[float], *, terminal: bool) -> None:
    """Insert the transition that begins ``len(rewards)`` steps ago; both observations are stored once per step."""
    n = len(rewards)
    value = sum(DISCOUNT**at * reward for at, reward in enumerate(rewards))
    history = writer.history
    await writer.create_item(
        "replay",  # No priority: the highest so far, so that every transition is learned from soon.
        trajectory={
            "obs": history["obs"][-n - 1],
            "action": history["action"][-n - 1],
            "return": np.float32(value),
            "discount": np.float32(0 if terminal else DISCOUNT**n),
            "next_obs": history["obs"][-1],
        },
    )


async def run_actors(address: str, numbers: list[int], num_actors: int) -> None:
    """Run some of the actors in this process until it is ended."""
    async with ra.Client(address) as client, asyncio.TaskGroup() as tasks:
        for number in numbers:
            tasks.create_task(act(client, number, num_actors))


@contextlib.asynccontextmanager
async def actors(server: ra.Server, num_actors: int, in_process: bool) -> AsyncIterator[None]:
    """Run the actors, as coroutines here or in processes of their own, while the body runs."""
    if in_process:
        client = server.client()
        tasks = [asyncio.create_task(act(client, number, num_actors)) for number in range(num_actors)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        return
    processes = []
    for half in range(2):
        numbers = ",".join(str(number) for number in range(half, num_actors, 2))
        if numbers:
            command = [
                sys.executable,
                __file__,
                "--act",
                server.address,
                "--numbers",
                numbers,
                "--actors",
                str(num_actors),
            ]
            processes.append(await asyncio.create_subprocess_exec(*command))
    try:
        yield
    finally:
        for process in processes:
            if process.returncode is None:
                process.terminate()
            await process.wait()


# -- learning ----------------------------------------------------------------------------------------------------------


@dataclass
class Progress:
    """What the live view shows."""

    started: float = field(default_factory=time.monotonic)
    curve: list[tuple[float, float]] = field(default_factory=list)
    """(seconds, mean return) of every evaluation."""
    evaluated: int = 0
    """Updates before the last evaluation."""
    updates: int = 0
    td_error: float = float("nan")

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return time.monotonic() - self.started


async def learn(client: ra.Client, learner: Learner, progress: Progress) -> None:
    """Train until an evaluation reaches the goal."""
    await client.insert(learner.params, {"weights": 1.0})
    async with client.sample_batches("replay", BATCH_SIZE) as batches:
        async for batch in batches:
            weights = batch.importance_weights(0.4)
            errors = await asyncio.to_thread(learner.train, batch.data, weights)
            await batch.update_priorities(errors + 1e-3)
            progress.updates, progress.td_error = learner.updates, float(errors.mean())
            if learner.updates % 50 == 0:
                await client.insert(learner.params, {"weights": 1.0})
            if learner.updates % EVALUATION_PERIOD == 0:
                mean_return = await asyncio.to_thread(evaluate, learner.params)
                progress.evaluated = learner.updates
                progress.curve.append((progress.seconds, mean_return))
                if mean_return >= SOLVED:
                    return


def view(progress: Progress, info: ra.TableInfo) -> TextTable:
    """Return the live picture."""
    limiter = info.rate_limiter_info
    inserts, samples = limiter.insert_stats.completed, limiter.sample_stats.completed
    table = TextTable(title=f"CartPole-v1, {progress.seconds:.0f} s", show_header=False)
    table.add_row("mean return (20 episodes)", f"{progress.curve[-1][1]:.0f}" if progress.curve else "-")
    table.add_row("best", f"{max(value for _, value in progress.curve):.0f}" if progress.curve else "-")
    table.add_row("updates", f"{progress.updates}, TD error {progress.td_error:.3f}")
    table.add_row("items", f"{info.current_size} of {info.max_size}, {info.num_episodes} episodes")
    table.add_row("inserted", f"{inserts}, {info.inserts_per_second:.0f}/s")
    table.add_row("sampled", f"{samples}, {info.samples_per_second:.0f}/s")
    table.add_row("samples per insert", f"{samples / max(1, inserts):.1f} (limit {limiter.samples_per_insert:.0f})")
    for waiter in info.waiters:
        table.add_row(f"{waiter.count} wait to {waiter.kind}", waiter.reason)
    return table


async def show(client: ra.Client, progress: Progress) -> None:
    """Redraw the live view twice a second; a line per evaluation where there is no terminal."""
    console = Console()
    if not console.is_terminal:
        shown = 0
        while True:
            for seconds, value in progress.curve[shown:]:
                console.print(f"{seconds:5.0f} s  {progress.evaluated:6d} updates  mean return {value:5.0f}")
            shown = len(progress.curve)
            await asyncio.sleep(0.5)
    with Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(view(progress, (await client.server_info())["replay"]), refresh=True)
            await asyncio.sleep(0.5)


def plot(progress: Progress, path: Path) -> None:
    """Save the learning curve."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.5), layout="constrained")
    axes.plot(
        [seconds for seconds, _ in progress.curve], [value for _, value in progress.curve], marker="o", markersize=3
    )
    axes.axhline(SOLVED, linestyle="--", color="grey", label="solved")
    axes.set(
        xlabel="seconds", ylabel="mean return of 20 greedy episodes", title="CartPole-v1, prioritized n-step double DQN"
    )
    axes.legend()
    figure.savefig(path, dpi=120)


async def run(options: argparse.Namespace) -> Progress:
    """Run server, actors and learner until the task is solved or the time is up."""
    progress, learner = Progress(), Learner(options.seed)
    async with ra.Server(make_tables()) as server:
        client = server.client() if options.in_process else ra.Client(server.address)
        async with client, actors(server, options.actors, options.in_process):
            showing = asyncio.create_task(show(client, progress))
            try:
                await asyncio.wait_for(learn(client, learner, progress), 60 * options.minutes)
                await asyncio.sleep(0.6)  # The view draws the last evaluation, too.
            except TimeoutError:
                pass
            finally:
                showing.cancel()
                await asyncio.wait([showing])
    return progress


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description="Solve CartPole-v1 with prioritized n-step double DQN.")
    parser.add_argument("--in-process", action="store_true", help="actors as coroutines of this process, no gRPC")
    parser.add_argument("--actors", type=int, default=4, help="how many actors (default 4)")
    parser.add_argument("--minutes", type=float, default=3.0, help="give up after this long (default 3)")
    parser.add_argument("--seed", type=int, default=0, help="of the network's first weights")
    parser.add_argument(
        "--plot", type=Path, default=Path("learning_curve.png"), help="where to save the learning curve"
    )
    parser.add_argument("--act", metavar="ADDRESS", help=argparse.SUPPRESS)  # This process is one of the actors' own.
    parser.add_argument("--numbers", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.act:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(run_actors(options.act, [int(number) for number in options.numbers.split(",")], options.actors))
        return 0
    try:
        progress = asyncio.run(run(options))
    except KeyboardInterrupt:
        print("stopped")
        return 130
    if progress.curve:
        plot(progress, options.plot)
        print(f"learning curve: {options.plot}")
    solved = bool(progress.curve) and progress.curve[-1][1] >= SOLVED
    print("solved" if solved else "not solved", f"in {progress.seconds:.0f} s")
    return 0 if solved else 1


if __name__ == "__main__":
    sys.exit(main())
