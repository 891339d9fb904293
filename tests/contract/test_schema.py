from typing import Any

import asyncpg
import pytest
from google.protobuf.descriptor import Descriptor

from siptrunk.v1 import phone_number_pb2, sip_trunk_pb2
from trunkline.fields import SQL_TYPES, Field, table
from trunkline.rows import select_list, stored_fields

TABLES: list[tuple[str, Descriptor]] = [
    ("trunks", sip_trunk_pb2.SipTrunk.DESCRIPTOR),
    ("phone_numbers", phone_number_pb2.PhoneNumber.DESCRIPTOR),
]
# Derived where they are read, kept under another name, or not kept.
DERIVED = {
    "trunks": {"auth_password", "auth_password_set", "codecs", "etag"},
    "phone_numbers": {"byot_trunk_id", "e164_check_enabled", "telephony_provider"},
}
HOT = {
    "trunks": {
        "revision",
        "updated_at",
        "qualify_frequency",
        "transport",
        "media_encryption",
        "description",
        "auth_password_sealed",
        "auth_password_changed_at",
        "phone_number_count",
    },
    "phone_numbers": {"name", "updated_at"},
}


def sql_type(field: Field) -> str:
    if field.kind == "message":
        return "jsonb" if field.repeated else "timestamp with time zone"
    return SQL_TYPES[field.kind]


STORED = [
    pytest.param(name, field, id=f"{name}.{field.name}")
    for name, descriptor in TABLES
    for field in table(descriptor).values()
    if field.name not in DERIVED[name]
]


@pytest.fixture(scope="module")
async def connection(postgres: str, template: str) -> Any:
    """A connection to the schema, which no test here changes."""
    connection = await asyncpg.connect(postgres, database=template)
    yield connection
    await connection.close()


async def column(connection: "asyncpg.Connection[Any]", table_name: str, name: str) -> Any:
    return await connection.fetchrow(
        "SELECT data_type, column_default, is_nullable, collation_name"
        " FROM information_schema.columns WHERE table_name = $1 AND column_name = $2",
        table_name,
        name,
    )


@pytest.mark.parametrize(("table_name", "field"), STORED)
async def test_field_has_a_column_of_its_type(
    connection: "asyncpg.Connection[Any]", table_name: str, field: Field
) -> None:
    found = await column(connection, table_name, field.name)
    assert found is not None
    assert found["data_type"] == sql_type(field)


@pytest.mark.parametrize(
    "field",
    [
        pytest.param(f, id=f.name)
        for f in table(sip_trunk_pb2.SipTrunk.DESCRIPTOR).values()
        if f.updatable and not f.secret
    ],
)
async def test_default_of_a_field_is_its_columns_default(
    connection: "asyncpg.Connection[Any]", field: Field
) -> None:
    found = await column(connection, "trunks", field.name)
    default = found["column_default"]
    value = None if default is None else await connection.fetchval(f"SELECT {default}")
    if field.repeated:
        assert value == (None if field.required else "[]")
    else:
        assert value == field.default


@pytest.mark.parametrize(
    "field",
    [
        pytest.param(f, id=f.name)
        for f in table(sip_trunk_pb2.SipTrunk.DESCRIPTOR).values()
        if f.required or f.default is not None
    ],
)
async def test_field_that_is_never_absent_has_a_column_that_is_never_null(
    connection: "asyncpg.Connection[Any]", field: Field
) -> None:
    assert (await column(connection, "trunks", field.name))["is_nullable"] == "NO"


@pytest.mark.parametrize(("table_name", "descriptor"), TABLES)
async def test_what_is_read_of_a_row_is_every_stored_field_in_order(
    connection: "asyncpg.Connection[Any]", table_name: str, descriptor: Descriptor
) -> None:
    statement = await connection.prepare(
        f"SELECT {select_list(descriptor, 't')} FROM {table_name} AS t"
    )
    names = [attribute.name for attribute in statement.get_attributes()]
    assert names == [f.name for f in stored_fields(descriptor)]


