"""Groups of commands: a mistyped name gets the nearest one, and one of a later version is told as such."""

from __future__ import annotations

import difflib

import click


class CommandGroup(click.Group):
    """A group that says what to write instead of a name that it does not have.

    ``later``: names of commands that do not exist yet, so that the error says so.
    """

    later: tuple[str, ...] = ()

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that ``args`` name. Raises UsageError with the nearest name where there is none."""
        name = args[0]
        # Click suggests from ``commands``, which a group that imports on demand leaves empty.
        if not ctx.resilient_parsing and not name.startswith("-") and self.get_command(ctx, name) is None:
            raise click.UsageError(f'no such command "{name}"; {self._advice(ctx, name)}', ctx)
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command; a UsageError for one of a later version."""
        if cmd_name in self.later:
            raise click.UsageError(f"{cmd_name}: not available in this version; see {ctx.command_path} --help", ctx)
        return super().get_command(ctx, cmd_name)

    def _advice(self, ctx: click.Context, name: str) -> str:
        near = difflib.get_close_matches(name.lower(), self.list_commands(ctx), n=1)
        if near:
            return f"did you mean {ctx.command_path} {near[0]}?"
        return f"there are {', '.join(self.list_commands(ctx))}"
