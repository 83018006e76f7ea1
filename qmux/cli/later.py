"""Commands of a later version: known by name, so that the error says so instead of "no such command"."""

from __future__ import annotations

import click


class LaterGroup(click.Group):
    """A group that knows the names in ``later`` and says that they do not exist yet."""

    later: tuple[str, ...] = ()

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command; a UsageError for one of a later version."""
        if cmd_name in self.later:
            raise click.UsageError(f"{cmd_name}: not available in this version; see {ctx.command_path} --help", ctx)
        return super().get_command(ctx, cmd_name)