async def test_key_columns_compare_bytewise(connection: "asyncpg.Connection[Any]") -> None:
    rows = await connection.fetch(
        """SELECT c.relname, a.attname, co.collname
             FROM pg_constraint AS k
             JOIN pg_class AS c ON c.oid = k.conrelid
             JOIN pg_namespace AS n ON n.oid = c.relnamespace AND n.nspname = 'public'
             JOIN pg_attribute AS a ON a.attrelid = k.conrelid AND a.attnum = ANY(k.conkey)
             LEFT JOIN pg_collation AS co ON co.oid = a.attcollation
            WHERE k.contype IN ('p', 'u', 'f') AND a.atttypid = 'text'::regtype"""
    )
    assert len(rows) > 8
    assert {(r["relname"], r["attname"]) for r in rows if r["collname"] != "C"} == set()


async def test_account_is_the_first_column_of_every_key_and_index(
    connection: "asyncpg.Connection[Any]",
) -> None:
    rows = await connection.fetch(
        """SELECT i.indexrelid::regclass::text AS name,
                  pg_get_indexdef(i.indexrelid, 1, true) AS key
             FROM pg_index AS i
            WHERE i.indrelid IN ('trunks'::regclass, 'phone_numbers'::regclass)"""
    )
    keys = {r["name"]: r["key"] for r in rows}
    # Read for the whole database when a server starts, in no account.
    assert keys.pop("trunks_secret_key") == "auth_password_key_id"
    assert [name for name, key in keys.items() if "account_id" not in key] == []


async def test_page_of_trunks_leaves_room_for_the_next_version_of_a_row(
    connection: "asyncpg.Connection[Any]",
) -> None:
    options = await connection.fetchval(
        "SELECT reloptions FROM pg_class WHERE oid = 'trunks'::regclass"
    )
    fill = dict(option.split("=") for option in options)["fillfactor"]
    assert int(fill) < 100


@pytest.mark.parametrize("table_name", HOT)
async def test_no_index_is_on_a_column_that_changes_often(
    connection: "asyncpg.Connection[Any]", table_name: str
) -> None:
    # Columns in an expression or a predicate are not in indkey, those of a constraint's index have
    # no dependency of their own.
    rows = await connection.fetch(
        """SELECT a.attname
             FROM pg_index AS i
             JOIN pg_attribute AS a ON a.attrelid = i.indrelid
            WHERE i.indrelid = $1::text::regclass
              AND (a.attnum = ANY(i.indkey) OR EXISTS (
                     SELECT FROM pg_depend AS d
                      WHERE d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid
                        AND d.refobjid = i.indrelid AND d.refobjsubid = a.attnum))""",
        table_name,
    )
    indexed = {r["attname"] for r in rows}
    assert "account_id" in indexed
    assert indexed & HOT[table_name] == set()


async def test_columns_are_not_of_enum_types(connection: "asyncpg.Connection[Any]") -> None:
    assert await connection.fetchval("SELECT count(*) FROM pg_type WHERE typtype = 'e'") == 0


@pytest.mark.parametrize(
    "field",
    [
        pytest.param(f, id=f.name)
        for f in table(sip_trunk_pb2.SipTrunk.DESCRIPTOR).values()
        if f.kind == "enum"
    ],
)
async def test_constraint_of_an_enum_column_has_the_values_of_the_proto(
    connection: "asyncpg.Connection[Any]", field: Field
) -> None:
    definition = await connection.fetchval(
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint"
        " WHERE conname = $1 AND conrelid = 'trunks'::regclass",
        f"trunks_{field.name}",
    )
    named = set(definition.split("'")[1::2])
    assert named == set(field.enum_names.values())


@pytest.mark.parametrize(
    ("constraint", "name"),
    [
        ("trunks_gateways", "gateways"),
        ("trunks_ip_identifiers", "ip_identifiers"),
        ("trunks_qualify_frequency", "qualify_frequency"),
    ],
)
async def test_constraint_of_a_bounded_column_has_the_bounds_of_the_proto(
    connection: "asyncpg.Connection[Any]", constraint: str, name: str
) -> None:
    definition = await connection.fetchval(
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = $1", constraint
    )
    rules = table(sip_trunk_pb2.SipTrunk.DESCRIPTOR)[name].rules
    highest = rules.maximum or rules.max_length
    assert str(highest) in definition
    assert str(rules.minimum or rules.min_length) in definition or "<=" in definition
