"""A transaction of SQLite, and a change inside one that others share."""

from __future__ import annotations

import sqlite3


class Transaction:
    """BEGIN IMMEDIATE to COMMIT: waiting for a lock happens at its start, where nothing was done yet."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._connection.execute("ROLLBACK" if kind else "COMMIT")
        except sqlite3.Error:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            if kind is None:
                raise


class Savepoint(Transaction):
    """A change inside a transaction. An error that ends the transaction as a whole ends all that are in it."""

    def __enter__(self) -> None:
        if not self._connection.in_transaction:
            raise sqlite3.OperationalError("the transaction was undone by an earlier change")
        self._connection.execute("SAVEPOINT change")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not self._connection.in_transaction:
            return
        if kind:
            self._connection.execute("ROLLBACK TO change")
        self._connection.execute("RELEASE change")
