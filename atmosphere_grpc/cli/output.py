"""What the client commands print: text and tables for people, JSON for scripts."""

from __future__ import annotations

import json
from collections.abc import Sequence

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console
from rich.table import Table

from atmosphere_client import AtmosphereError

#: As wide as a table may be that is not folded, in characters.
WIDE = 500


class Output:
    """Answers go to stdout, facts about them and failures to stderr.

    Args:
        as_json: Whether everything is JSON, one document a line.
    """

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self._err = Console(stderr=True, highlight=False, soft_wrap=True)

    def message(self, message: Message) -> None:
        """A message as JSON, by the contract's field names, unset fields included."""
        self.document(
            MessageToDict(
                message,
                preserving_proto_field_name=True,
                always_print_fields_with_no_presence=True,
            )
        )

    def document(self, document: object) -> None:
        """A JSON document, on a line."""
        print(json.dumps(document, ensure_ascii=False), flush=True)  # noqa: T201

    def text(self, text: str, *, end: str = "\n") -> None:
        """What a model says, as it is: nothing in it is markup."""
        print(text, end=end, flush=True)  # noqa: T201

    def thought(self, text: str) -> None:
        """What a model reasons before it answers: apart from that, which may be piped."""
        if text:
            self._err.print(text, style="dim italic", markup=False, end="")

    def facts(self, *facts: str) -> None:
        """How an answer came about; empty facts are left out."""
        line = " · ".join(fact for fact in facts if fact)
        self._err.print(line, style="dim", markup=False)

    def table(
        self, columns: Sequence[str], rows: Sequence[Sequence[str]], *, folded: bool = True
    ) -> None:
        """Rows under their headings; folded to what is there of the screen, unless it may not."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*row)
        Console(highlight=False, markup=False, width=None if folded else WIDE).print(table)

    def note(self, text: str) -> None:
        """Something that a person should see beside the answer."""
        self._err.print(text, style="yellow", markup=False)

    def failure(self, error: AtmosphereError) -> None:
        """Why a call failed."""
        if not self.as_json:
            self._err.print("[red]error:[/] ", end="")
            self._err.print(str(error), markup=False)
            return
        document = {
            "code": error.code.name,
            "reason": error.reason,
            "message": error.message,
            "violations": [
                {"field": item.field, "description": item.description} for item in error.violations
            ],
            "metadata": dict(error.metadata),
            "retry_after_s": error.retry_after,
            "request_id": error.request_id,
        }
        self._err.print(json.dumps({"error": document}, ensure_ascii=False), markup=False)
