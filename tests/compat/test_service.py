"""The unary methods of DeepMind's service, and what it is when it is switched off."""

from __future__ import annotations

import grpc
import numpy as np
import pytest

import reverb_async as ra
from reverb_async.compat.signatures import signature_bytes
from reverb_async.compat.wire_format import write_mutate_request
from reverb_async.wire.generated.deepmind.reverb import MutatePrioritiesRequest, ResetRequest
from reverb_async.wire.generated.grpc.health.v1 import HealthCheckRequest, HealthCheckResponse
from tests.compat.deepmind_rig import row_item, served

SERVICE = "deepmind.reverb.ReverbService"


async def refusal(awaitable) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await awaitable
    return error.value.code().name, error.value.details()


async def priorities(server: ra.Server, table: str) -> dict[int, float]:
    state = server.tables[table].state
    slots = state.live_slots()
    return dict(zip(state.slots.key[slots].tolist(), state.slots.priority[slots].tolist(), strict=True))


async def test_priorities_are_set_and_items_deleted() -> None:
    async with served(ra.Table("t", max_size=10)) as (server, client):
        await client.insert(*(row_item(key, "t", np.int32(key)) for key in range(4)))
        await client.mutate("t", {0: 5.0, 1: -2.0, 99: 1.0}, [2, 2, 98])
        assert await priorities(server, "t") == {0: 5.0, 1: -2.0, 3: 1.0}


async def test_deletes_come_first_so_that_only_what_stays_is_checked() -> None:
    table = ra.Table("t", max_size=10, sampler=ra.selectors.Prioritized(1.0))
    async with served(table) as (server, client):
        await client.insert(*(row_item(key, "t", np.int32(key)) for key in range(3)))
        await client.mutate("t", {0: -1.0, 77: -5.0, 1: 3.0}, [0])
        assert await priorities(server, "t") == {1: 3.0, 2: 1.0}


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (-1.0, "Priority must not be negative."),
        (float("nan"), "Priority must not be NaN."),
        (float("inf"), "priority inf at position"),
    ],
)
async def test_a_wrong_priority_changes_nothing(wrong, text) -> None:
    table = ra.Table("t", max_size=10, sampler=ra.selectors.Prioritized(1.0))
    async with served(table) as (server, client):
        await client.insert(*(row_item(key, "t", np.int32(key)) for key in range(3)))
        request = MutatePrioritiesRequest.parse(bytes(MutatePrioritiesRequest(table="t", delete_keys=[2])))
        code, details = await refusal(client.mutate("t", {0: 9.0, 1: wrong}, request.delete_keys))
        assert (code, text in details) == ("INVALID_ARGUMENT", True), details
        assert await priorities(server, "t") == {0: 1.0, 1: 1.0, 2: 1.0}


async def test_many_keys_in_one_call() -> None:
    first = 2**63
    keys = np.arange(200_000, dtype=np.uint64) + np.uint64(first)
    request = write_mutate_request("t", keys, np.arange(200_000) + 0.5, keys[100:70_000])
    async with served(ra.Table("t", max_size=10)) as (server, client):
        await client.insert(*(row_item(first + at, "t", np.int32(0)) for at in (150_000, 7, 69_999)))
        assert await client.call("MutatePriorities", request) == b""
        assert await priorities(server, "t") == {first + 150_000: 150_000.5, first + 7: 7.5}


async def test_unknown_tables_are_not_found() -> None:
    async with served(ra.Table("t", max_size=10)) as (_, client):
        expected = ("NOT_FOUND", "Priority table nowhere was not found")
        assert await refusal(client.mutate("nowhere", {1: 1.0})) == expected
        assert await refusal(client.reset("nowhere")) == expected


async def test_a_long_name_is_cut_in_the_status() -> None:
    async with served(ra.Table("t", max_size=10)) as (_, client):
        code, text = await refusal(client.call("Reset", ResetRequest(table="ü" * 20_000)))
        assert (code, len(text) < 1100) == ("NOT_FOUND", True)


@pytest.mark.parametrize("method", ["MutatePriorities", "Reset"])
async def test_malformed_calls_are_refused(method) -> None:
    async with served(ra.Table("t", max_size=10)) as (_, client):
        assert (await refusal(client.call(method, b"\x0a\x7f")))[0] == "INVALID_ARGUMENT"
        assert (await refusal(client.call(method, b"\x0a\x02\xff\xff")))[0] == "INVALID_ARGUMENT"


async def test_server_info_describes_tables_and_echoes_signatures() -> None:
    signature = {"b": ra.ArraySpec((None, 3), np.float32), "a": [ra.ArraySpec((), np.int64)]}
    table = ra.Table("t", max_size=10, signature=signature)
    queue = ra.Table.queue("q", 5)
    async with served(table, queue) as (_, client):
        await client.insert(row_item(1, "q", np.int32(0)))
        info = await client.info()
        again = await client.info()
    assert info.tables_state_id == again.tables_state_id
    assert (info.tables_state_id.high, info.tables_state_id.low) != (0, 0)
    tables = {each.name: each for each in info.table_info}
    assert tables.keys() == {"t", "q"}
    assert table.signature is not None
    assert bytes(tables["t"].signature) == signature_bytes(table.signature)
    assert tables["q"].signature is None
    assert (tables["q"].current_size, tables["q"].max_size, tables["q"].max_times_sampled) == (1, 5, 1)


async def test_a_signature_that_cannot_be_expressed_is_left_out() -> None:
    table = ra.Table("t", max_size=10, signature=ra.ArraySpec((), "float8_e8m0fnu"))
    async with served(table) as (_, client):
        assert (await client.info()).table_info[0].signature is None


async def test_checkpoint_is_refused_as_without_a_checkpointer() -> None:
    async with served(ra.Table("t", max_size=10)) as (_, client):
        expected = ("INVALID_ARGUMENT", "no Checkpointer configured for the replay service.")
        assert await refusal(client.call("Checkpoint")) == expected


async def test_the_service_can_be_switched_off() -> None:
    async with served(ra.Table("t", max_size=10), reverb_compat=False) as (_, client):
        assert (await refusal(client.call("ServerInfo")))[0] == "UNIMPLEMENTED"
        check = client.channel.unary_unary("/grpc.health.v1.Health/Check")
        answer = HealthCheckResponse.parse(await check(bytes(HealthCheckRequest(service=SERVICE))))
        assert answer.status.name == "SERVICE_UNKNOWN"


async def test_the_health_service_knows_it() -> None:
    async with served(ra.Table("t", max_size=10)) as (_, client):
        check = client.channel.unary_unary("/grpc.health.v1.Health/Check")
        answer = HealthCheckResponse.parse(await check(bytes(HealthCheckRequest(service=SERVICE))))
        assert answer.status.name == "SERVING"
