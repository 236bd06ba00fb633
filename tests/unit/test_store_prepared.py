"""Which statements a connection keeps prepared."""

from pgchroma.store import wire


def test_a_statement_is_prepared_at_its_second_use() -> None:
    prepared = wire.Prepared()
    key = (b"SELECT 1", ())
    assert prepared.use(key) == (b"", False, b"")
    name, is_new, forgotten = prepared.use(key)
    assert name
    assert is_new
    assert not forgotten
    assert prepared.use(key) == (name, False, b"")
    prepared.drop(key)
    assert prepared.use(key) == (b"", False, b"")


def test_the_statement_used_longest_ago_is_forgotten() -> None:
    prepared = wire.Prepared()
    keys = [(b"SELECT %d" % number, ()) for number in range(wire._KEPT + 1)]
    for key in keys[:-1]:
        prepared.use(key)
        prepared.use(key)
    first = prepared.use(keys[0])[0]
    _, _, forgotten = prepared.use(keys[-1])
    assert forgotten
    assert forgotten != first
    assert prepared.use(keys[1]) == (b"", False, prepared_name(2))


def prepared_name(number: int) -> bytes:
    return b"pgchroma_%d" % (number + 1)


def test_the_same_statement_with_other_types_is_another() -> None:
    prepared = wire.Prepared()
    prepared.use((b"SELECT $1", (20,)))
    assert prepared.use((b"SELECT $1", (25,))) == (b"", False, b"")


def test_placeholders_get_numbers() -> None:
    text, names = wire._numbered(b"SELECT %(b)s, %(a)s, %(b)s, 7 %% 2")
    assert (text, names) == (b"SELECT $1, $2, $1, 7 % 2", ("b", "a"))
