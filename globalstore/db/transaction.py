"""What an operation sees of the database: statements in, plain tuples out."""

import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

from globalstore.db.errors import Closed, mapped

Row = tuple[Any, ...]
Parameters = Mapping[str, Any] | Sequence[Any]


@lru_cache(maxsize=64)
def _marks(columns: int, rows: int) -> str:
    row = f"({','.join('?' * columns)})"
    return f"(VALUES {','.join([row] * rows)})"


class Snapshot:
    """A consistent, read-only view, valid until the query it was handed to returns."""

    __slots__ = ("_connection", "_execute", "broken")

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._execute = connection.execute
        self.broken: Exception | None = None

    def one(self, sql: str, parameters: Parameters = ()) -> Row | None:
        """Return the first row of the result, or None. Works for ``… RETURNING`` too."""
        try:
            row: Row | None = self._execute(sql, parameters).fetchone()
        except sqlite3.Error as error:
            raise self._failure(error) from error
        return row

    def all(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        """Return all rows of the result. The caller's SQL bounds how many that are."""
        try:
            return self._execute(sql, parameters).fetchall()
        except sqlite3.Error as error:
            raise self._failure(error) from error

    def up_to(
        self, bytes_max: int, size: Callable[[Row], int], sql: str, parameters: Parameters = ()
    ) -> tuple[list[Row], bool]:
        """Return rows from the first on until they have so many bytes by ``size``, one at least.

        The second value tells whether these are all; those after them are not read.
        """
        rows: list[Row] = []
        left = bytes_max
        try:
            cursor = self._execute(sql, parameters)
            for row in cursor:
                rows.append(row)
                left -= size(row)
                if left <= 0:
                    cursor.close()
                    return rows, False
        except sqlite3.Error as error:
            raise self._failure(error) from error
        return rows, True

    def restore(self) -> None:
        """Make the view usable again in a new transaction."""
        self.broken = None
        self._execute = self._connection.execute

    def end(self) -> None:
        """Make the view useless: code that kept it would write without a transaction."""
        self._break(Closed("the transaction that this belongs to is over"))

    def _break(self, error: Exception) -> None:
        self.broken = error
        self._execute = self._refuse

    def _failure(self, error: sqlite3.Error) -> Exception:
        failure = mapped(error)
        if not self._connection.in_transaction:
            # SQLite has rolled back everything. A statement run now would commit by itself, so an
            # operation that catches this error must not get a further one through.
            self._break(failure)
        return failure

    def _refuse(self, *_: object) -> Any:
        assert self.broken is not None
        raise self.broken


class Transaction(Snapshot):
    """A view that may write, inside a transaction that it shares and does not control.

    An operation may run twice when the group it is in has to be repeated: it touches nothing but
    its transaction, takes the time and new ids as arguments, and decides refusals before its
    first write.
    """

    __slots__ = ("events",)

    def __init__(self, connection: sqlite3.Connection) -> None:
        super().__init__(connection)
        self.events: list[Any] = []

    def run(self, sql: str, parameters: Parameters = ()) -> int:
        """Run one statement; returns the number of rows it inserted, updated or deleted."""
        try:
            return self._execute(sql, parameters).rowcount
        except sqlite3.Error as error:
            raise self._failure(error) from error

    def many(self, sql: str, rows: Iterable[Parameters]) -> int:
        """Run one statement for every element of ``rows``; returns the number of rows changed.

        Sort ``rows`` by key: unsorted thousands take several times as long.
        """
        if self.broken is not None:
            raise self.broken
        try:
            return self._connection.executemany(sql, rows).rowcount
        except sqlite3.Error as error:
            raise self._failure(error) from error

    def run_rows(self, sql: str, rows: Sequence[Sequence[Any]], same: Sequence[Any] = ()) -> int:
        """Run one statement over all rows at once; returns the number of rows changed.

        ``sql`` has ``(VALUES …)`` where the rows go; their columns are column1, column2, …
        ``same`` are the values of the question marks before that, one for all rows. For hundreds
        of rows: unlike ``many`` it does not hand the interpreter lock back and forth with each
        row, for which it would wait half a millisecond whenever the event loop is busy.
        """
        marks = _marks(len(rows[0]), len(rows))
        parameters = [*same, *chain.from_iterable(rows)]
        return self.run(sql.replace("(VALUES …)", marks), parameters)

    @property
    def changes(self) -> int:
        """A number that grows with each row that is inserted, updated or deleted."""
        return self._connection.total_changes

    def emit(self, event: Any) -> None:
        """Hand ``event`` to the store's ``on_commit`` if, and only if, this operation commits."""
        self.events.append(event)

    def restore(self) -> None:
        """Undo what the operation changed, and forget the events it emitted."""
        super().restore()
        self.events = []
