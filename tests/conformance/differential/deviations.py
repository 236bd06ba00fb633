"""Where our server answers otherwise on purpose; docs/COMPATIBILITY.md is written from here and from the requests that show it."""

from conformance.differential.model import Deviation

BATCH_SIZE = Deviation(
    "A batch may have 100,000 records",
    "Upstream's 5,461 is the number of SQL variables that SQLite allows. Here `max_batch_size` is a setting (PGCHROMA_MAX_BATCH_SIZE), and a "
    "larger batch is a 413 that names it; upstream announces its number and does not enforce it.",
)
V1 = Deviation(
    "All of /api/v1 is gone",
    "Upstream answers 410 to a GET below /api/v1 and 404 or 405 to the rest of it. A client of the old API gets the same clear answer whatever it asks.",
)
CRN = Deviation(
    "A collection's resource name is looked up without a crash",
    "Upstream panics on a well-formed name and closes the connection. No tenant has a resource name on a single node, so the answer is 404.",
)
WORDS = Deviation(
    "Messages for people",
    "Same status and error name, but the message says what is wrong where upstream's shows the inside of its validator, in an order that changes from "
    "request to request.",
)
OBJECTS = Deviation(
    "A body is an object",
    "Upstream's deserialiser also takes a list of the members' values in the order of its source code, which no client sends and no documentation names.",
)
LISTS = Deviation(
    "A collection's metadata may hold lists",
    "As a record's may. Upstream panics on one and closes the connection.",
)
LEFT_OVER = Deviation(
    "What was deleted stays deleted",
    "Lists in the metadata of a deleted collection's records appear on new records of upstream's, even those of another tenant.",
)
RENAMING = Deviation(
    "A name that is taken is a 409 when renaming, too",
    "Upstream lets the UNIQUE violation of its SQLite through as a 500.",
)
WRONG_TYPE = Deviation(
    "A number in the place of a word is a 422",
    "Upstream calls it malformed JSON (400), for words only; any other value of a wrong type is a 422 there, too.",
)
INT64 = Deviation(
    "Index parameters end at 2^63",
    "Upstream keeps numbers up to 2^64; none above a few thousand means anything.",
)
REPEATED = Deviation(
    "Of a member that is given twice, the last counts",
    "As in most JSON parsers. Upstream refuses it with 422, for the members it knows.",
)
NO_METADATA = Deviation(
    "No metadata is null",
    "A record whose last key was deleted has `null` for metadata, as one that never had any; upstream answers `{}` where the record still has a "
    "document or URI.",
)
FLOATS = Deviation(
    "Floats in metadata come back bit for bit",
    "Upstream 1.x returns some of them one unit in the last place off, and -0.0 as 0.0.",
)
RESERVED = Deviation(
    "Keys that upstream reserves are refused or kept, never used",
    "Upstream stores document and URI as metadata under `chroma:document` and `chroma:uri`: a caller's own value under these overwrites them. Here that is "
    "a 400. Any other key that starts with `chroma:` is kept; upstream takes it and never shows it again.",
)
INFINITE_QUERY = Deviation(
    "A query with infinity is refused",
    "A number that float32 cannot hold is a 400, as when adding; upstream answers distances of null in an arbitrary order.",
)
BASE64_QUERY = Deviation(
    "A query's embeddings may be base64, too", "Upstream takes them for adding, upserting and updating only."
)
UNKNOWN_IDS = Deviation(
    "A query by ids leaves unknown ones out",
    "Upstream answers 500 when one of a query's `ids` does not exist. Here it is left out as in a get; when none exists the answer is 400.",
)
DELETED = Deviation(
    "`deleted` counts what was deleted",
    "Upstream counts the ids that were asked for, existing or not, unless there is a filter.",
)
EMPTY_LIST = Deviation(
    "An empty list adds no key to the schema",
    "It counts as no value, as when reading the record; upstream's schema lists the key all the same.",
)
BIG_OPERAND = Deviation(
    "Integers from 2^63 to 2^64 can be compared with",
    "Upstream refuses them in a filter, though it takes them as metadata (as floats) and takes larger ones in both.",
)
BY_VALUE = Deviation(
    "Integers and floats compare by value",
    'Upstream rounds the operand: `{"$gte": 0.1}` matches 0 there, and `{"$gt": -0.5}` does not.',
)
DOCUMENT_KEY = Deviation(
    "`#document` takes the operators of documents",
    "Same status and error name; the message names the operator instead of a switched-off index.",
)
ID_KEY = Deviation(
    "A filter may be about ids",
    "`#id` in a `where`, which Chroma's search knows, means the record's id in a get, query and delete, too. Upstream's single node takes it for a "
    "metadata key, which no record has.",
)
NUL = Deviation(
    "U+0000 is a character like any other",
    "Upstream's full-text index takes `$contains` of U+0000 for an empty text, which every document contains.",
)
REGEX = Deviation(
    "A few patterns are refused",
    "Patterns are in Rust's syntax and find what Rust's engine finds, in linear time; here RE2 runs them. It has nothing for `(?R)` and `\\b{start}` and "
    "its like: 400. A class that matches nothing is refused by both, in other words.",
)
LIMITS = Deviation(
    "Filters and searches have limits that are named",
    "Depth and size of a filter, `n_results`, dimensions and the time of a request are bounded by settings (CHROMA_SERVER_SETUP.md); the 4xx names the one "
    "that was met.",
)
DEPTH = Deviation(
    "JSON may be nested about 1,000 deep",
    "Upstream skips over what it does not know, however deep; below that both take the same.",
)
