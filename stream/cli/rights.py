"""Print the least rights that a worker needs on Kafka and Redis."""

from __future__ import annotations

from typing import Annotated

import typer

from stream.cli.context import JsonOption, print_json

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def rights(
    ctx: typer.Context,
    role: Annotated[str, typer.Option(help="worker, source (what publishes events) or operator.")] = "worker",
    user: Annotated[str, typer.Option(help="The user that gets them, on Kafka and on Redis.")] = "riskstream",
    json: JsonOption = False,
) -> None:
    """Print the commands that give a user the least rights that it needs, for the settings as they are.

    Nothing is sent anywhere: run the lines with the tools of Kafka (as a user that may alter ACLs) and Redis.
    Put a password in the place of PASSWORD. The names of topics, group and namespace are those of the settings.

    \b
    Examples:
      riskstream rights --user worker
      riskstream rights --role operator --user ops --json
    """
    from stream.cli.settings import settings_from
    from stream.errors import ConfigError
    from stream.rights import Role, kafka_commands, kafka_rights, redis_rule

    if role not in [*Role]:
        raise ConfigError(f"--role {role}: allowed: {', '.join(Role)}")
    settings = settings_from(ctx)
    needed = kafka_rights(settings, Role(role))
    rule = redis_rule(settings, Role(role), user)
    if json:
        names = ("resource", "name", "prefixed", "operation")
        print_json({"kafka": [{name: getattr(right, name) for name in names} for right in needed], "redis": rule})
        return
    print("# Kafka: its user and password are made with kafka-configs.sh (SCRAM-SHA-512)")
    for line in kafka_commands(needed, user, settings.kafka.bootstrap_servers):
        print(line)
    if rule is not None:
        print("# Redis: in redis-cli, as an administrator; then ACL SAVE, or the same in its configuration file")
        print(rule)
