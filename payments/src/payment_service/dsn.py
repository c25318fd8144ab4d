"""The DSN of the configuration, completed with the settings that each kind of session needs."""

from __future__ import annotations

from collections.abc import Mapping

from psycopg.conninfo import conninfo_to_dict, make_conninfo


def session_dsn(dsn: str, name: str, settings: Mapping[str, str | int]) -> str:
    """``dsn`` for a session called ``name`` in pg_stat_activity, with server ``settings`` on top of its own options.

    Every session speaks UTF-8 and UTC, so that what is read back is what was sent.
    """
    wanted = {**settings, "timezone": "UTC"}
    # A space ends an option unless a backslash stands before it.
    options = [f"-c {key}=" + str(value).replace(" ", r"\ ") for key, value in wanted.items()]
    given = conninfo_to_dict(dsn).get("options")
    if given:
        options.insert(0, str(given))
    return make_conninfo(
        dsn,
        options=" ".join(options),
        client_encoding="utf8",
        application_name=f"payment-service {name}",
        connect_timeout=5,
    )
