"""Shell completion, written out of the parser: every command, option and choice there is, and nothing else to keep."""

import argparse
import shlex
from collections.abc import Iterator
from typing import Literal

SHELLS = ("bash", "zsh", "fish")
Shell = Literal["bash", "zsh", "fish"]


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """What the shell is to source."""
    commands = {name: sub for group in _groups(parser) for name, sub in group.choices.items()}
    helps = {choice.dest: choice.help or "" for group in _groups(parser) for choice in group._choices_actions}
    if shell == "fish":
        return "\n".join(_fish(parser.prog, commands, helps))
    bash = "\n".join(_bash(parser.prog, commands))
    return bash if shell == "bash" else f"autoload -U +X compinit bashcompinit\ncompinit\nbashcompinit\n{bash}"


def _groups(parser: argparse.ArgumentParser) -> list[argparse._SubParsersAction]:
    return [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]


def _options(sub: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in sub._actions if action.option_strings and action.help != argparse.SUPPRESS]


def _choices(action: argparse.Action) -> str:
    return " ".join(map(str, action.choices or ()))


def _bash(prog: str, commands: dict[str, argparse.ArgumentParser]) -> Iterator[str]:
    yield f"_{prog}() {{"
    yield '  local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" options="" words=""'
    yield "  COMPREPLY=()"
    yield '  if [ "$COMP_CWORD" -eq 1 ]; then'
    yield f'    COMPREPLY=($(compgen -W {shlex.quote(" ".join(commands))} -- "$word")); return'
    yield "  fi"
    yield '  case "${COMP_WORDS[1]} $before" in'
    for name, sub in commands.items():
        for action in _options(sub):
            if action.choices:
                pattern = "|".join(f'"{name} {option}"' for option in action.option_strings)
                yield f'    {pattern}) COMPREPLY=($(compgen -W {shlex.quote(_choices(action))} -- "$word")); return ;;'
    yield "  esac"
    yield '  case "${COMP_WORDS[1]}" in'
    for name, sub in commands.items():
        options = " ".join(option for action in _options(sub) for option in action.option_strings)
        words = " ".join(_choices(action) for action in sub._actions if action.choices and not action.option_strings)
        yield f"    {name}) options={shlex.quote(options)} words={shlex.quote(words)} ;;"
    yield "  esac"
    yield '  if [[ "$word" == -* ]]; then COMPREPLY=($(compgen -W "$options" -- "$word"))'
    yield '  elif [ -n "$words" ]; then COMPREPLY=($(compgen -W "$words" -- "$word"))'
    yield '  else COMPREPLY=($(compgen -f -- "$word")); fi'
    yield "}"
    yield f"complete -o filenames -F _{prog} {prog}"


def _fish(prog: str, commands: dict[str, argparse.ArgumentParser], helps: dict[str, str]) -> Iterator[str]:
    for name, sub in commands.items():
        yield f"complete -c {prog} -n __fish_use_subcommand -f -a {name} -d {_quoted(helps.get(name, ''))}"
        seen = f"-n '__fish_seen_subcommand_from {name}'"
        for action in sub._actions:
            chosen = f" -x -a {_quoted(_choices(action))}" if action.choices else " -r" if action.nargs != 0 else ""
            if not action.option_strings:
                if action.choices:
                    yield f"complete -c {prog} {seen}{chosen}"
                continue
            flags = " ".join(f"-l {o[2:]}" if o.startswith("--") else f"-s {o[1:]}" for o in action.option_strings)
            yield f"complete -c {prog} {seen} {flags}{chosen} -d {_quoted(action.help or '')}"


def _quoted(text: str) -> str:
    """For fish, whose single quotes know two escapes."""
    return "'" + text.replace("%%", "%").replace("\\", "\\\\").replace("'", "\\'") + "'"
