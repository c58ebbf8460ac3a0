"""The tables of the store, as the newest migration leaves them.

Owns names, types, keys and indexes, for every SQL database. It never says how a row is written or read (`sql.py`) and
never changes a database (`migrations`); a test holds tables and migrations together.

Times are nanoseconds since the epoch in 64 bits. A number that is unknown (NaN in the engine) is NULL. On PostgreSQL
texts sort by their bytes (collation C), and the key of `alert_history` is (alert_id, fired_at_ns): see `postgres.py`.
"""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Date,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    false,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

bars_1m = Table(
    "bars_1m",
    metadata,
    Column("symbol", Text, nullable=False),
    Column("ts_ns", BigInteger, nullable=False),
    Column("open", Double),
    Column("high", Double),
    Column("low", Double),
    Column("close", Double),
    Column("volume", Double),
    Column("vwap", Double),
    Column("vwap_volume", Double),
    Column("trade_count", BigInteger, nullable=False),
    Column("revision", BigInteger, nullable=False),
    PrimaryKeyConstraint("symbol", "ts_ns"),
)

alert_history = Table(
    "alert_history",
    metadata,
    Column("alert_id", Text, nullable=False),
    Column("rule_id", Text, nullable=False),
    Column("rule_version", BigInteger, nullable=False),
    Column("rule_name", Text, nullable=False),
    Column("symbol", Text, nullable=False),
    Column("fired_at_ns", BigInteger, nullable=False),
    Column("price", Double),
    Column("values", JSON, nullable=False),
    Column("session", Text, nullable=False),
    Column("received_ns", BigInteger, nullable=False),
    Column("note", Text, nullable=False, server_default=""),
    Column("ages_s", JSON, nullable=False, server_default="{}"),
    Column("severity", Text, nullable=False, server_default="info"),
    Column("tags", JSON, nullable=False, server_default="[]"),
    Column("owner", Text, nullable=False, server_default="local"),
    Column("shared", Boolean, nullable=False, server_default=false()),
    Column("scanned_ns", BigInteger, nullable=False, server_default="0"),
    Column("filtered_ns", BigInteger, nullable=False, server_default="0"),
    PrimaryKeyConstraint("alert_id"),
    # Newest first, by the last seen (fired_at_ns, alert_id): each index walks backwards through exactly its answer.
    Index(None, "fired_at_ns", "alert_id"),
    Index(None, "symbol", "fired_at_ns", "alert_id"),
    Index(None, "rule_id", "fired_at_ns", "alert_id"),
)

# Who is not everybody's admin sees their own alerts and those that are shared: two such walks, merged. Both kinds of
# index leave out what a process without accounts has, whose one user asks for all: there they cost nothing.
OWNED, SHARED = text("owner <> 'local'"), text("shared")
for _columns in ((), ("symbol",), ("rule_id",)):
    Index(
        "_".join(("ix_alert_history_owned", *_columns)),
        *(alert_history.c[column] for column in ("owner", *_columns, "fired_at_ns", "alert_id")),
        sqlite_where=OWNED,
        postgresql_where=OWNED,
    )
    Index(
        "_".join(("ix_alert_history_shared", *_columns)),
        *(alert_history.c[column] for column in (*_columns, "fired_at_ns", "alert_id")),
        sqlite_where=SHARED,
        postgresql_where=SHARED,
    )

