"""The mapping: what each table and column becomes. Suggested by the migrator, kept in a YAML file, edited by a person."""

from dataclasses import dataclass, field
from typing import Any, Final, Self

import yaml

from pgchroma.errors import ConfigurationError
from pgchroma.migrate.tables import kinds

VERSION: Final = 1
ON_CONFLICT: Final = ("fail", "skip", "update")
ON_MISFIT: Final = ("fail", "quarantine", "null")
ON_NUL: Final = ("fail", "replace", "strip")
ON_ORPHAN: Final = ("fail", "not_valid", "drop")
_ACTIONS: Final = ("NO ACTION", "RESTRICT", "CASCADE", "SET NULL", "SET DEFAULT")
LONGEST_NAME_BYTES: Final = 63


def _fields(where: str, data: object, known: dict[str, type | tuple[type, ...]]) -> dict[str, Any]:
    """Check a mapping's keys and the types of their values."""
    if not isinstance(data, dict):
        raise ConfigurationError(
            f"{where} is not a mapping", hint="start from a file that `plan --write-mapping` made"
        )
    for key, value in data.items():
        if key not in known:
            raise ConfigurationError(
                f"{where} has an unknown key {key!r}", hint=f"use one of {', '.join(known)}"
            )
        if not isinstance(value, known[key]):
            raise ConfigurationError(f"{where}.{key} is {value!r}, which is of the wrong type")
    return data