rules = Table(
    "rules",
    metadata,
    Column("rule_id", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("created_at", Text, nullable=False),
    Column("deleted", Boolean, nullable=False),
    Column("owner", Text, nullable=False, server_default="local"),
    PrimaryKeyConstraint("rule_id"),
    Index(None, "owner"),
)

rule_versions = Table(
    "rule_versions",
    metadata,
    Column("rule_id", Text, ForeignKey(rules.c.rule_id), nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("document", JSON, nullable=False),
    PrimaryKeyConstraint("rule_id", "version"),
)

watchlists = Table(
    "watchlists",
    metadata,
    Column("watchlist_id", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("created_at", Text, nullable=False),
    Column("deleted", Boolean, nullable=False),
    Column("owner", Text, nullable=False, server_default="local"),
    PrimaryKeyConstraint("watchlist_id"),
    Index(None, "owner"),
)

watchlist_versions = Table(
    "watchlist_versions",
    metadata,
    Column("watchlist_id", Text, ForeignKey(watchlists.c.watchlist_id), nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("document", JSON, nullable=False),
    PrimaryKeyConstraint("watchlist_id", "version"),
)

toplist_configs = Table(
    "toplist_configs",
    metadata,
    Column("toplist_id", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("created_at", Text, nullable=False),
    Column("deleted", Boolean, nullable=False),
    Column("owner", Text, nullable=False, server_default="local"),
    # What an enabled one reads beside the rows that boards always have.
    Column("shows", JSON, nullable=False, server_default="[]"),
    PrimaryKeyConstraint("toplist_id"),
    Index(None, "owner"),
)

toplist_versions = Table(
    "toplist_versions",
    metadata,
    Column("toplist_id", Text, ForeignKey(toplist_configs.c.toplist_id), nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("document", JSON, nullable=False),
    PrimaryKeyConstraint("toplist_id", "version"),
)

# The lists that enabled rules name, which need not exist.
rule_watchlists = Table(
    "rule_watchlists",
    metadata,
    Column("rule_id", Text, ForeignKey(rules.c.rule_id), nullable=False),
    Column("watchlist_id", Text, nullable=False),
    PrimaryKeyConstraint("rule_id", "watchlist_id"),
    Index(None, "watchlist_id"),
)

# Numbers are never used again, so that a page can begin behind one that has expired since.
audit_log = Table(
    "audit_log",
    metadata,
    Column("entry", BigInteger().with_variant(Integer, "sqlite"), nullable=False, autoincrement=True),
    Column("at_ns", BigInteger, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("detail", JSON, nullable=False),
    PrimaryKeyConstraint("entry"),
    Index(None, "at_ns"),
    Index(None, "subject", "entry"),
    sqlite_autoincrement=True,
)

# One row. Every change of a rule, and of a watchlist that an enabled rule names, raises it in the same transaction.
ruleset_number = Table(
    "ruleset_number",
    metadata,
    Column("id", Integer, nullable=False, autoincrement=False),
    Column("number", BigInteger, nullable=False),
    PrimaryKeyConstraint("id"),
)

# The position is that of the last effect. A state has one of its own, which may be earlier.
reader_positions = Table(
    "reader_positions",
    metadata,
    Column("reader", Text, nullable=False),
    Column("epoch", BigInteger),
    Column("sequence", BigInteger),
    Column("owner", BigInteger, nullable=False, server_default="0"),
    Column("state", LargeBinary),
    Column("state_epoch", BigInteger),
    Column("state_sequence", BigInteger),
    PrimaryKeyConstraint("reader"),
)

# What never changes once it is set.
installation = Table(
    "installation",
    metadata,
    Column("name", Text, nullable=False),
    Column("value", Text, nullable=False),
    PrimaryKeyConstraint("name"),
)

symbols = Table(
    "symbols",
    metadata,
    Column("symbol", Text, nullable=False),
    Column("name", Text),
    Column("exchange", Text),
    Column("tape", Text),
    Column("type", Text),
    Column("is_test", Boolean, nullable=False),
    Column("active", Boolean, nullable=False),
    Column("market_cap", Double),
    Column("shares_outstanding", Double),
    Column("sector", Text),
    Column("round_lot", BigInteger),
    Column("as_of", Date, nullable=False),
    PrimaryKeyConstraint("symbol"),
)

splits = Table(
    "splits",
    metadata,
    Column("symbol", Text, nullable=False),
    Column("ex_date", Date, nullable=False),
    Column("split_from", Double, nullable=False),
    Column("split_to", Double, nullable=False),
    PrimaryKeyConstraint("symbol", "ex_date"),
)

# As they traded: splits are applied by who reads. `day` counts from 1970-01-01, in New York.
bars_1d = Table(
    "bars_1d",
    metadata,
    Column("symbol", Text, nullable=False),
    Column("day", Integer, nullable=False),
    Column("open", Double, nullable=False),
    Column("high", Double, nullable=False),
    Column("low", Double, nullable=False),
    Column("close", Double, nullable=False),
    Column("volume", Double, nullable=False),
    PrimaryKeyConstraint("symbol", "day"),
    Index(None, "day"),
)

# `name_key` is the name without capitals.
users = Table(
    "users",
    metadata,
    Column("user_id", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("name_key", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("disabled", Boolean, nullable=False),
    Column("password_hash", Text, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("created_at_ns", BigInteger, nullable=False),
    Column("profile", JSON, nullable=False),
    PrimaryKeyConstraint("user_id"),
    Index(None, "name_key", unique=True),
)

sessions = Table(
    "sessions",
    metadata,
    Column("session_id", Text, nullable=False),
    Column("user_id", Text, ForeignKey(users.c.user_id), nullable=False),
    Column("refresh_hash", Text, nullable=False),
    Column("created_at_ns", BigInteger, nullable=False),
    Column("expires_ns", BigInteger, nullable=False),
    Column("used_at_ns", BigInteger, nullable=False),
    PrimaryKeyConstraint("session_id"),
    Index(None, "user_id", "used_at_ns"),
    Index(None, "expires_ns"),
)

api_tokens = Table(
    "api_tokens",
    metadata,
    Column("token_id", Text, nullable=False),
    Column("user_id", Text, ForeignKey(users.c.user_id), nullable=False),
    Column("name", Text, nullable=False),
    Column("secret_hash", Text, nullable=False),
    Column("scopes", JSON(none_as_null=True)),
    Column("created_at_ns", BigInteger, nullable=False),
    Column("expires_ns", BigInteger, nullable=False),
    Column("used_at_ns", BigInteger),
    Column("revoked", Boolean, nullable=False),
    PrimaryKeyConstraint("token_id"),
    Index(None, "user_id", "created_at_ns"),
)

# By which name an OpenID provider knows a user.
identities = Table(
    "identities",
    metadata,
    Column("issuer", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("user_id", Text, ForeignKey(users.c.user_id), nullable=False),
    PrimaryKeyConstraint("issuer", "subject"),
    Index(None, "user_id"),
)

# One row. Every change of who is let in raises it in the same transaction.
accounts_number = Table(
    "accounts_number",
    metadata,
    Column("id", Integer, nullable=False, autoincrement=False),
    Column("number", BigInteger, nullable=False),
    PrimaryKeyConstraint("id"),
)

# What a user has put on an alert. The time is the alert's own, for marks are forgotten with their alerts; there is no
# foreign key, because a key of a table in chunks holds the time.
alert_marks = Table(
    "alert_marks",
    metadata,
    Column("user_id", Text, nullable=False),
    Column("alert_id", Text, nullable=False),
    Column("fired_at_ns", BigInteger, nullable=False),
    Column("acknowledged_at_ns", BigInteger),
    Column("note", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    PrimaryKeyConstraint("user_id", "alert_id"),
    Index(None, "fired_at_ns"),
)

# Requests that are done once, by the key that their user gave them. Without a status they are being done.
done_once = Table(
    "done_once",
    metadata,
    Column("user_id", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("begun_ns", BigInteger, nullable=False),
    Column("status", Integer),
    Column("headers", JSON),
    Column("body", LargeBinary),
    PrimaryKeyConstraint("user_id", "key"),
    Index(None, "begun_ns"),
)

# One row each; a deleted one stays, without its document, so that the sum of versions only rises.
subscriptions = Table(
    "subscriptions",
    metadata,
    Column("subscription_id", Text, nullable=False),
    Column("owner", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("deleted", Boolean, nullable=False),
    Column("document", JSON, nullable=False),
    PrimaryKeyConstraint("subscription_id"),
    Index(None, "owner"),
)

# The document has the channel's secrets.
channels = Table(
    "channels",
    metadata,
    Column("channel_id", Text, nullable=False),
    Column("owner", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("deleted", Boolean, nullable=False),
    Column("document", JSON, nullable=False),
    PrimaryKeyConstraint("channel_id"),
    Index(None, "owner"),
)

# The outbox.
deliveries = Table(
    "deliveries",
    metadata,
    Column("delivery_id", Text, nullable=False),
    Column("channel_id", Text, nullable=False),
    Column("owner", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("alert_id", Text, nullable=False),
    Column("rule_id", Text, nullable=False),
    Column("symbol", Text, nullable=False),
    Column("subscriptions", JSON, nullable=False),
    Column("at_ns", BigInteger, nullable=False),
    Column("next_try_ns", BigInteger, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("error", Text, nullable=False),
    Column("digest_id", Text, nullable=False),
    Column("sent_ns", BigInteger, nullable=False),
    Column("body", JSON, nullable=False),
    PrimaryKeyConstraint("delivery_id"),
    Index(None, "channel_id", "state", "at_ns"),
    Index(None, "state", "next_try_ns"),
    Index(None, "owner", "at_ns", "delivery_id"),
    Index(None, "at_ns", "delivery_id"),
)