def _choice(where: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ConfigurationError(f"{where} is {value!r}", hint=f"use one of {', '.join(allowed)}")
    return value


def _names(where: str, value: list[Any]) -> tuple[str, ...]:
    if not all(isinstance(item, str) for item in value):
        raise ConfigurationError(f"{where} is not a list of names")
    return tuple(value)


def _require_name(where: str, name: str) -> str:
    if not name or len(name.encode()) > LONGEST_NAME_BYTES or "\x00" in name:
        raise ConfigurationError(
            f"{where}: {name!r} cannot be a name in PostgreSQL, which wants 1 to {LONGEST_NAME_BYTES} bytes",
            hint="give it another target",
        )
    return name


@dataclass(frozen=True, slots=True)
class ColumnPlan:
    """What one column becomes; `default` is PostgreSQL's SQL."""

    source: str
    target: str
    kind: kinds.Kind
    not_null: bool = False
    default: str | None = None
    identity: bool = False
    on_misfit: str = "fail"
    on_nul: str = "fail"
    skip: bool = False

    def as_data(self) -> dict[str, Any]:
        """Return what stands in the file."""
        data: dict[str, Any] = {"target": self.target, "type": self.kind.sql}
        if self.kind.conversion != "none":
            data["convert"] = self.kind.conversion
        if self.default is not None:
            data["default"] = self.default
        data |= {key: True for key in ("not_null", "identity", "skip") if getattr(self, key)}
        return (
            data
            | {"on_misfit": self.on_misfit}
            | ({"on_nul": self.on_nul} if self.kind.name in ("text", "varchar") else {})
        )

    @classmethod
    def from_data(cls, where: str, source: str, data: object) -> Self:
        """Check and return what stands in the file."""
        known: dict[str, type | tuple[type, ...]] = {
            "target": str, "type": str, "convert": str, "default": (str, type(None)), "not_null": bool, "identity": bool,
            "skip": bool, "on_misfit": str, "on_nul": str,
        }  # fmt: skip
        given = _fields(where, data, known)
        try:
            kind = kinds.parse(given.get("type", "text"), given.get("convert", "none"))
        except ConfigurationError as error:
            raise ConfigurationError(f"{where}: {error.message}", hint=error.hint) from error
        column = cls(
            source,
            _require_name(where, given.get("target", source)),
            kind,
            given.get("not_null", False),
            given.get("default"),
            given.get("identity", False),
            _choice(f"{where}.on_misfit", given.get("on_misfit", "fail"), ON_MISFIT),
            _choice(f"{where}.on_nul", given.get("on_nul", "fail"), ON_NUL),
            given.get("skip", False),
        )
        if column.on_misfit == "null" and column.not_null:
            raise ConfigurationError(
                f"{where} is not_null and would become null where a value does not fit",
                hint="use on_misfit: quarantine, or take not_null away",
            )
        if column.identity and kind.name not in ("smallint", "integer", "bigint"):
            raise ConfigurationError(f"{where} is an identity of type {kind.sql}", hint="use bigint")
        return column


@dataclass(frozen=True, slots=True)
class KeyPlan:
    """A foreign key, in source names."""

    columns: tuple[str, ...]
    references: str
    to: tuple[str, ...]
    on_update: str = "NO ACTION"
    on_delete: str = "NO ACTION"

    def as_data(self) -> dict[str, Any]:
        """Return what stands in the file."""
        data: dict[str, Any] = {
            "columns": list(self.columns),
            "references": self.references,
            "to": list(self.to),
        }
        return data | {
            key: getattr(self, key) for key in ("on_update", "on_delete") if getattr(self, key) != "NO ACTION"
        }

    @classmethod
    def from_data(cls, where: str, data: object) -> Self:
        """Check and return what stands in the file."""
        given = _fields(
            where, data, {"columns": list, "references": str, "to": list, "on_update": str, "on_delete": str}
        )
        key = cls(
            _names(f"{where}.columns", given.get("columns", [])),
            given.get("references", ""),
            _names(f"{where}.to", given.get("to", [])),
            _choice(f"{where}.on_update", given.get("on_update", "NO ACTION"), _ACTIONS),
            _choice(f"{where}.on_delete", given.get("on_delete", "NO ACTION"), _ACTIONS),
        )
        if not key.columns or len(key.columns) != len(key.to):
            raise ConfigurationError(f"{where} needs as many columns as it refers to")
        return key


@dataclass(frozen=True, slots=True)
class IndexPlan:
    """An index or a unique constraint, in source names."""

    name: str
    columns: tuple[str, ...]
    unique: bool = False
    descending: tuple[str, ...] = ()

    def as_data(self) -> dict[str, Any]:
        """Return what stands in the file."""
        data: dict[str, Any] = {"name": self.name, "columns": list(self.columns)}
        if self.unique:
            data["unique"] = True
        return data | ({"descending": list(self.descending)} if self.descending else {})

    @classmethod
    def from_data(cls, where: str, data: object) -> Self:
        """Check and return what stands in the file."""
        given = _fields(where, data, {"name": str, "columns": list, "unique": bool, "descending": list})
        columns = _names(f"{where}.columns", given.get("columns", []))
        descending = _names(f"{where}.descending", given.get("descending", []))
        for name in descending:
            _choice(f"{where}.descending", name, columns)
        return cls(
            _require_name(where, given.get("name", "")), columns, given.get("unique", False), descending
        )


@dataclass(frozen=True, slots=True)
class TablePlan:
    """What one table becomes."""

    source: str
    target: str
    columns: tuple[ColumnPlan, ...]
    primary_key: tuple[str, ...] = ()
    foreign_keys: tuple[KeyPlan, ...] = ()
    indexes: tuple[IndexPlan, ...] = ()
    on_conflict: str = "fail"
    on_orphan: str = "fail"
    skip: bool = False

    @property
    def moved(self) -> tuple[ColumnPlan, ...]:
        """The columns that are not skipped."""
        return tuple(column for column in self.columns if not column.skip)

    def target_of(self, column: str) -> str:
        """Return what a source column is called in PostgreSQL; ConfigurationError when it is not moved."""
        return self.column(column).target

    def column(self, column: str) -> ColumnPlan:
        """Return the plan of a source column that a key or an index uses; ConfigurationError when it is not moved."""
        for candidate in self.moved:
            if candidate.source == column:
                return candidate
        raise ConfigurationError(
            f"tables.{self.source}: a key or an index uses the column {column!r}, which is not moved",
            hint="take it out of the key or index as well, or move the column",
        )

    def as_data(self) -> dict[str, Any]:
        """Return what stands in the file."""
        data: dict[str, Any] = {"target": self.target}
        if self.skip:
            data["skip"] = True
        data |= {"on_conflict": self.on_conflict, "on_orphan": self.on_orphan}
        data["columns"] = {column.source: column.as_data() for column in self.columns}
        data["primary_key"] = list(self.primary_key)
        data["foreign_keys"] = [key.as_data() for key in self.foreign_keys]
        data["indexes"] = [index.as_data() for index in self.indexes]
        return data

    @classmethod
    def from_data(cls, source: str, data: object) -> Self:
        """Check and return what stands in the file."""
        where = f"tables.{source}"
        known: dict[str, type | tuple[type, ...]] = {
            "target": str, "skip": bool, "on_conflict": str, "on_orphan": str, "columns": dict, "primary_key": list,
            "foreign_keys": list, "indexes": list,
        }  # fmt: skip
        given = _fields(where, data, known)
        columns = given.get("columns", {}).items()
        table = cls(
            source,
            _require_name(where, given.get("target", source)),
            tuple(ColumnPlan.from_data(f"{where}.columns.{name}", str(name), item) for name, item in columns),
            _names(f"{where}.primary_key", given.get("primary_key", [])),
            tuple(
                KeyPlan.from_data(f"{where}.foreign_keys[{n}]", item)
                for n, item in enumerate(given.get("foreign_keys", []))
            ),
            tuple(
                IndexPlan.from_data(f"{where}.indexes[{n}]", item)
                for n, item in enumerate(given.get("indexes", []))
            ),
            _choice(f"{where}.on_conflict", given.get("on_conflict", "fail"), ON_CONFLICT),
            _choice(f"{where}.on_orphan", given.get("on_orphan", "fail"), ON_ORPHAN),
            given.get("skip", False),
        )
        targets = [column.target for column in table.moved]
        if len(set(targets)) != len(targets):
            raise ConfigurationError(f"{where} gives two columns the same target", hint="rename one of them")
        if table.on_conflict != "fail" and not table.primary_key:
            raise ConfigurationError(
                f"{where} has on_conflict: {table.on_conflict} and no primary key to tell a conflict by",
                hint="name a primary_key, or use on_conflict: fail",
            )
        return table


@dataclass(frozen=True, slots=True)
class Mapping:
    """Everything that is to be moved, and to which schema."""

    schema: str = "public"
    tables: tuple[TablePlan, ...] = field(default=())

    @property
    def moved(self) -> tuple[TablePlan, ...]:
        """The tables that are not skipped."""
        return tuple(table for table in self.tables if not table.skip)

    def table(self, source: str) -> TablePlan | None:
        """Return the plan of a source table that is moved."""
        return next((table for table in self.moved if table.source == source), None)

    def as_data(self) -> dict[str, Any]:
        """Return what stands in the file."""
        return {
            "version": VERSION,
            "schema": self.schema,
            "tables": {table.source: table.as_data() for table in self.tables},
        }

    def dump(self) -> str:
        """Return the file's text."""
        return yaml.safe_dump(self.as_data(), sort_keys=False, allow_unicode=True, width=120)


def from_data(data: object) -> Mapping:
    """Check a mapping; ConfigurationError names the place that is wrong and what is allowed there."""
    given = _fields("the mapping", data, {"version": int, "schema": str, "tables": dict})
    if given.get("version") != VERSION:
        raise ConfigurationError(
            f"the mapping is of version {given.get('version')!r}, this program reads {VERSION}",
            hint="make it anew with `pgchroma tables plan --write-mapping`",
        )
    mapping = Mapping(
        _require_name("schema", given.get("schema", "public")),
        tuple(TablePlan.from_data(str(name), item) for name, item in given.get("tables", {}).items()),
    )
    targets = [table.target for table in mapping.moved]
    if len(set(targets)) != len(targets):
        raise ConfigurationError("the mapping gives two tables the same target", hint="rename one of them")
    return mapping


def load(text: str, name: str) -> Mapping:
    """Read a mapping file's text."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigurationError(
            f"{name} is not YAML: {error}", hint="check indentation and quotes"
        ) from error
    return from_data(data)
